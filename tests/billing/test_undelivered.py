"""What was not delivered has its reason from the evidence, and the reasons add up to the second."""

import datetime as dt
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.models import NodeTransition
from agents.protocol import Cause
from agents.states import NodeStatus
from billing import (
    bills,
    books,
    corrections,
    deliveries,
    invoices,
    month_bills,
    month_movements,
    undelivered,
)
from billing import settlements as settling
from billing.models import Settlement
from billing.states import UndeliveredReason as Why
from marketplace.core.windows import Window
from scheduler.models import Lease, LeaseTransition, Reclaim, Reservation
from scheduler.states import LeaseReason, LeaseStatus, ReservationStatus
from tests.billing import factories
from tests.billing.focus import world

pytestmark = pytest.mark.django_db

START = factories.START
LATER = START + dt.timedelta(hours=6)
HOUR = 3600


def bought(*, hours: int = 1, status: ReservationStatus = ReservationStatus.ACTIVE) -> Reservation:
    """Return a paid reservation of two GPUs."""
    return factories.reservation(
        buyer=factories.tenant(funds_minor=100_000), hours=hours, status=status
    )


def ended(
    lease: Lease,
    reason: LeaseReason,
    *,
    after_seconds: int | None = None,
    came_from: LeaseStatus = LeaseStatus.ACTIVE,
) -> Lease:
    """Note why a lease made its last move; `after_seconds` cuts its promise there, as the scheduler does."""
    LeaseTransition.objects.create(
        lease=lease,
        from_status=came_from,
        to_status=lease.status,
        reason=reason,
        actor="test",
        at=lease.ends_at,
    )
    if after_seconds is not None:
        lease.ends_at = lease.starts_at + dt.timedelta(seconds=after_seconds)
        lease.closed_at = lease.ends_at
        if lease.handed_over_at is not None:
            lease.returned_at = lease.ends_at
        lease.save()
    return lease


def reasons_of(lease: Lease) -> dict[Why, int]:
    lease = Lease.objects.get(pk=lease.pk)
    delivery = deliveries.delivery_of(lease=lease)
    reasons = undelivered.of_lease(lease=lease, delivery=delivery)
    assert sum(reasons.values()) == delivery.bought - delivery.delivered
    return dict(reasons)


def bill_of(reservation: Reservation) -> dict[Why, int]:
    """Return the reasons on the final bill, and see that the month's bill and FOCUS rows have the same."""
    settling.settle_ended(at=LATER)
    reservation.refresh_from_db()
    bill = bills.reservation_bill(reservation=reservation, at=LATER)
    reasons = bill.gpu_seconds.undelivered_by_reason
    assert sum(reasons.values()) == bill.gpu_seconds.undelivered
    window = Window(START.replace(day=1), START.replace(month=12, day=1))
    (row,) = month_bills.rows_of(organization=reservation.organization, window=window)
    assert row.figures.undelivered_by_reason == reasons
    assert row.figures.books.undelivered == sum(reasons.values())
    told: Counter[str] = Counter()
    for charge in world.rows(reservation.organization, at=LATER):
        if charge["x_UndeliveredReason"]:
            told[charge["x_UndeliveredReason"]] += round(
                Decimal(charge["x_UndeliveredGpuHours"]) * HOUR
            )
        else:
            assert charge["x_UndeliveredGpuHours"] in {"", "0.0"}
    assert told == reasons
    assert books.check(at=LATER).ok
    return dict(reasons)


