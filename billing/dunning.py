"""Collect what is owed: remind, warn, and give back what has not started, until nothing is owed any more.

From the instant in which an invoice is overdue nothing more is sold on account; that is read from the books
(`billing.credit`), and so is that it has been paid. What is taken here is what takes a decision in time: two
reminders, and then what its tenant has bought on account, not paid and not begun is given back by the ladder
of any cancellation. To hold it back instead would keep the GPUs from those who pay and leave its owners
without either; the ladder gives the tenant what it would get for leaving by itself, and what goes back is
owed no more. What is paid is not touched: a reservation of which some hours are paid is shortened to those
(`billing.unpaid_hours`), and stays as it is where that cannot be. A lease that runs is never cut.

Whoever is told late is not punished early: between two steps there is always the time that is meant to be.

The last step ends a part at a time: a suspended case stays due until there is nothing left to end. What
the case itself is about comes last, so that a debt which is gone before that was paid, and ends the rest.
What an end leaves of a debt is the ladder's fee: it is asked for, and ends nothing more.
"""

import datetime as dt
from collections.abc import Mapping

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, OuterRef, QuerySet, Value, When

from billing import changes, credit, parking, receivables, unpaid_hours
from billing.models import CreditSale, DunningCase, DunningTransition, Entry
from billing.states import DUNNING_ARROWS, DunningStatus, EntryKind
from marketplace import events
from marketplace.core.errors import DomainError, StateConflict
from marketplace.core.windows import Window, format_instant
from marketplace.states import EventKind
from scheduler import cancellations, rebookings, ticks
from scheduler import changes as scheduled
from scheduler.models import Change, Reservation
from scheduler.rebookings import WindowWish
from scheduler.states import ChangeKind, PaymentMethod, ReservationStatus

log = structlog.get_logger(__name__)

ACTOR = "billing.dunning"
# Each reservation is a change of its own, some 30 ms; the next tick goes on where this one stopped.
CANCELLATIONS_PER_STEP_MAX = 100
# What refuses to be ended has most often just begun; a limit on open quotes is gone by then as well.
REFUSED_RETRY_SECONDS = 3600
WARNED_OF_MAX = 100  # reservations that a warning names: some ten kilobytes
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
        threat = _threat(case.sale) if to == DunningStatus.WARNED else {}
        _tell(case, key=f"{case.pk}:{to}", data=threat, at=at)
        return
    ended, act_due_at = _suspend(case.sale, at=at)
    if came_from != DunningStatus.SUSPENDED:
        _move(case, to=to, act_due_at=act_due_at, reason="", at=at)
        _tell(case, key=f"{case.pk}:{to}", data=_named(ended), at=at)
        return
    _go_on(case, act_due_at=act_due_at)
    if ended:
        # A change is made once, so this names the part of the step.
        _tell(case, key=f"{case.pk}:{to}:{ended[0].pk}", data=_named(ended), at=at)


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


def _suspend(sale: CreditSale, *, at: dt.datetime) -> tuple[list[Change], dt.datetime | None]:
    """End a part of what a tenant has not paid and that has not begun.

    Return the changes that did it, and when to go on; None where nothing is left.
    """
    waiting = _unpaid(sale)
    _lock(waiting)
    ended: list[Change] = []
    refused: list[str] = []
    # Each is looked for anew: what is paid meanwhile is not taken.
    while len(ended) + len(refused) < CANCELLATIONS_PER_STEP_MAX:
        tried = [*(each.reservation_id for each in ended), *refused]
        found = waiting.exclude(pk__in=tried).values_list("pk", flat=True).first()
        if found is None:
            break
        change = _end(sale, reservation_id=found, at=at)
        if change is None:
            refused.append(found)
        else:
            ended.append(change)
    if not waiting.exists():
        return ended, None
    return ended, at if ended else at + dt.timedelta(seconds=REFUSED_RETRY_SECONDS)


