"""The small picture beside an offer: how much is sold in the next steps, and what is left of it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from marketplace.core.money import format_rate
from scheduler.availability import CurvePoint

STEP_WIDTH = 10  # units of the drawing
HEIGHT = 40
_LINE_TOP, _LINE_BOTTOM = 4, 36  # the rate's line keeps clear of the edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One step: the sold part from the bottom up, in units of the drawing, and its words."""

    x: int
    sold_height: int
    listed: bool
    title: str

    @property
    def sold_y(self) -> int:
        return HEIGHT - self.sold_height


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A drawing of `width` × `HEIGHT` units; each line is the rate over steps in which something is free."""

    width: int
    bars: tuple[Bar, ...]
    lines: tuple[str, ...]
    summary: str
    height: int = HEIGHT


def draw(points: Sequence[CurvePoint]) -> Strip:
    """Return the drawing of a curve; all coordinates are whole numbers."""
    bars = []
    for number, point in enumerate(points):
        sold = point.gpus_listed - point.gpus_free
        height = HEIGHT * sold // point.gpus_listed if point.gpus_listed else 0
        rate = f", {format_rate(point.rate)} per GPU-hour" if point.rate is not None else ""
        bars.append(
            Bar(
                x=number * STEP_WIDTH,
                sold_height=height,
                listed=point.gpus_listed > 0,
                title=f"{point.window.starts_at:%H:%M} UTC: {point.gpus_free} of "
                f"{point.gpus_listed} free{rate}",
            )
        )
    free = [point.gpus_free for point in points]
    return Strip(
        width=len(points) * STEP_WIDTH,
        bars=tuple(bars),
        lines=_lines(points),
        summary=f"free GPUs over the next {len(points)} steps: from {min(free)} to {max(free)}",
    )


def _lines(points: Sequence[CurvePoint]) -> tuple[str, ...]:
    """Return the rate as stepped lines, broken where nothing is free and so nothing has a price."""
    rates = [point.rate for point in points if point.rate is not None]
    if not rates:
        return ()
    lines: list[list[str]] = [[]]
    for number, point in enumerate(points):
        if point.rate is None:
            lines.append([])
            continue
        y = _height_of(point.rate, low=min(rates), high=max(rates))
        lines[-1] += [f"{number * STEP_WIDTH},{y}", f"{(number + 1) * STEP_WIDTH},{y}"]
    return tuple(" ".join(line) for line in lines if line)


def _height_of(rate: Decimal, *, low: Decimal, high: Decimal) -> int:
    if low == high:
        return (_LINE_TOP + _LINE_BOTTOM) // 2
    return int(_LINE_BOTTOM - (rate - low) * (_LINE_BOTTOM - _LINE_TOP) / (high - low))
