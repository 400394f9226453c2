"""Who is to bear a month's cost: its reservations by project, by a tag, or by who bought them.

A division has every reservation in one group, so its groups add up to the month; what carries no project or
no such tag is a group of its own, and its share says how much of the cost nobody answers for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from billing.bills import ratio
from billing.month_figures import Figures, Row

PROJECT, BUYER, TAG_PREFIX = "project", "buyer", "tag:"
SHARE_QUANTUM = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The sum of some reservations; `name` is what they have in common, `value` how, `label` in words.

    `is_rest` is what has it not. `share` is its part of the month's effective cost as a decimal, None where
    there was no cost.
    """

    name: str
    value: str
    label: str
    figures: Figures
    share: str | None
    is_rest: bool = False


def by(rows: Iterable[Row], *, dimension: str, whole: Figures) -> list[Group]:
    """Return the groups of a dimension, the dearest first and what has none last.

    `dimension` is `project`, `buyer`, or `tag:` with the key of a tag.
    """
    found: dict[tuple[str, str], Figures] = {}
    rest = Figures()
    for row in rows:
        value = _value_of(row, dimension=dimension)
        (rest if value is None else found.setdefault(value, Figures())).add(row.figures)
    groups = [
        _group(dimension, value=value, label=label, figures=figures, whole=whole)
        for (value, label), figures in found.items()
    ]
    groups.sort(key=lambda group: (-group.figures.effective, group.label))
    if rest != Figures():
        groups.append(
            _group(dimension, value="", label=_NONE, figures=rest, whole=whole, is_rest=True)
        )
    return groups


def by_tags(rows: Iterable[Row], *, whole: Figures) -> list[Group]:
    """Return the reservations by each value of each tag: one with two tags is in two groups."""
    found: dict[tuple[str, str], Figures] = {}
    for row in rows:
        if row.reservation is not None:
            for name in row.labels.tags.items():
                found.setdefault(name, Figures()).add(row.figures)
    return [
        _group(name, value=value, label=f"{name}: {value}", figures=figures, whole=whole)
        for (name, value), figures in sorted(found.items())
    ]


def untagged(rows: Iterable[Row], *, whole: Figures) -> Group:
    """Return the reservations without any tag."""
    figures = Figures()
    for row in rows:
        if row.reservation is not None and not row.labels.tags:
            figures.add(row.figures)
    return _group("tag", value="", label=_NONE, figures=figures, whole=whole, is_rest=True)


_NONE = "none"


def _value_of(row: Row, *, dimension: str) -> tuple[str, str] | None:
    if row.reservation is None:
        return None
    if dimension == PROJECT:
        project = row.labels.project
        return (project, project) if project else None
    if dimension == BUYER:
        return (row.buyer.actor, row.buyer.name) if row.buyer else None
    value = row.labels.tags.get(dimension.removeprefix(TAG_PREFIX))
    return None if value is None else (value, value)


def _group(
    name: str,
    *,
    value: str,
    label: str,
    figures: Figures,
    whole: Figures,
    is_rest: bool = False,
) -> Group:
    share = None
    if whole.effective > 0:
        share = ratio(figures.effective, whole.effective, SHARE_QUANTUM)
    return Group(name=name, value=value, label=label, figures=figures, share=share, is_rest=is_rest)