class TestOfALease:
    def test_that_was_delivered_whole_there_is_none(self) -> None:
        assert reasons_of(factories.lease(of=bought())) == {}

    def test_an_outage_is_a_fault_of_the_gpu(self) -> None:
        lease = factories.lease(of=bought())
        factories.meter_fully(of=lease)
        factories.outage(of=lease, seconds=600)
        assert reasons_of(lease) == {Why.GPU_FAULT: 600}

    def test_an_outage_that_the_tenant_caused_is_delivered(self) -> None:
        lease = factories.lease(of=bought())
        factories.outage(of=lease, seconds=600, cause=Cause.TENANT)
        assert reasons_of(lease) == {}

    def test_a_late_handover_is_the_time_before_it(self) -> None:
        lease = factories.lease(of=bought(), handed_over_after_seconds=900)
        assert reasons_of(lease) == {Why.HANDOVER: 1800}

    @pytest.mark.parametrize(
        "reason", [LeaseReason.HANDOVER_FAILED, LeaseReason.HANDOVER_TIMED_OUT]
    )
    def test_without_a_handover_all_of_it_is(self, reason: LeaseReason) -> None:
        lease = factories.lease(
            of=bought(), status=LeaseStatus.FAILED, handed_over_after_seconds=None
        )
        ended(lease, reason, came_from=LeaseStatus.PROVISIONING)
        assert reasons_of(lease) == {Why.HANDOVER: 2 * HOUR}

    def test_a_return_that_nobody_asked_for_means_that_the_node_went_down(self) -> None:
        lease = factories.lease(
            of=bought(), status=LeaseStatus.INTERRUPTED, returned_after_seconds=3000
        )
        ended(lease, LeaseReason.RETURNED_UNASKED)
        assert reasons_of(lease) == {Why.NODE_DOWN: 1200}

    @pytest.mark.parametrize(
        ("drained_after_seconds", "why"), [(60, Why.MAINTENANCE), (3300, Why.NODE_DOWN)]
    )
    def test_while_its_owner_drains_it_that_is_maintenance(
        self, drained_after_seconds: int, why: Why
    ) -> None:
        lease = factories.lease(
            of=bought(), status=LeaseStatus.INTERRUPTED, returned_after_seconds=3000
        )
        ended(lease, LeaseReason.RETURNED_UNASKED)
        NodeTransition.objects.create(
            node=lease.node,
            from_status=NodeStatus.ACTIVE,
            to_status=NodeStatus.DRAINING,
            actor="owner",
            at=START + dt.timedelta(seconds=drained_after_seconds),
        )
        assert reasons_of(lease) == {why: 1200}

    def test_a_return_that_nobody_confirmed_means_that_the_node_was_not_heard_from(self) -> None:
        lease = factories.lease(of=bought(), returned_after_seconds=1800)
        ended(lease, LeaseReason.RETURN_UNCONFIRMED, came_from=LeaseStatus.RETURNING)
        assert reasons_of(lease) == {Why.NETWORK: HOUR}

    def test_what_meters_missed_without_any_event_is_unknown(self) -> None:
        lease = factories.lease(of=bought())
        factories.meter(of=lease, gpu=0, up=3000)
        factories.meter(of=lease, gpu=1)
        assert reasons_of(lease) == {Why.UNKNOWN: 600}

    @settings(max_examples=40, deadline=None)
    @given(
        before=st.floats(0, 4000),
        after=st.floats(0, 4000),
        outages=st.lists(
            st.tuples(st.integers(0, 3600), st.integers(1, 3600), st.booleans()), max_size=3
        ),
    )
    def test_the_reasons_divide_what_was_not_delivered_without_rest(
        self, before: float, after: float, outages: list[tuple[int, int, bool]]
    ) -> None:
        handed, returned = sorted((min(before, HOUR), max(0.0, HOUR - after)))
        lease = factories.lease(of=factories.reservation(buyer=factories.tenant(), paid=False))
        lease.handed_over_at = START + dt.timedelta(seconds=handed)
        lease.returned_at = START + dt.timedelta(seconds=returned)
        lease.save()
        ended(lease, LeaseReason.RETURN_UNCONFIRMED, came_from=LeaseStatus.RETURNING)
        since = 0
        for start, length, is_tenants in sorted(outages):
            if start >= since:
                factories.outage(
                    of=lease,
                    from_second=start,
                    seconds=length,
                    cause=Cause.TENANT if is_tenants else Cause.HARDWARE,
                )
                since = start + length
        reasons = reasons_of(lease)
        assert all(seconds > 0 for seconds in reasons.values())
        assert Why.UNKNOWN not in reasons


class TestOfTheRest:
    def test_after_a_reclaim_is_the_owners_doing(self) -> None:
        row = bought(hours=2, status=ReservationStatus.RECLAIMED)
        lease = factories.lease(of=row)
        promised_until = lease.ends_at
        ended(lease, LeaseReason.RETURNED, after_seconds=HOUR, came_from=LeaseStatus.RECLAIMING)
        Reclaim.objects.create(
            lease=lease,
            notice_at=START,
            due_at=lease.ends_at,
            promised_until=promised_until,
            remaining_minor=471,
            compensation_minor=0,
            currency="usd",
            actor="owner",
        )
        assert bill_of(row) == {Why.RECLAIM: 2 * HOUR}

    def test_of_what_was_never_started_the_market_is_the_reason(self) -> None:
        assert bill_of(bought(status=ReservationStatus.FAILED)) == {Why.NOT_STARTED: 2 * HOUR}

    def test_until_another_takes_its_place_is_that_of_the_broken_lease(self) -> None:
        row = bought(status=ReservationStatus.COMPLETED)
        first = factories.lease(of=row, status=LeaseStatus.INTERRUPTED)
        ended(first, LeaseReason.NODE_FAULT, after_seconds=1200)
        second = factories.lease(of=row)
        second.starts_at = second.handed_over_at = START + dt.timedelta(seconds=1500)
        second.replaces = first
        second.save()
        assert bill_of(row) == {Why.GPU_FAULT: 2 * 300}

    def test_that_nobody_replaces_goes_on_to_the_end(self) -> None:
        row = bought(status=ReservationStatus.FAILED)
        lease = factories.lease(of=row, status=LeaseStatus.FAILED, handed_over_after_seconds=None)
        ended(
            lease,
            LeaseReason.HANDOVER_TIMED_OUT,
            after_seconds=600,
            came_from=LeaseStatus.PROVISIONING,
        )
        assert bill_of(row) == {Why.HANDOVER: 2 * HOUR}

    def test_of_a_lease_without_a_word_of_its_end_is_unknown(self) -> None:
        row = bought(status=ReservationStatus.FAILED)
        lease = factories.lease(of=row, status=LeaseStatus.INTERRUPTED)
        lease.ends_at = lease.returned_at = lease.closed_at = START + dt.timedelta(seconds=1800)
        lease.save()
        assert bill_of(row) == {Why.UNKNOWN: HOUR}


