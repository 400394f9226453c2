"""What begins: leases that run, lose GPUs, end and are settled, and evidence that comes after that."""

import datetime as dt

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from agents.models import Receipt
from agents.protocol import Cause, ReceiptKind
from billing import corrections, earnings, purchases, settlements
from billing.budgets import BudgetExceeded
from billing.models import Settlement
from billing.states import EntryKind
from scheduler import extension_holds
from scheduler.models import Lease, Reclaim, ReleasedPlace
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories
from tests.properties.ledger import rows
from tests.properties.ledger.changing import RECOVERED, Changing
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DURING, FAR, SECONDS, WHO


class Running(Changing):
    """The rules of leases."""

    @precondition(lambda self: self.bought())
    @rule(
        data=st.data(),
        nodes=st.integers(0, 2),
        handover=st.none() | st.integers(0, SECONDS - 1),
    )
    @event()
    def start(self, data: st.DataObject, nodes: int, handover: int | None) -> None:
        extension_holds.drop_due(at=factories.START + rows.PAYMENT_WINDOW)
        row = self.pick(data, self.bought())
        self.set_status(row, ReservationStatus.ACTIVE if nodes else ReservationStatus.FAILED)
        left = row.gpus
        for _ in range(nodes):
            if not left:
                break
            gpus = data.draw(st.integers(1, left))
            left -= gpus
            lease = factories.lease(
                of=row,
                gpus=gpus,
                status=LeaseStatus.ACTIVE,
                handed_over_after_seconds=handover,
            )
            for gpu in range(gpus):
                factories.meter(
                    of=lease, gpu=gpu, seconds=SECONDS, busy=data.draw(st.integers(0, 900))
                )

    @precondition(lambda self: self.left())
    @rule(data=st.data(), price=st.integers(500, 3000), who=WHO)
    @event(EntryKind.PURCHASE, refused=(BudgetExceeded,))
    def sell_again(self, data: st.DataObject, price: int, who: int) -> None:
        """Sell time that somebody left for a fee, and hand the same GPUs over."""
        place = self.pick(data, self.left())
        gpus = place.slots.upper - place.slots.lower
        row = self.ordered(who, price=price, gpus=gpus, fee=1500)
        purchases.post(reservation=row, at=factories.START)
        lease = factories.lease(of=row, status=LeaseStatus.ACTIVE, on=place.node)
        for gpu in range(gpus):
            factories.meter(of=lease, gpu=gpu, seconds=SECONDS, busy=600)

    @precondition(lambda self: self.running())
    @rule(
        at=st.integers(0, SECONDS - 1), length=st.integers(1, SECONDS), cause=st.sampled_from(Cause)
    )
    @event()
    def lose(self, at: int, length: int, cause: Cause) -> None:
        lease = self.running()[-1]
        if lease.gpu_uuids[0] not in self.lost():
            factories.outage(of=lease, from_second=at, seconds=length, cause=cause)

    @rule()
    @event(EntryKind.EARNING)
    def close_hours(self) -> None:
        while earnings.close_due(at=DURING):
            pass

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(),
        length=st.integers(0, SECONDS),
        compensation=st.none() | st.integers(0, 100),
    )
    @event()
    def finish(self, *, data: st.DataObject, length: int, compensation: int | None) -> None:
        """End a lease at its end or before; what its owner took back has a compensation."""
        lease = self.pick(data, self.running())
        reclaimed = compensation is not None
        handed_over_at, ended_at = lease.handed_over_at, lease.ends_at
        if handed_over_at is not None:
            ended_at = min(handed_over_at + dt.timedelta(seconds=length), lease.ends_at)
        self.end(lease, at=ended_at)
        was_had = handed_over_at is not None and lease.starts_at < ended_at < lease.ends_at
        if compensation is not None and was_had:
            Reclaim.objects.create(
                lease=lease,
                notice_at=lease.starts_at,
                due_at=ended_at,
                promised_until=lease.ends_at,
                remaining_minor=400,
                compensation_minor=compensation,
                currency=settings.CURRENCY,
                actor="test",
            )
        if not any(other.reservation_id == lease.reservation_id for other in self.running()):
            self.set_status(
                lease.reservation,
                ReservationStatus.RECLAIMED if reclaimed else ReservationStatus.COMPLETED,
            )

    @rule()
    @event(
        EntryKind.SETTLEMENT,
        EntryKind.REFUND,
        EntryKind.CREDIT,
        EntryKind.COMPENSATION,
        EntryKind.OFFSET,
        *RECOVERED,
    )
    def settle(self) -> None:
        settlements.settle_ended(at=FAR)

    @precondition(lambda self: Settlement.objects.exists())
    @rule(data=st.data(), seconds=st.integers(1, 3000), is_more=st.booleans())
    @event(EntryKind.CORRECTION, EntryKind.OFFSET, *RECOVERED)
    def learn_late(self, data: st.DataObject, seconds: int, *, is_more: bool) -> None:
        """Let evidence come after a settlement, of an outage or of a later return, and correct by it."""
        known = Settlement.objects.filter(review_due_at__isnull=False)
        row = self.pick(data, self.read(known.select_related("lease__node")))
        lease = row.lease
        is_told = Receipt.objects.filter(lease_id=lease.pk).exists()
        if is_more and lease.handed_over_at is not None and not is_told:
            factories.receipt(of=lease, kind=ReceiptKind.RETURN)
        elif lease.gpu_uuids[0] not in self.lost():
            factories.outage(of=lease, seconds=seconds)
        assert row.review_due_at is not None
        corrections.review(settlement_id=row.pk, at=row.review_due_at)

    def left(self) -> list[ReleasedPlace]:
        """Return the places that were left for a fee and that nobody has had since."""
        sold = Lease.objects.values("node")
        return self.read(ReleasedPlace.objects.exclude(node__in=sold).select_related("node"))

    def end(self, lease: Lease, *, at: dt.datetime) -> None:
        """End a lease at an instant; one that was never handed over has failed."""
        was_had = lease.handed_over_at is not None
        Lease.objects.filter(pk=lease.pk).update(
            status=LeaseStatus.ENDED if was_had else LeaseStatus.FAILED,
            returned_at=at if was_had else None,
            closed_at=lease.ends_at,
        )
