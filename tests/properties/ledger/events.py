"""What a rule of the machine is: one event, all of it or nothing, that says which entries it may write."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

from django.db import transaction
from django.db.models import Max

from billing import parking
from billing.ledger import InsufficientFunds
from billing.models import Entry, Posting
from billing.parking import MoneyParked
from billing.states import FACTS, EntryKind
from marketplace.core.errors import DomainError
from tests.properties.ledger.model import Absent, Model

# Any event may meet these; what else refuses one is named where it is declared.
_ALWAYS = (InsufficientFunds, MoneyParked)
_DECLARED = "entry_kinds"


def event(
    *kinds: EntryKind, refused: tuple[type[DomainError], ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare which kinds of entries a rule may write, and what may refuse it besides a wallet or a parking.

    A refusal leaves nothing of the event, neither in the database nor in the model. An entry of another kind
    fails the run, so what rules declare is a table of who writes what; and so does an entry that moves parked
    money without being the record of a fact.
    """

    refusals: tuple[type[Exception], ...] = (Absent, *_ALWAYS, *refused)

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(self: Model, *args: Any, **kwargs: Any) -> None:
            was_within, self.is_within, self.known = self.is_within, True, {}
            last, parked = _last_posting(), set(parking.parked())
            before = {name: copy.copy(getattr(self, name)) for name in self.REMEMBERED}
            try:
                with transaction.atomic():
                    function(self, *args, **kwargs)
            except refusals as refusal:
                if isinstance(refusal, MoneyParked) and not parked:
                    raise
                for name, value in before.items():
                    setattr(self, name, value)
                self.refusals[f"{function.__name__}: {type(refusal).__name__}"] += 1
                return
            finally:
                self.is_within = was_within
            posted = _posted_since(last)
            assert set(posted) <= set(kinds), (function.__name__, set(posted) - set(kinds))
            _require_still(parked & set(parking.parked()), since=last)
            self.posted.update(posted)

        setattr(run, _DECLARED, frozenset(kinds))
        return run

    return declare


def writers(machine: type) -> dict[EntryKind, list[str]]:
    """Return by kind of entry which rules of a machine declare to write it."""
    found: dict[EntryKind, list[str]] = {kind: [] for kind in EntryKind}
    for name in sorted(dir(machine)):
        for kind in getattr(getattr(machine, name), _DECLARED, ()):
            found[kind].append(name)
    return found


def _last_posting() -> int:
    return Posting.objects.aggregate(last=Max("pk"))["last"] or 0


def _posted_since(posting: int) -> list[EntryKind]:
    entries = Entry.objects.filter(postings__gt=posting).distinct()
    return [EntryKind(kind) for kind in entries.values_list("kind", flat=True)]


def _require_still(parked: Iterable[str], *, since: int) -> None:
    """Stop at an entry that moved the money of an organization that was parked all the time."""
    moved = Posting.objects.filter(pk__gt=since, account__organization__in=list(parked))
    assert not moved.exclude(entry__kind__in=FACTS).exists(), list(moved)
