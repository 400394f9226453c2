"""Collect what is owed: remind, warn, and give back what has not started, until nothing is owed any more.

From the instant in which an invoice is overdue nothing more is sold on account; that is read from the books
(`billing.credit`), and so is that it has been paid. What is taken here is what takes a decision in time: two
reminders, and then what its tenant has bought on account, not paid and not begun is cancelled by the ladder
of any cancellation. To hold it back instead would keep the GPUs from those who pay and leave its owners
without either; the ladder gives the tenant what it would get for leaving by itself, and what goes back is
owed no more. What is paid is not touched, and a lease that runs is never cut.

Whoever is told late is not punished early: between two steps there is always the time that is meant to be.

The last step cancels a part at a time: a suspended case stays due until there is nothing left to cancel. What
the case itself is about comes last, so that a debt which is gone before that was paid, and ends the rest.
"""

import datetime as dt

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, OuterRef, QuerySet, Value, When

from billing import changes, credit, parking, receivables
from billing.models import CreditSale, DunningCase, DunningTransition, Entry
from billing.states import DUNNING_ARROWS, DunningStatus, EntryKind
from marketplace import events
from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.windows import format_instant
from marketplace.states import EventKind
from scheduler import cancellations, ticks
from scheduler.models import Reservation
from scheduler.states import ReservationStatus

log = structlog.get_logger(__name__)

ACTOR = "billing.dunning"
# Each reservation is a cancellation of its own, some 30 ms; the next tick goes on where this one stopped.
CANCELLATIONS_PER_STEP_MAX = 100
# What refuses to be cancelled has most often just begun; a limit on open quotes is gone by then as well.
REFUSED_RETRY_SECONDS = 3600
_NEXT = {
    DunningStatus.WAITING: DunningStatus.OVERDUE,
    DunningStatus.OVERDUE: DunningStatus.REMINDED,
    DunningStatus.REMINDED: DunningStatus.WARNED,
    DunningStatus.WARNED: DunningStatus.SUSPENDED,
}
_TOLD = {
    DunningStatus.OVERDUE: EventKind.INVOICE_OVERDUE,
    DunningStatus.REMINDED: EventKind.INVOICE_REMINDED,
    DunningStatus.WARNED: EventKind.INVOICE_WARNED,
    DunningStatus.SUSPENDED: EventKind.CREDIT_SUSPENDED,
}


def advance_due(*, at: dt.datetime) -> int:
    """End what is not owed any more, then take every step that is due; return how many moves were made.

    Safe to run twice, late, or side by side: each case is locked by one, and takes one step at a time.
    """
    watched = DunningCase.objects.select_related("sale__organization", "sale__invoice")
    over = watched.exclude(status=DunningStatus.CLOSED).filter(
        ~Exists(credit.still_open().filter(pk=OuterRef("sale")))
    )
    count = ticks.drain(
        due=over.order_by("pk"), advance=lambda case: close(case=case, at=at), name="dunning_end"
    )
    due = watched.filter(act_due_at__lte=at).order_by("act_due_at", "pk")
    return count + ticks.drain(
        due=due, advance=lambda case: _step(case, at=at), name="dunning", once=True, batch=1
    )


@transaction.atomic
def close(*, case: DunningCase, at: dt.datetime) -> None:
    """Take an arrow to closed: it is paid, given back or written off.

    :raises StateConflict: when something is owed, or it was closed before.
    """
    if _open_minor(case.sale):
        raise StateConflict(f"{case.sale.invoice_id} is still owed")
    _move(case, to=DunningStatus.CLOSED, act_due_at=None, reason=_reason(case.sale), at=at)


def _step(case: DunningCase, *, at: dt.datetime) -> None:
    """Take the next step of a case that its caller has locked; one whose tenant is parked waits."""
    if not _open_minor(case.sale):
        close(case=case, at=at)
        return
    if parking.is_parked(organizations=[case.sale.organization]):
        return
    came_from = DunningStatus(case.status)
    to = _NEXT.get(came_from, DunningStatus.SUSPENDED)
    if to != DunningStatus.SUSPENDED:
        _move(case, to=to, act_due_at=_next_due_at(case.sale, taken=to, at=at), reason="", at=at)
        _tell(case, key=f"{case.pk}:{to}", cancelled=None, at=at)
        return
    cancelled, act_due_at = _suspend(case.sale, at=at)
    if came_from != DunningStatus.SUSPENDED:
        _move(case, to=to, act_due_at=act_due_at, reason="", at=at)
        _tell(case, key=f"{case.pk}:{to}", cancelled=cancelled, at=at)
        return
    _go_on(case, act_due_at=act_due_at)
    if cancelled:
        # A reservation is cancelled once, so this names the part of it.
        _tell(case, key=f"{case.pk}:{to}:{cancelled[0]}", cancelled=cancelled, at=at)


def _delay_seconds(status: DunningStatus) -> int:
    """Return how long after an invoice was due a step is taken."""
    return {
        DunningStatus.OVERDUE: 0,
        DunningStatus.REMINDED: settings.DUNNING_REMINDER_SECONDS,
        DunningStatus.WARNED: settings.DUNNING_WARNING_SECONDS,
        DunningStatus.SUSPENDED: settings.DUNNING_SUSPENSION_SECONDS,
    }[status]