class TestOfASettlement:
    def settled(self) -> Settlement:
        lease = factories.lease(
            of=bought(status=ReservationStatus.COMPLETED), handed_over_after_seconds=300
        )
        factories.meter_fully(of=lease)
        settling.settle_ended(at=LATER)
        return Settlement.objects.get(lease=lease)

    def test_is_kept_with_its_evidence(self) -> None:
        assert self.settled().evidence["undelivered_by_reason"] == {"handover": 600}

    def test_a_correction_adds_what_came_late(self) -> None:
        settlement = self.settled()
        factories.outage(of=settlement.lease, from_second=1200, seconds=240)
        assert settlement.review_due_at is not None
        corrections.review(settlement_id=settlement.pk, at=settlement.review_due_at)
        first, second = undelivered.of_settlement(Settlement.objects.get())
        assert (first.entry_id, first.reasons) == (settlement.entry_id, {Why.HANDOVER: 600})
        assert (second.moment, second.reasons) == (settlement.review_due_at, {Why.GPU_FAULT: 240})
        assert bill_of(settlement.lease.reservation) == {Why.HANDOVER: 600, Why.GPU_FAULT: 240}

    def test_that_is_posted_after_the_close_of_its_month_is_of_the_month_that_is_open(self) -> None:
        tenant = factories.tenant(funds_minor=100_000)
        row = factories.reservation(buyer=tenant, status=ReservationStatus.COMPLETED)
        lease = factories.lease(of=row, handed_over_after_seconds=300)
        factories.meter_fully(of=lease)
        closed_at = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
        invoices.issue_month(organization=tenant, month="2026-11", at=closed_at)
        settling.settle(lease_id=lease.pk, at=closed_at + dt.timedelta(hours=1))
        settlement = Settlement.objects.get()
        factories.outage(of=lease, from_second=1200, seconds=240)
        assert settlement.review_due_at is not None
        corrections.review(settlement_id=settlement.pk, at=settlement.review_due_at)
        told = {}
        for month in ("2026-11", "2026-12"):
            window = month_movements.month_window(month=month)
            (bill,) = month_bills.rows_of(organization=tenant, window=window)
            told[month] = dict(bill.figures.undelivered_by_reason)
        assert told == {"2026-11": {}, "2026-12": {Why.HANDOVER: 600, Why.GPU_FAULT: 240}}

    def test_that_kept_none_says_unknown_until_it_is_corrected(self, unguarded: Any) -> None:
        settlement = self.settled()
        del settlement.evidence["undelivered_by_reason"]
        with unguarded():
            settlement.save(update_fields=["evidence"])
        row = settlement.lease.reservation
        assert bill_of(row) == {Why.UNKNOWN: 600}
        factories.outage(of=settlement.lease, from_second=1200, seconds=240)
        assert settlement.review_due_at is not None
        corrections.review(settlement_id=settlement.pk, at=settlement.review_due_at)
        assert bill_of(row) == {Why.HANDOVER: 600, Why.GPU_FAULT: 240}

    def test_whose_reasons_do_not_add_up_is_found_by_the_check_of_the_books(
        self, unguarded: Any
    ) -> None:
        settlement = self.settled()
        settlement.evidence["undelivered_by_reason"] = {"handover": 599}
        with unguarded():
            settlement.save(update_fields=["evidence"])
        breaches = {each.name for each in books.check(at=LATER).checks if not each.ok}
        assert breaches == {"reasons_add_up"}
