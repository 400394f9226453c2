"""The first page of the admin says at one look whether the books hold, and what waits for whom."""

import datetime as dt
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import approvals, parking
from billing.models import Approval, BooksRun, Difference, Dismissal, LimitRequest
from billing.states import ApprovalKind
from marketplace.console import waiting
from marketplace.core.money import Money
from marketplace.models import Organization
from tests.billing import factories

pytestmark = pytest.mark.django_db

AT = dt.datetime(2026, 11, 30, 6, tzinfo=dt.UTC)


def run(*, ok: bool, at: dt.datetime = AT) -> BooksRun:
    checks = [
        {"name": "entries_balance", "ok": True, "detail": ""},
        {"name": "wallets_are_covered", "ok": ok, "detail": "one is not"},
    ]
    return BooksRun.objects.create(at=at, ok=ok, checks=checks)


class TestTheVerdict:
    def test_is_that_the_books_hold(self) -> None:
        run(ok=True)
        found = waiting.verdict(at=AT + dt.timedelta(hours=20))
        assert (found.words, found.color) == ("The books hold", "success")
        assert found.note == "checked 2026-11-30 06:00 UTC, 2 invariants"

    def test_names_what_is_broken(self) -> None:
        run(ok=True, at=AT - dt.timedelta(days=1))
        run(ok=False)
        found = waiting.verdict(at=AT)
        assert (found.words, found.color) == ("The books are broken", "danger")
        assert found.note.endswith(": wallets_are_covered")

    def test_is_worth_nothing_when_it_is_old(self) -> None:
        run(ok=True)
        at = AT + waiting.BOOKS_STALE_AFTER
        assert waiting.verdict(at=at).color == "success"
        late = waiting.verdict(at=at + dt.timedelta(seconds=1))
        assert (late.words, late.color) == ("The last check of the books is old", "warning")

    def test_stays_broken_however_old_it_is(self) -> None:
        run(ok=False)
        assert waiting.verdict(at=AT + dt.timedelta(days=9)).color == "danger"

    def test_is_none_before_the_first_check(self) -> None:
        assert waiting.verdict(at=AT).color == "warning"


def cards(*, username: str = "admin") -> dict[str, waiting.Card]:
    return {each.title: each for each in waiting.for_people(username=username)}


def ask(*, by: str) -> Approval:
    tenant: Organization = factories.tenant()
    return approvals.request(
        kind=ApprovalKind.CREDIT,
        organization=tenant,
        subject_id=tenant.pk,
        amount=Money(1_000_000, "usd"),
        reason="a good customer",
        net_days=30,
        at=AT,
        actor=by,
    )


class TestWhatWaits:
    def test_is_nothing_in_an_empty_house(self) -> None:
        assert {each.count for each in cards().values()} == {0}
        assert not any(each.urgent for each in cards().values())

    def test_tells_what_somebody_asked_for_from_what_one_can_decide(self) -> None:
        ask(by="admin")
        card = cards()["To decide"]
        assert (card.count, card.urgent) == (1, True)
        assert card.note.endswith("1 asked for by you")
        assert "by you" not in cards(username="bert")["To decide"].note

    def test_counts_differences_that_nobody_dismissed(self) -> None:
        difference = Difference.objects.create(
            kind="payment_without_row",
            object_id="pi_1",
            detail="",
            first_seen_at=AT,
            last_seen_at=AT,
        )
        assert cards()["Differences"].count == 1
        Dismissal.objects.create(difference=difference, reason="a trial", actor="bert", at=AT)
        assert cards()["Differences"].count == 0

    def test_comes_before_what_does_not(self) -> None:
        LimitRequest.objects.create(
            organization=factories.tenant(),
            before_minor=0,
            amount_minor=1,
            currency="usd",
            requested_by="key_1",
            requested_at=AT,
        )
        first, *rest = waiting.for_people(username="admin")
        assert (first.title, first.urgent) == ("Limits to raise", True)
        assert not any(each.urgent for each in rest)

    def test_leads_to_lists_that_answer(self, admin_client: Client, settings: Any) -> None:
        settings.STORAGES = {
            **settings.STORAGES,
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }
        for each in cards().values():
            answer = admin_client.get(each.link)
            # What a list does not let itself be filtered by, it answers with another address.
            assert answer.status_code == 200, each.link


def test_the_page_shows_the_verdict_and_what_waits(admin_client: Client, settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    page = admin_client.get("/admin/").content.decode()
    assert "The books were never checked" in page
    assert "Nothing at the moment." in page
    run(ok=True, at=timezone.now())
    parking.park(breaches={factories.tenant().pk: "looked into"}, at=timezone.now())
    page = admin_client.get("/admin/").content.decode()
    assert "The books hold" in page
    assert "Nothing at the moment." not in page
    (urgent,) = re.findall(r'id="urgent">(.*?)</div>\s*<p', page, re.S)
    assert "Parked" in urgent
    assert "Differences" not in urgent
    assert f'href="{reverse("books")}"' in page