def _next_due_at(sale: CreditSale, *, taken: DunningStatus, at: dt.datetime) -> dt.datetime:
    """Return when the step after one that is taken now is due; late ones leave as much time as others."""
    following = _NEXT[taken]
    planned = sale.due_at + dt.timedelta(seconds=_delay_seconds(following))
    between = max(_delay_seconds(following) - _delay_seconds(taken), 0)
    return max(planned, at + dt.timedelta(seconds=between))


def _suspend(sale: CreditSale, *, at: dt.datetime) -> tuple[list[str], dt.datetime | None]:
    """Cancel a part of what a tenant has not paid and that has not begun.

    Return the ids of the cancelled reservations, and when to go on; None where nothing is left.
    """
    waiting = _unpaid(sale)
    _lock(waiting)
    cancelled: list[str] = []
    refused: list[str] = []
    # Each is looked for anew: what is paid meanwhile is not taken.
    while len(cancelled) + len(refused) < CANCELLATIONS_PER_STEP_MAX:
        found = waiting.exclude(pk__in=[*cancelled, *refused]).values_list("pk", flat=True).first()
        if found is None:
            break
        (cancelled if _cancel(sale, reservation_id=found, at=at) else refused).append(found)
    if not waiting.exists():
        return cancelled, None
    return cancelled, at if cancelled else at + dt.timedelta(seconds=REFUSED_RETRY_SECONDS)


def _lock(waiting: QuerySet[Reservation]) -> None:
    """Lock what a step may cancel, before the first of them locks what their tenant owes."""
    ids = list(waiting.values_list("pk", flat=True)[:CANCELLATIONS_PER_STEP_MAX])
    list(Reservation.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk"))


def _unpaid(sale: CreditSale) -> QuerySet[Reservation]:
    """Return what a tenant has not paid and that has not begun; what the sale itself is of comes last."""
    unpaid = credit.still_open().filter(reservation=OuterRef("pk"))
    waiting = Reservation.objects.filter(
        Exists(unpaid), organization=sale.organization, status=ReservationStatus.SCHEDULED
    )
    is_own = Case(When(pk=sale.reservation_id, then=Value(1)), default=Value(0))
    return waiting.order_by(is_own, "pk")


def _cancel(sale: CreditSale, *, reservation_id: str, at: dt.datetime) -> bool:
    """Cancel a reservation by the ladder; say whether it let itself be cancelled."""
    try:
        with transaction.atomic():
            quote = cancellations.quote(
                organization=sale.organization, reservation_id=reservation_id, at=at
            )
            changes.cancel(
                organization=sale.organization,
                reservation_id=reservation_id,
                quote_id=quote.pk,
                at=at,
                actor=ACTOR,
            )
    except DomainError as refusal:
        # It has just begun, or its tenant was faster: then it is not ours to take.
        log.info("dunning_leaves", reservation_id=reservation_id, why=refusal.detail)
        return False
    return True


def _tell(case: DunningCase, *, key: str, cancelled: list[str] | None, at: dt.datetime) -> None:
    sale = case.sale
    events.record(
        organization=sale.organization,
        kind=_TOLD[DunningStatus(case.status)],
        object_id=sale.invoice_id,
        data={
            "number": sale.invoice.number,
            "open_minor": _open_minor(sale),
            "currency": sale.currency,
            "due_at": format_instant(sale.due_at),
            "next_step_at": case.act_due_at and format_instant(case.act_due_at),
            **({} if cancelled is None else {"cancelled_reservation_ids": cancelled}),
        },
        at=at,
        key=key,
    )


def _reason(sale: CreditSale) -> str:
    """Return how a sale came to be owed no more: what happened last."""
    told = {
        EntryKind.PAYMENT: "paid",
        EntryKind.OFFSET: "credited",
        EntryKind.WRITE_OFF: "written_off",
    }
    last = (
        Entry.objects.filter(subject_id=sale.invoice_id, kind__in=list(told)).order_by("pk").last()
    )
    return told[EntryKind(last.kind)] if last else "paid"


def _open_minor(sale: CreditSale) -> int:
    return receivables.open_minor(
        organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
    )


def _move(
    case: DunningCase,
    *,
    to: DunningStatus,
    act_due_at: dt.datetime | None,
    reason: str,
    at: dt.datetime,
) -> None:
    """Compare and set; the winner writes the transition in the same transaction, the loser raises."""
    came_from = DunningStatus(case.status)
    won = DUNNING_ARROWS.allows(came_from, to) and DunningCase.objects.filter(
        pk=case.pk, status=came_from
    ).update(status=to, act_due_at=act_due_at)
    if not won:
        raise StateConflict(f"{case.pk} is {came_from} or moved on; it cannot become {to}")
    case.status, case.act_due_at = to, act_due_at
    _note(case, came_from=came_from, reason=reason, at=at)


def _go_on(case: DunningCase, *, act_due_at: dt.datetime | None) -> None:
    """Say when a suspended case is looked at again: no arrow, so nobody may have moved it meanwhile."""
    still = DunningCase.objects.filter(pk=case.pk, status=DunningStatus.SUSPENDED)
    if not still.update(act_due_at=act_due_at):
        raise StateConflict(f"{case.pk} moved on; it is not {DunningStatus.SUSPENDED} any more")
    case.act_due_at = act_due_at


def _note(case: DunningCase, *, came_from: str, reason: str, at: dt.datetime) -> None:
    DunningTransition.objects.create(
        case=case,
        from_status=came_from,
        to_status=case.status,
        reason=reason,
        actor=ACTOR,
        at=at,
    )
