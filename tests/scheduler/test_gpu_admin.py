"""Staff see in the list of GPUs which are on offer, and what stands against the others."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from agents.models import Gpu, Node
from marketplace.models import User
from tests.scheduler.factories import hours, make_listing, make_node, make_organization

pytestmark = pytest.mark.django_db
PAGE = "admin:agents_gpu_changelist"


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def node() -> Node:
    """Return a machine with two listed GPUs, of which the second is suspect."""
    owner = make_organization()
    node = make_node(owner=owner, gpus=2, last_report_at=timezone.now())
    make_listing(owner=owner, starts_at=timezone.now() - hours(1))
    second = node.gpus.order_by("slot")[1]
    Gpu.objects.filter(pk=second.pk).update(health="suspect", health_reason="latched")
    return node


def rows(staff: Client, **query: str) -> dict[str, str]:
    """Return what the column says of each GPU of the page."""
    answer = staff.get(reverse(PAGE), query)
    assert answer.status_code == 200
    changes = answer.context["cl"]
    return {gpu.uuid: changes.model_admin.offer(gpu) for gpu in changes.result_list}


class TestGpuPage:
    def test_says_what_stands_against_a_gpu(self, staff: Client, node: Node) -> None:
        first, second = node.gpus.order_by("slot")
        assert rows(staff) == {first.uuid: "yes", second.uuid: "unhealthy"}
        assert "unhealthy" in staff.get(reverse(PAGE)).content.decode()

    def test_filters_by_it(self, staff: Client, node: Node) -> None:
        first, second = node.gpus.order_by("slot")
        assert list(rows(staff, on_offer="yes")) == [first.uuid]
        assert list(rows(staff, on_offer="no")) == [second.uuid]

    def test_asks_no_query_per_row(self, staff: Client, node: Node) -> None:
        def count() -> int:
            with CaptureQueriesContext(connection) as queries:
                rows(staff)
            return len(queries)

        few = count()
        make_node(owner=node.organization, gpus=12, last_report_at=timezone.now())
        assert count() == few
