"""Charts of rates as SVG: drawn by the server, without a script, a style or anything from elsewhere.

Pure. Colours are attributes, not styles, so that a page with a strict policy shows them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from marketplace.core.money import format_rate
from scheduler.tariffs import as_rate

WIDTH, HEIGHT = 760, 280  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 78, 12, 50, 34  # margins, for the words
LINES_MAX = 4  # horizontal ones, with a rate each
COLOURS = ("#0f766e", "#b45309", "#1d4ed8", "#a21caf")  # each 4.5:1 and more on white
DASHES = ("", "7 4", "2 3", "9 3 2 3")  # told apart without colour, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: rates in micros per GPU-hour, evenly spaced; `None` where there is none."""

    name: str
    micros: Sequence[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A word under the axis, at the position of a point."""

    place: int
    text: str


def draw(*, title: str, series: Sequence[Series], marks: Sequence[Mark]) -> SafeString:
    """Return a chart of stepped lines; a screen reader gets its title and the range of each line."""
    known = [rate for line in series for rate in line.micros if rate is not None]
    points = max((len(line.micros) for line in series), default=0)
    if not known or points < 1:
        return format_html("<p>{}: nothing to show yet.</p>", title)
    low, high = _range(known)
    lines = format_html_join(
        "\n",
        '<polyline fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}" points="{}"/>',
        (
            (COLOURS[number], DASHES[number], part)
            for number, line in enumerate(series[: len(COLOURS)])
            for part in _lines(line.micros, points=points, low=low, high=high)
        ),
    )
    return format_html(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="100%" role="img" '
        'aria-label="{}" font-family="system-ui, sans-serif" font-size="12">'
        '<text x="{}" y="14" fill="currentColor">{}</text>{}{}{}{}</svg>',
        WIDTH,
        HEIGHT,
        _words(title, series),
        LEFT,
        title,
        _grid(low=low, high=high),
        _axis(marks, points=points),
        lines,
        _legend(series),
    )


def _range(known: Sequence[int]) -> tuple[int, int]:
    """Return the lowest and the highest rate of the drawing, with air around them."""
    low, high = min(known), max(known)
    air = max((high - low) // 10, high // 50, 1)
    return max(0, low - air), high + air


def _lines(micros: Sequence[int | None], *, points: int, low: int, high: int) -> list[str]:
    """Return stepped lines, broken where there is no rate."""
    parts: list[list[str]] = [[]]
    for place, rate in enumerate(micros):
        if rate is None:
            parts.append([])
            continue
        y = _y(rate, low=low, high=high)
        parts[-1] += [f"{_x(place, points=points)},{y}", f"{_x(place + 1, points=points)},{y}"]
    return [" ".join(part) for part in parts if part]


def _grid(*, low: int, high: int) -> SafeString:
    rates = [low + (high - low) * n // LINES_MAX for n in range(LINES_MAX + 1)]
    return format_html_join(
        "\n",
        '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="currentColor" stroke-opacity="0.15"/>'
        '<text x="{}" y="{}" text-anchor="end" fill="currentColor">{}</text>',
        (
            (LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, format_rate(as_rate(rate))[:-2])
            for rate in rates
            for y in (_y(rate, low=low, high=high),)
        ),
    )


def _axis(marks: Sequence[Mark], *, points: int) -> SafeString:
    return format_html_join(
        "\n",
        '<text x="{}" y="{}" text-anchor="middle" fill="currentColor">{}</text>',
        ((_x(mark.place, points=points), HEIGHT - 12, mark.text) for mark in marks),
    )


def _legend(series: Sequence[Series]) -> SafeString:
    return format_html_join(
        "\n",
        '<line x1="{}" x2="{}" y1="32" y2="32" stroke="{}" stroke-width="3" stroke-dasharray="{}"/>'
        '<text x="{}" y="36" fill="currentColor">{}</text>',
        (
            (x, x + 24, COLOURS[number], DASHES[number], x + 30, line.name)
            for number, line in enumerate(series[: len(COLOURS)])
            for x in (LEFT + number * (WIDTH - LEFT - RIGHT) // len(COLOURS),)
        ),
    )


def _words(title: str, series: Sequence[Series]) -> str:
    ranges = []
    for line in series:
        rates = [rate for rate in line.micros if rate is not None]
        if rates:
            low, high = (format_rate(as_rate(rate)) for rate in (min(rates), max(rates)))
            ranges.append(f"{line.name} from {low} to {high}")
    return f"{title}: {'; '.join(ranges)}"


def _x(place: int, *, points: int) -> int:
    return LEFT + (WIDTH - LEFT - RIGHT) * place // points


def _y(rate: int, *, low: int, high: int) -> int:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (rate - low) // (high - low)
