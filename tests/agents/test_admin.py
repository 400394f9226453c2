"""The admin shows machines to staff, changes them through the verbs only, and shows no secret."""

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from agents import ingest
from agents.models import Alarm, EnrolmentToken, Node, NodeTransition, Reading, Receipt
from agents.states import AlarmKind
from marketplace.models import User
from tests.agents import factories as make
from tests.agents.factories import NOW

pytestmark = pytest.mark.django_db
MODELS = [model._meta.model_name for model in apps.get_app_config("agents").get_models()]


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
def machine() -> make.Machine:
    """Store at least one row in every table."""
    machine = make.make_machine()
    grant = make.make_grant(node=machine.node)
    report = make.report(
        machine=machine,
        readings=[make.reading(gpu_uuid=machine.gpu_uuids[0])],
        meters=[make.meter(grant=grant)],
        receipts=[make.receipt(grant=grant, key=machine.key)],
    )
    ingest.accept(node=machine.node, report=report, at=NOW)
    Alarm.objects.create(
        node=machine.node, kind=AlarmKind.NODE_CLONED, detail="two machines", raised_at=NOW
    )
    return machine


@pytest.mark.parametrize("name", MODELS)
class TestEveryTable:
    def test_can_be_listed_searched_and_opened_but_not_changed(
        self, staff: Client, machine: make.Machine, name: str
    ) -> None:
        model = apps.get_model("agents", name)
        row = model.objects.first()
        listing = reverse(f"admin:agents_{name}_changelist")
        assert staff.get(listing).status_code == 200
        assert staff.get(listing, {"q": machine.node_id}).status_code == 200
        change = reverse(f"admin:agents_{name}_change", args=[row.pk])
        assert staff.get(change).status_code == 200
        assert staff.post(change, {}).status_code == 403
        assert staff.get(reverse(f"admin:agents_{name}_add")).status_code == 403
        delete = reverse(f"admin:agents_{name}_delete", args=[row.pk])
        assert staff.post(delete, {"post": "yes"}).status_code == 403
        assert model.objects.filter(pk=row.pk).exists()

    def test_has_search_and_filters(self, name: str) -> None:
        page = admin.site.get_model_admin(apps.get_model("agents", name))
        assert page.search_fields
        assert page.list_filter


class TestSecrets:
    def test_not_even_the_hash_of_a_token_is_shown(
        self, staff: Client, machine: make.Machine
    ) -> None:
        token = EnrolmentToken.objects.get()
        for url in (
            reverse("admin:agents_enrolmenttoken_changelist"),
            reverse("admin:agents_enrolmenttoken_change", args=[token.pk]),
        ):
            assert token.secret_sha256.encode() not in staff.get(url).content


class TestActions:
    def act(self, staff: Client, name: str, action: str, row: Any) -> None:
        url = reverse(f"admin:agents_{name}_changelist")
        data = {"action": action, "_selected_action": [row.pk]}
        assert staff.post(url, data).status_code == 302

    def test_move_a_node_through_its_verbs(self, staff: Client, machine: make.Machine) -> None:
        for action, status in (("drain", "draining"), ("resume", "active"), ("revoke", "revoked")):
            self.act(staff, "node", action, machine.node)
            assert Node.objects.get().status == status
        move = NodeTransition.objects.latest("id")
        assert (move.to_status, move.actor) == ("revoked", "user:root")

    def test_tell_when_a_move_is_refused(self, staff: Client, machine: make.Machine) -> None:
        self.act(staff, "node", "resume", machine.node)
        assert Node.objects.get().status == "active"
        assert NodeTransition.objects.count() == 1
        page = staff.get(reverse("admin:agents_node_changelist"))
        assert "cannot become active" in page.content.decode()

    def test_settle_an_alarm(self, staff: Client, machine: make.Machine) -> None:
        self.act(staff, "alarm", "settle", Alarm.objects.get())
        alarm = Alarm.objects.get()
        assert alarm.settled_at is not None
        assert alarm.settled_by == "user:root"

    def test_revoke_a_token(self, staff: Client, machine: make.Machine) -> None:
        self.act(staff, "enrolmenttoken", "revoke", EnrolmentToken.objects.get())
        assert EnrolmentToken.objects.get().revoked_at is not None

    def test_are_closed_to_staff_who_may_only_look(self, machine: make.Machine) -> None:
        client = Client()
        client.force_login(User.objects.create_user("looker", password="x", is_staff=True))
        url = reverse("admin:agents_node_changelist")
        response = client.post(url, {"action": "revoke", "_selected_action": [machine.node_id]})
        assert response.status_code == 403
        assert Node.objects.get().status == "active"


def test_the_tables_of_these_tests_are_not_empty(machine: make.Machine) -> None:
    assert Reading.objects.exists()
    assert Receipt.objects.exists()
