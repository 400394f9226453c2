"""An owner takes a lease back over HTTP."""

import datetime as dt

import pytest
from django.utils import timezone

from marketplace.core.windows import format_instant
from marketplace.models import AuditEvent
from marketplace.states import Scope, Tier
from scheduler import leases, reservations
from scheduler.models import Lease, Reclaim, Reservation
from tests.api import world
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.scheduler.factories import say_handed_over

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def lease(anybody: ApiClient) -> Lease:
    """Return a running reclaimable lease that ends in some 30 hours."""
    world.a_fleet(gpus=4, tier=Tier.RECLAIMABLE, reclaim_notice=HOUR)
    tenant = an_organization()
    _, secret = a_key(organization=tenant)
    world.fund(tenant)
    quote = world.a_quote(
        anybody.signed_in(secret=secret),
        tier="reclaimable",
        window=world.a_window(in_hours=1, hours=30),
    )
    bought = world.a_reservation(anybody.signed_in(secret=secret), quote=quote)
    assert bought["reclaim_notice"] == "PT1H"
    now = timezone.now()
    Reservation.objects.update(starts_at=now - HOUR)
    reservations.start_due(at=now)
    lease = Lease.objects.get()
    say_handed_over(lease, at=now)
    leases.advance(at=now)
    lease.refresh_from_db()
    return lease


def owner_of(
    lease: Lease, anybody: ApiClient, *, scopes: tuple[Scope, ...] = tuple(Scope)
) -> ApiClient:
    _, secret = a_key(organization=lease.node.organization, scopes=scopes)
    return anybody.signed_in(secret=secret)


class TestReclaim:
    def test_starts_the_clock_once_however_often_the_call_is_repeated(
        self, anybody: ApiClient, lease: Lease
    ) -> None:
        owner = owner_of(lease, anybody)
        path = f"/v1/leases/{lease.pk}/reclaim"

        first = owner.post(path, key="take it back")
        again = owner.post(path, key="take it back")

        assert (first.status, again.content) == (201, first.content)
        row = Reclaim.objects.get()
        assert first.json["due_at"] == format_instant(row.due_at)
        assert first.json["status"] == "reclaiming"
        assert first.json["promised_until"] == format_instant(lease.ends_at)
        assert first.json["compensation"]["amount_minor"] > 0
        assert AuditEvent.objects.filter(action="lease.reclaimed", object_id=lease.pk).count() == 1
        assert owner.post(path, key="and again").code == "state_conflict"

    def test_needs_an_idempotency_key(self, anybody: ApiClient, lease: Lease) -> None:
        answer = owner_of(lease, anybody).post(f"/v1/leases/{lease.pk}/reclaim")
        assert answer.code == "idempotency_key_required"

    def test_needs_the_scope_to_write(self, anybody: ApiClient, lease: Lease) -> None:
        reader = owner_of(lease, anybody, scopes=(Scope.OWNER_READ,))
        assert reader.post(f"/v1/leases/{lease.pk}/reclaim", key="k").status == 403

    def test_is_not_for_the_tenant(self, anybody: ApiClient, lease: Lease) -> None:
        _, secret = a_key(organization=lease.reservation.organization)
        tenant = anybody.signed_in(secret=secret)
        assert tenant.post(f"/v1/leases/{lease.pk}/reclaim", key="k").status == 404

    def test_is_refused_when_the_lease_ends_by_itself_before(
        self, anybody: ApiClient, lease: Lease
    ) -> None:
        Lease.objects.update(ends_at=timezone.now() + HOUR / 2)
        answer = owner_of(lease, anybody).post(f"/v1/leases/{lease.pk}/reclaim", key="k")
        assert answer.code == "reclaim_too_late"
