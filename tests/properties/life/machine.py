"""The whole life of reservations in any order of events, beside a model of a few lines.

The model knows what a tenant may count on: what it paid for is kept until its window begins, whatever owners
and machines do; then it is served or the tenant is released; nobody ends it early but those who may, and
nothing is sold twice or sold while somebody may still be on it. Machines speak, are silent, fail, refuse,
restart and are drained as Hypothesis pleases.
"""

import datetime as dt

from django.db import connection, transaction
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from agents import inventory, protocol
from agents.models import Gpu, Grant, Node, Outage, Receipt
from agents.protocol import Cause, Health
from agents.states import NodeStatus
from marketplace.core.errors import StateConflict
from marketplace.core.windows import Window
from marketplace.models import Event, Organization
from marketplace.states import EventKind, Tier
from scheduler import (
    cancellations,
    drains,
    extensions,
    leases,
    quotes,
    reclaims,
    relocations,
    replacements,
    reservations,
    warnings,
)
from scheduler.calendar import CapacityTaken, WindowOffGrid
from scheduler.extension_reach import ExtensionRefused
from scheduler.extensions import ExtensionTooLate
from scheduler.models import Allocation, Lease, Reclaim, Reservation
from scheduler.reclaims import NotReclaimable, ReclaimTooLate
from scheduler.states import (
    RESERVATION_ARROWS,
    LeaseStatus,
    ReservationStatus,
)
from tests.properties.life.promise import (
    GPUS_PER_NODE,
    NODES,
    NOTICE,
    OPEN_LEASES,
    RUNNING,
    Promise,
)
from tests.scheduler.factories import (
    NOW,
    hours,
    make_listing,
    make_node,
    make_organization,
    make_quote,
    reserve,
    say_handed_over,
    say_returned,
    seconds,
)
from tests.scheduler.factories import window_in as window_at


