"""Half-open intervals of time on the market's grid."""

import datetime as dt
import re
from dataclasses import dataclass

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DURATION = re.compile(
    r"(?:P(?:(?P<days>\d{1,5})D)?(?:T(?:(?P<hours>\d{1,6})H)?(?:(?P<minutes>\d{1,7})M)?(?:(?P<seconds>\d{1,9})S)?)?"
    r"|(?P<short>\d{1,7})(?P<unit>[smhd]))",
    flags=re.ASCII,
)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def format_instant(instant: dt.datetime) -> str:
    """Return an aware instant as RFC 3339 in UTC with `Z`, microseconds only where there are some."""
    return instant.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """The half-open interval `[starts_at, ends_at)`, both aware; never empty, never upside down."""

    starts_at: dt.datetime
    ends_at: dt.datetime

    def __post_init__(self) -> None:
        if self.starts_at.utcoffset() is None or self.ends_at.utcoffset() is None:
            raise ValueError("a window's ends must carry a time zone")
        if not self.starts_at < self.ends_at:
            raise ValueError("a window must end after it starts")

    @property
    def duration(self) -> dt.timedelta:
        return self.ends_at - self.starts_at

    @property
    def seconds(self) -> int:
        """Return the length in whole seconds, rounded down."""
        return self.duration // dt.timedelta(seconds=1)

    def covers(self, other: "Window") -> bool:
        return self.starts_at <= other.starts_at and other.ends_at <= self.ends_at

    def intersection(self, other: "Window") -> "Window | None":
        starts_at, ends_at = max(self.starts_at, other.starts_at), min(self.ends_at, other.ends_at)
        return Window(starts_at, ends_at) if starts_at < ends_at else None

    def less(self, other: "Window") -> "list[Window]":
        """Return what is left of the window outside of another, in its order: at most two parts."""
        edges = (
            (self.starts_at, min(self.ends_at, other.starts_at)),
            (max(self.starts_at, other.ends_at), self.ends_at),
        )
        return [Window(starts_at, ends_at) for starts_at, ends_at in edges if starts_at < ends_at]

    def followed_by(self, *, seconds: int) -> "Window":
        """Return the window and some seconds after it."""
        return Window(self.starts_at, self.ends_at + dt.timedelta(seconds=seconds))


def to_seconds(instant: dt.datetime) -> int:
    """Return whole seconds since the Unix epoch, rounded down."""
    return (instant - EPOCH) // dt.timedelta(seconds=1)


def to_instant(seconds: int) -> dt.datetime:
    return EPOCH + dt.timedelta(seconds=seconds)


def is_on_grid(instant: dt.datetime, *, grid_seconds: int) -> bool:
    """Say whether an instant is a whole number of grid steps after the Unix epoch."""
    return (instant - EPOCH) % dt.timedelta(seconds=grid_seconds) == dt.timedelta(0)


def grid_floor(instant: dt.datetime, *, grid_seconds: int) -> dt.datetime:
    """Return the last grid point not after an instant."""
    return instant - (instant - EPOCH) % dt.timedelta(seconds=grid_seconds)


def grid_ceiling(instant: dt.datetime, *, grid_seconds: int) -> dt.datetime:
    """Return the first grid point not before an instant."""
    floor = grid_floor(instant, grid_seconds=grid_seconds)
    return floor if floor == instant else floor + dt.timedelta(seconds=grid_seconds)


def parse_duration(text: str) -> dt.timedelta:
    """Read `PT48H`, `P2DT30M`, `48h`, `90m` or `2d`.

    :raises ValueError: when the text is no such duration, is zero, or is longer than ten years.
    """
    match = _DURATION.fullmatch(text)
    if match is None or text in {"P", "PT"} or text.endswith("T"):
        raise ValueError("must be a duration such as PT48H, 48h, 90m or 2d")
    if match["unit"]:
        seconds = int(match["short"]) * _UNIT_SECONDS[match["unit"]]
    else:
        parts = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
        seconds = sum(int(match[name] or 0) * size for name, size in parts.items())
    if not 0 < seconds <= 10 * 366 * 86_400:
        raise ValueError("must be longer than zero and shorter than ten years")
    return dt.timedelta(seconds=seconds)


def format_duration(duration: dt.timedelta) -> str:
    """Return a duration as ISO 8601 in hours, minutes and seconds: `PT48H`, `PT1M`, `PT0S`."""
    seconds = duration // dt.timedelta(seconds=1)
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    text = "".join(f"{n}{u}" for n, u in ((hours, "H"), (minutes, "M"), (seconds, "S")) if n)
    return f"PT{text or '0S'}"