def _lock(waiting: QuerySet[Reservation]) -> None:
    """Lock what a step may cancel, before the first of them locks what their tenant owes."""
    ids = list(waiting.values_list("pk", flat=True)[:CANCELLATIONS_PER_STEP_MAX])
    list(Reservation.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk"))


def _unpaid(sale: CreditSale) -> QuerySet[Reservation]:
    """Return what a tenant has not paid and that has not begun; what the sale itself is of comes last."""
    unpaid = _not_ended().filter(reservation=OuterRef("pk"))
    waiting = Reservation.objects.filter(
        Exists(unpaid), organization=sale.organization, status=ReservationStatus.SCHEDULED
    )
    is_last = Case(When(pk=sale.reservation_id, then=Value(1)), default=Value(0))
    return waiting.order_by(is_last, "starts_at", "pk")


def _not_ended() -> QuerySet[CreditSale]:
    """Return what is owed of sales whose hours were not given back here: of others it is the fee."""
    given_back = Change.objects.filter(
        reservation=OuterRef("reservation"), actor=ACTOR, at__gte=OuterRef("created_at")
    )
    return credit.still_open().filter(~Exists(given_back))


def _kept(reservation: Reservation) -> Window | None:
    """Return the window of what is paid of a reservation, None where nothing of it is."""
    unpaid = _not_ended().filter(reservation=reservation)
    return unpaid_hours.kept(reservation=reservation, unpaid=list(unpaid))


def _end(sale: CreditSale, *, reservation_id: str, at: dt.datetime) -> Change | None:
    """Give back by the ladder what of a reservation is not paid; None where it does not let itself be."""
    organization = sale.organization
    try:
        with transaction.atomic():
            found = scheduled.locked(organization=organization, reservation_id=reservation_id)
            kept = _kept(found)
            if kept is None:
                left = cancellations.quote(
                    organization=organization, reservation_id=reservation_id, at=at
                )
                return changes.cancel(
                    organization=organization,
                    reservation_id=reservation_id,
                    quote_id=left.pk,
                    at=at,
                    actor=ACTOR,
                )
            # Where all that is not paid lies between hours that are, nothing would change: that is refused.
            shorter = rebookings.quote(
                organization=organization,
                reservation_id=reservation_id,
                wish=WindowWish(starts_at=kept.starts_at, ends_at=kept.ends_at),
                at=at,
            )
            return changes.rebook(
                organization=organization,
                reservation_id=reservation_id,
                quote_id=shorter.pk,
                payment_method=PaymentMethod.WALLET,
                at=at,
                actor=ACTOR,
            )
    except DomainError as refusal:
        # It has just begun, or its tenant was faster, or its owners sell nothing so short: it is not ours.
        log.info("dunning_leaves", reservation_id=reservation_id, why=refusal.detail)
        return None


def _threat(sale: CreditSale) -> dict[str, object]:
    """Return what the next step would end as things stand: per reservation the hours that are not paid."""
    threatened = []
    waiting = _unpaid(sale)
    for reservation in waiting.select_related("quote")[:WARNED_OF_MAX]:
        kept, window = _kept(reservation), reservation.window
        threatened += [
            {
                "reservation_id": reservation.pk,
                "starts_at": format_instant(part.starts_at),
                "ends_at": format_instant(part.ends_at),
            }
            for part in ([window] if kept is None else window.less(kept))
        ]
    return {"will_end": threatened, "will_end_reservations": waiting.count()}


def _named(ended: list[Change]) -> dict[str, object]:
    """Return which reservations some changes have cancelled, and which they have shortened."""
    return {
        name: [
            each.reservation_id
            for each in ended
            if (each.kind == ChangeKind.CANCELLATION) == is_cancellation
        ]
        for name, is_cancellation in (
            ("cancelled_reservation_ids", True),
            ("shortened_reservation_ids", False),
        )
    }


def _tell(case: DunningCase, *, key: str, data: Mapping[str, object], at: dt.datetime) -> None:
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
            **data,
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
