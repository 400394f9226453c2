"""A list costs the same number of queries for fifty rows as for one."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agents.models import Gpu, Node
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus
from tests.agents.factories import make_node
from tests.billing import factories as books
from tests.conftest import ApiClient
from tests.marketplace.factories import a_published_listing

pytestmark = pytest.mark.django_db
ROWS = 50


def queries_of(api: ApiClient, path: str, *, limit: int) -> int:
    """Return how many queries a page of exactly `limit` rows takes."""
    with CaptureQueriesContext(connection) as queries:
        answer = api.get(path, limit=limit)
    assert answer.status == 200, answer.content
    assert len(answer.json["data"]) == limit
    return len(queries)


class TestOwnersLists:
    @pytest.mark.parametrize("path", ["/v1/nodes", "/v1/gpus"])
    def test_ask_no_query_per_row(
        self, api: ApiClient, organization: Organization, path: str
    ) -> None:
        for _ in range(ROWS):
            node = make_node(organization=organization, at=timezone.now())
        books.lease(
            of=books.reservation(buyer=books.tenant(), paid=False),
            status=LeaseStatus.ACTIVE,
            on=node,
        )
        assert Node.objects.count() == ROWS
        assert Gpu.objects.count() >= ROWS
        assert queries_of(api, path, limit=1) == queries_of(api, path, limit=ROWS)

    def test_of_listings_ask_no_query_per_row(
        self, api: ApiClient, organization: Organization
    ) -> None:
        for _ in range(ROWS):
            a_published_listing(owner=organization)
        few = queries_of(api, "/v1/listings", limit=1)
        assert few == queries_of(api, "/v1/listings", limit=ROWS)


class TestTenantsLists:
    @pytest.mark.parametrize("path", ["/v1/reservations", "/v1/leases"])
    def test_ask_no_query_per_row(
        self, api: ApiClient, organization: Organization, path: str
    ) -> None:
        for _ in range(ROWS):
            books.lease(
                of=books.reservation(buyer=organization, paid=False), status=LeaseStatus.ENDED
            )
        assert Reservation.objects.count() == Lease.objects.count() == ROWS
        assert queries_of(api, path, limit=1) == queries_of(api, path, limit=ROWS)
