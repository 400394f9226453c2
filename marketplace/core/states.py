"""Tables of arrows: which status may follow which, as data.

One table feeds the check at run time, the database constraint on transition rows, the diagram in the
package's README and the property tests.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from django.db.models import Q, TextChoices

StatusT = TypeVar("StatusT", bound=TextChoices)


class Arrows(Generic[StatusT]):
    """The legal moves of one state machine. Every status is a key; a final one leads nowhere."""

    def __init__(
        self, *, initial: tuple[StatusT, ...], moves: Mapping[StatusT, tuple[StatusT, ...]]
    ) -> None:
        statuses = set(type(initial[0]))
        assert set(moves) == statuses, f"without a row: {statuses - set(moves)}"
        self.initial = initial
        self._moves = {status: frozenset(targets) for status, targets in moves.items()}

    def __iter__(self) -> Iterator[tuple[StatusT, StatusT]]:
        """Yield every arrow as (from, to), in the order of the enum."""
        for status in self._moves:
            for target in type(status):
                if target in self._moves[status]:
                    yield status, target

    def allows(self, from_status: StatusT, to_status: StatusT) -> bool:
        return to_status in self._moves[from_status]

    def is_final(self, status: StatusT) -> bool:
        return not self._moves[status]

    def as_check(self) -> Q:
        """Return the condition under which a row (from_status, to_status) is a legal move.

        A row with an empty `from_status` records the beginning.
        """
        condition = Q(from_status="", to_status__in=sorted(s.value for s in self.initial))
        for source, target in self:
            condition |= Q(from_status=source.value, to_status=target.value)
        return condition

    def as_diagram(self) -> str:
        """Return the machine as a Mermaid state diagram, as it stands in the package's README."""
        lines = ["stateDiagram-v2"]
        lines += [f"    [*] --> {status.value}" for status in self.initial]
        lines += [f"    {source.value} --> {target.value}" for source, target in self]
        lines += [f"    {status.value} --> [*]" for status in self._moves if self.is_final(status)]
        return "\n".join(lines)