class Life(RuleBasedStateMachine):
    """Drive tenants, owners, machines and the market's clock, which only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = transaction.atomic()  # one per example: each begins with an empty market
        self.sandbox.__enter__()
        self.firm = self._an_owner(tier=Tier.FIRM)
        self.soft = self._an_owner(tier=Tier.RECLAIMABLE)
        self.tenant = make_organization()
        self.now = NOW
        self.promises: dict[str, Promise] = {}
        self.silent: set[str] = set()

    def _an_owner(self, *, tier: Tier) -> Organization:
        owner = make_organization()
        for _ in range(NODES):
            make_node(owner=owner, gpus=GPUS_PER_NODE)
        notice = NOTICE // seconds(1) if tier is Tier.RECLAIMABLE else 0
        make_listing(owner=owner, tier=tier, reclaim_notice_seconds=notice)
        return owner

    @initialize(
        sizes=st.lists(st.integers(min_value=1, max_value=GPUS_PER_NODE), min_size=2, max_size=4)
    )
    def begin(self, sizes: list[int]) -> None:
        """Let some leases run already, so that there is a life to look at."""
        for number, gpus in enumerate(sizes):
            tier = Tier.RECLAIMABLE if number % 2 else Tier.FIRM
            self.buy(gpus=gpus, start=0, length=3 + number, hold=False, pays=True, tier=tier)
        self.go_on_well(60)

    # --- tenants ---------------------------------------------------------------------------------

    @rule(
        gpus=st.integers(min_value=1, max_value=2 * GPUS_PER_NODE),
        start=st.integers(min_value=0, max_value=3),
        length=st.integers(min_value=1, max_value=5),
        hold=st.booleans(),
        pays=st.booleans(),
        tier=st.sampled_from(Tier),
    )
    def buy(
        self,
        gpus: int,
        start: int,
        length: int,
        hold: bool,  # noqa: FBT001 - Hypothesis calls by name
        pays: bool,  # noqa: FBT001 - Hypothesis calls by name
        tier: Tier,
    ) -> None:
        window = window_at((self.now - NOW) // hours(1) + 1 + start, length=length)
        try:
            quote = make_quote(
                tenant=self.tenant, at=self.now, gpus=gpus, window=window, hold=hold, tier=tier
            )
            reservation = reserve(quote, at=self.now)
        except (quotes.NotEnoughCapacity, CapacityTaken):
            return
        self.promises[reservation.pk] = Promise(
            window=window, gpus=gpus, tier=tier, pay_by=reservation.payment_due_at
        )
        if pays:
            self._pay(reservation.pk)

    @rule(choice=st.integers(min_value=0))
    def pay_late(self, choice: int) -> None:
        waiting = [pk for pk, promise in self.promises.items() if not promise.is_paid]
        if waiting:
            self._pay(waiting[choice % len(waiting)])

    def _pay(self, reservation_id: str) -> None:
        promise = self.promises[reservation_id]
        try:
            reservations.confirm(reservation_id=reservation_id, at=self.now, actor="test")
        except StateConflict:
            came_too_late = True
        else:
            came_too_late, promise.is_paid = False, True
        assert came_too_late == (self.now >= promise.pay_by)

    @rule(choice=st.integers(min_value=0))
    def leave(self, choice: int) -> None:
        """Cancel before the start, or go home early."""
        if (pk := self._choose(choice)) is None:
            return
        before = Reservation.objects.get(pk=pk)
        try:
            quote = cancellations.quote(organization=self.tenant, reservation_id=pk, at=self.now)
            cancellations.cancel(
                organization=self.tenant,
                reservation_id=pk,
                quote_id=quote.pk,
                at=self.now,
                actor="tenant",
            )
        except StateConflict:
            after = Reservation.objects.get(pk=pk)
            assert (after.status, after.ends_at) == (before.status, before.ends_at)
            return
        if before.status == ReservationStatus.ACTIVE:
            self.promises[pk].tenant_left = True
        else:
            self.promises[pk].was_cancelled = True

    @rule(choice=st.integers(min_value=0), more=st.integers(min_value=1, max_value=3))
    def extend(self, choice: int, more: int) -> None:
        """Stay longer on the same GPUs, or hear why not and lose nothing."""
        if (pk := self._choose(choice)) is None:
            return
        promise = self.promises[pk]
        before = Reservation.objects.get(pk=pk)
        ends_at = before.ends_at + hours(more)
        try:
            quote = extensions.quote(
                organization=self.tenant,
                reservation_id=pk,
                ends_at=ends_at,
                max_rate=None,
                at=self.now,
            )
            extensions.extend(
                organization=self.tenant,
                reservation_id=pk,
                quote_id=quote.pk,
                at=self.now,
                actor="tenant",
            )
        except (StateConflict, ExtensionRefused, ExtensionTooLate, WindowOffGrid):
            ends_at = before.ends_at
        else:
            promise.window = Window(promise.window.starts_at, ends_at)
            reclaiming = Lease.objects.filter(reservation=before, status=LeaseStatus.RECLAIMING)
            assert not reclaiming.exists(), "nothing that is reclaimed is extended"
        assert Reservation.objects.get(pk=pk).ends_at == ends_at

    def _choose(self, choice: int) -> str | None:
        known = sorted(self.promises)
        return known[choice % len(known)] if known else None

    # --- machines --------------------------------------------------------------------------------

    @rule(choice=st.integers(min_value=0))
    def hand_over(self, choice: int) -> None:
        lease = self._pick(choice, status__in=[LeaseStatus.PROVISIONING])
        if lease and self._receipt(lease, protocol.ReceiptKind.HANDOVER) is None:
            say_handed_over(lease, at=max(self.now, lease.created_at))

    @rule()
    def hand_over_all(self) -> None:
        for lease in Lease.objects.filter(status=LeaseStatus.PROVISIONING):
            if self._receipt(lease, protocol.ReceiptKind.HANDOVER) is None:
                say_handed_over(lease, at=max(self.now, lease.created_at))

    @rule(choice=st.integers(min_value=0))
    def refuse(self, choice: int) -> None:
        lease = self._pick(choice, status__in=[LeaseStatus.PROVISIONING])
        if lease and self._receipt(lease, protocol.ReceiptKind.HANDOVER) is None:
            Grant.objects.filter(lease_id=lease.pk).update(
                reported_state=protocol.LeaseState.FAILED
            )

    @rule(choice=st.integers(min_value=0), clean=st.booleans())
    def give_back(self, choice: int, clean: bool) -> None:  # noqa: FBT001 - Hypothesis calls by name
        """Let a machine give GPUs back: when it is asked, or because it was restarted."""
        lease = self._pick(choice, handed_over_at__isnull=False, released_at__isnull=True)
        if lease and self._receipt(lease, protocol.ReceiptKind.RETURN) is None:
            say_returned(lease, at=self.now, clean=clean)

    @rule(
        choice=st.integers(min_value=0), health=st.sampled_from([Health.LOST, Health.QUARANTINED])
    )
    def break_a_gpu(self, choice: int, health: Health) -> None:
        gpus = list(Gpu.objects.filter(health=Health.HEALTHY.value).order_by("slot"))
        if gpus:
            gpu = gpus[choice % len(gpus)]
            Gpu.objects.filter(pk=gpu.pk).update(health=health)
            Outage.objects.create(
                gpu=gpu, health=health, cause=Cause.HARDWARE, reason="Xid", starts_at=self.now
            )

    @rule()
    def mend_all(self) -> None:
        Outage.objects.filter(ends_at__isnull=True).update(ends_at=self.now)
        Gpu.objects.update(health=Health.HEALTHY)

    @rule(choice=st.integers(min_value=0))
    def fall_silent(self, choice: int) -> None:
        nodes = list(Node.objects.order_by("slot_base").values_list("pk", flat=True))
        self.silent ^= {nodes[choice % len(nodes)]}

    # --- owners ----------------------------------------------------------------------------------

    @rule(choice=st.integers(min_value=0))
    def drain_or_resume(self, choice: int) -> None:
        nodes = list(Node.objects.order_by("slot_base"))
        node = nodes[choice % len(nodes)]
        if node.status == NodeStatus.ACTIVE:
            before = self._sold_on(node)
            found = drains.drain(node=node, at=self.now, actor="owner")
            assert sum(sold.gpus for sold in (*found.moved, *found.kept)) == before
        else:
            inventory.resume(node=node, at=self.now, actor="owner")

    def _sold_on(self, node: Node) -> int:
        return sum(
            place.slots.upper - place.slots.lower
            for place in Allocation.objects.filter(
                live=True, node=node, lease=None, reservation__isnull=False
            )
        )

    @rule(choice=st.integers(min_value=0))
    def reclaim(self, choice: int) -> None:
        lease = self._pick(choice, status__in=RUNNING)
        if lease is None:
            return
        was = lease.status
        promise = self.promises[lease.reservation_id]
        refusable = {
            "not_reclaimable": promise.tier is Tier.FIRM,
            "state_conflict": was == LeaseStatus.RECLAIMING,
            "reclaim_too_late": self.now + NOTICE >= lease.ends_at,
        }
        try:
            made = reclaims.reclaim(
                owner=lease.node.organization, lease_id=lease.pk, at=self.now, actor="owner"
            )
        except (NotReclaimable, StateConflict, ReclaimTooLate) as refusal:
            why = refusal.code
        else:
            why = ""
        assert refusable[why] if why else not any(refusable.values()), (why, refusable)
        if why:
            return
        assert promise.tier is Tier.RECLAIMABLE
        assert NOTICE <= made.due_at - self.now < NOTICE + seconds(1)
        promise.owner_took_it = True

    # --- the market's clock ----------------------------------------------------------------------

    @rule(minutes=st.sampled_from([1, 11, 30, 60, 150]))
    def wait(self, minutes: int) -> None:
        """Let time go by while the market is away."""
        self.now += dt.timedelta(minutes=minutes)
        Node.objects.exclude(pk__in=self.silent).update(last_report_at=self.now)

    @rule(minutes=st.sampled_from([1, 5, 11, 30, 60]))
    def go_on(self, minutes: int) -> None:
        self.wait(minutes)
        self.tick()

    @rule(minutes=st.sampled_from([1, 5, 30, 60]))
    def go_on_well(self, minutes: int) -> None:
        """Let time go by, and every machine do what it is asked."""
        self.go_on(minutes)
        self.hand_over_all()
        for lease in Lease.objects.filter(
            status__in=[LeaseStatus.RETURNING, LeaseStatus.RECLAIMING],
            ends_at__lte=self.now,
        ):
            if self._receipt(lease, protocol.ReceiptKind.RETURN) is None:
                say_returned(lease, at=self.now)
        self.tick()

    @rule()
    def tick(self) -> None:
        """Do all that is due, twice: the second time nothing is left but what waits for others."""
        for _ in range(2):
            quotes.expire_due(at=self.now)
            reservations.expire_unpaid(at=self.now)
            relocations.protect_due(at=self.now)
            drains.sweep(at=self.now)
            reclaims.advance(at=self.now)
            leases.advance(at=self.now)
            replacements.advance(at=self.now)
            reservations.finish_due(at=self.now)
            reservations.start_due(at=self.now)
            warnings.warn_due(at=self.now)
        for lease in Lease.objects.filter(handed_over_at__isnull=False):
            self.promises[lease.reservation_id].was_usable = True
        for reservation in Reservation.objects.all():
            promise = self.promises[reservation.pk]
            status = ReservationStatus(reservation.status)
            assert status in promise.may_be(now=self.now), (status, promise)
            if status is ReservationStatus.COMPLETED:
                assert promise.was_usable

    def _pick(self, choice: int, **where: object) -> Lease | None:
        rows = list(Lease.objects.filter(**where).select_related("node").order_by("pk"))
        return rows[choice % len(rows)] if rows else None

    def _receipt(self, lease: Lease, kind: protocol.ReceiptKind) -> Receipt | None:
        return Receipt.objects.filter(lease_id=lease.pk, kind=kind).first()

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.sandbox.__exit__(None, None, None)

    # --- what holds after every step -------------------------------------------------------------

    @invariant()
    def no_gpu_is_promised_twice(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM scheduler_allocation a JOIN scheduler_allocation b ON a.id < b.id"
                " WHERE a.live AND b.live AND a.slots && b.slots AND a.period && b.period"
            )
            assert cursor.fetchone() == (0,)

    @invariant()
    def every_promise_has_its_gpus_until_it_begins_and_none_when_it_is_over(self) -> None:
        for reservation in Reservation.objects.prefetch_related("allocations"):
            held = sum(
                place.slots.upper - place.slots.lower
                for place in reservation.allocations.all()
                if place.live
            )
            status = ReservationStatus(reservation.status)
            if status in (ReservationStatus.PAYMENT_PENDING, ReservationStatus.SCHEDULED):
                assert held == reservation.gpus
            elif RESERVATION_ARROWS.is_final(status):
                assert held == 0
            else:
                leases_open = reservation.leases.filter(status__in=OPEN_LEASES)
                assert held == sum(len(lease.gpu_uuids) for lease in leases_open)

    @invariant()
    def no_more_is_bought_by_leases_than_by_their_reservation(self) -> None:
        for reservation in Reservation.objects.prefetch_related("leases"):
            parts = sum(lease.gpu_seconds_bought for lease in reservation.leases.all())
            assert parts <= reservation.gpus * reservation.window.seconds

    @invariant()
    def nothing_new_is_sold_where_somebody_may_still_be(self) -> None:
        for lease in Lease.objects.filter(closed_at__isnull=False, released_at__isnull=True):
            if lease.node.vouched_at is None:
                withdrawn = Gpu.objects.filter(uuid__in=lease.gpu_uuids, quarantined_by_market="")
                assert not withdrawn.exists(), lease.pk

    @invariant()
    def a_firm_lease_is_never_taken_back(self) -> None:
        taken = Reclaim.objects.filter(lease__reservation__tier=Tier.FIRM)
        assert not taken.exists()

    @invariant()
    def a_reclaim_is_told_once_and_its_deadline_stands(self) -> None:
        told = Event.objects.filter(kind=EventKind.LEASE_RECLAIM_ANNOUNCED)
        assert told.count() == Reclaim.objects.count()
        for row in Reclaim.objects.filter(lease__returned_at__isnull=False).select_related("lease"):
            assert row.lease.returned_at is not None
            assert row.lease.returned_at <= row.due_at
