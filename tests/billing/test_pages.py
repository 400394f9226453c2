"""Pages of the admin say what people can read: money, instants with their zone, and where a row belongs."""

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets, quote
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import approvals, promotions, reconcile, settlements
from billing.admin.provider import MEANINGS
from billing.models import (
    Approval,
    CardInquiry,
    CardRefund,
    Difference,
    Dismissal,
    Dispute,
    Payment,
    Refund,
    Settlement,
    TopUpDispute,
)
from billing.provider_states import PaymentMeans, PaymentPurpose
from billing.states import ApprovalKind
from marketplace.core.money import Money, grouped
from marketplace.core.read_only import MINOR_UNITS, ReadOnly
from marketplace.models import User
from scheduler.states import ReservationStatus
from tests.billing import debtors, factories, test_clawbacks

pytestmark = pytest.mark.django_db

AT = factories.START
ANNA = "anna"


@pytest.fixture
def staff(settings: Any) -> Client:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser(ANNA, password="x"))
    return client


def text_of(answer: Any) -> str:
    """Return the words of a page, without its menu."""
    assert answer.status_code == 200
    found = re.search(r'<div id="content-main".*', answer.content.decode(), re.S)
    main = found[0] if found else answer.content.decode()
    return " ".join(re.sub(r"<[^>]+>", " ", main).split())


def page_of(staff: Client, row: Any) -> str:
    name = f"admin:{row._meta.app_label}_{row._meta.model_name}_change"
    return staff.get(reverse(name, args=[row.pk])).content.decode()


def a_payment() -> Payment:
    return Payment.objects.create(
        organization=factories.tenant(),
        purpose=PaymentPurpose.TOP_UP,
        means=PaymentMeans.CARD,
        amount_minor=123_456,
        currency="usd",
        created_at=AT,
        due_at=AT,
        read_due_at=AT,
    )


class TestAmounts:
    def test_are_grouped_and_have_the_digits_of_their_currency(self) -> None:
        assert grouped(Money(1_234_567, "usd")) == "12,345.67 USD"
        assert grouped(Money(-1_234_567, "jpy")) == "-1,234,567 JPY"
        assert grouped(Money(0, "kwd")) == "0.000 KWD"

    def test_stand_on_no_page_as_minor_units(self, staff: Client, rf: Any) -> None:
        """Every page of rows that nobody edits shows its amounts as money, whatever table it is of."""
        request = rf.get("/")
        request.user = User.objects.get(username=ANNA)
        raw = [
            f"{table._meta.label}.{name}"
            for room, table in _read_only_tables()
            for name in flatten_fieldsets(room.get_fieldsets(request, table()))
            if isinstance(name, str) and name.endswith(MINOR_UNITS)
        ]
        assert raw == []

    def test_are_shown_with_a_currency_that_each_table_has(self, staff: Client) -> None:
        """The path to the currency of each table's amounts leads through its columns to one."""
        for room, table in _read_only_tables():
            columns = {field.name for field in table._meta.get_fields()}
            if any(name.endswith(MINOR_UNITS) for name in columns):
                *path, last = room.currency_of.split("__")
                for step in path:
                    table = table._meta.get_field(step).related_model
                assert last in {field.name for field in table._meta.get_fields()}, room

    def test_of_a_settlement_are_read_as_money(self, staff: Client) -> None:
        row = factories.reservation(
            buyer=factories.tenant(funds_minor=1_000), status=ReservationStatus.COMPLETED
        )
        settlements.settle(lease_id=factories.lease(of=row).pk, at=AT + dt.timedelta(days=1))
        page = page_of(staff, Settlement.objects.get())
        assert "4.71 USD" in page
        assert "minor" not in text_of(
            staff.get(
                reverse("admin:billing_settlement_change", args=[Settlement.objects.get().pk])
            )
        )

    def test_of_the_books_stand_beside_gpu_seconds(self, staff: Client) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
        texts = [page_of(staff, posting.entry) for posting in _postings_of(row)]
        assert any("4.71 USD" in text for text in texts)
        assert any("7,200 GPU-s" in text for text in texts)


def _read_only_tables() -> Iterator[tuple[Any, Any]]:
    """Yield every room of the admin, and every table in one, in which nobody edits anything."""
    rooms: list[Any] = list(admin.site._registry.values())
    for room in rooms:
        for each in (room, *(inline(room.model, admin.site) for inline in room.inlines)):
            is_read_only = isinstance(each, ReadOnly)
            if is_read_only:
                yield each, each.model


def _postings_of(row: Any) -> list[Any]:
    postings = apps.get_model("billing.Posting").objects.filter(entry__subject_id=row.pk)
    return list(postings.select_related("entry"))


class TestADisputeThatAnOwnerBears:
    def test_shows_what_the_owner_got_back_of_it(self, staff: Client) -> None:
        row = test_clawbacks.settled()
        giving = test_clawbacks.TestGivingBack()
        giving.by_card(row)
        test_clawbacks.lost(row)
        charge = test_clawbacks.charged(row, amount=400)
        giving.half_is_refunded(row)
        page = page_of(staff, charge)
        assert "What the owner got back of it" in page
        assert "0.47 USD" in page


class TestInstants:
    def test_say_their_zone(self, staff: Client) -> None:
        page = page_of(staff, a_payment())
        assert "2026-11-02 08:00:00 UTC" in page


class TestAnId:
    def test_keeps_its_letters_in_the_title(self, staff: Client) -> None:
        payment = a_payment()
        page = page_of(staff, payment)
        assert f"P{payment.pk[1:]}" not in page

    def test_leads_from_what_it_is_about_to_that(self, staff: Client) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
        entry = _postings_of(row)[0].entry
        address = reverse("admin:scheduler_reservation_change", args=[quote(row.pk)])
        assert f'href="{address}"' in page_of(staff, entry)
        listing = staff.get(reverse("admin:billing_entry_changelist")).content.decode()
        assert f'href="{address}"' in listing

    def test_of_nothing_that_has_a_page_is_a_word(self, staff: Client) -> None:
        asked = _asked(kind=ApprovalKind.PROMOTION, subject="welcome_back", by="bert")
        page = page_of(staff, asked)
        assert "welcome_back" in page
        assert "welcome_back</a>" not in page


class TestAnInquiry:
    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ({}, "bank asks"),
            ({"closed_at": AT}, "bank is content"),
            ({"disputed_at": AT}, "became a dispute"),
        ],
    )
    def test_tells_whose_it_is_and_what_became_of_it(
        self, staff: Client, columns: dict[str, Any], said: str
    ) -> None:
        _inquiry(**columns)
        listing = staff.get(reverse("admin:billing_cardinquiry_changelist")).content.decode()
        assert said in listing
        assert "Perceptron AG" in listing
        assert "1,234.56 USD" in listing

    def test_leads_to_the_dispute_that_it_became(self, staff: Client) -> None:
        inquiry = _inquiry(disputed_at=AT)
        assert "topupdispute" not in page_of(staff, inquiry).partition("content-main")[2]
        made = TopUpDispute.objects.create(
            id=inquiry.pk,
            payment=inquiry.payment,
            amount_minor=1,
            fee_minor=0,
            currency="usd",
            opened_at=AT,
        )
        address = reverse("admin:billing_topupdispute_change", args=[quote(made.pk)])
        assert f'href="{address}"' in page_of(staff, inquiry)
        assert "0.01 USD" in page_of(staff, made)


def _inquiry(**columns: Any) -> CardInquiry:
    return CardInquiry.objects.create(
        id="dp_1",
        payment=a_payment(),
        state="warning_needs_response",
        amount_minor=123_456,
        currency="usd",
        opened_at=AT,
        **columns,
    )


class TestADifference:
    @pytest.fixture
    def difference(self) -> Difference:
        return Difference.objects.create(
            kind="payment_without_row",
            object_id="pi_1",
            detail="succeeded",
            first_seen_at=AT,
            last_seen_at=AT,
        )

    def test_says_what_it_means_whatever_its_kind(self, staff: Client) -> None:
        assert set(MEANINGS) == set(reconcile.ALERT_AFTER_SECONDS)

    def test_is_open_until_it_is_dismissed_or_resolved(
        self, staff: Client, difference: Difference
    ) -> None:
        listing = reverse("admin:billing_difference_changelist")
        waiting = f"{listing}?resolved_at__isempty=1&dismissal__isempty=1"
        assert "pi_1" in staff.get(waiting).content.decode()
        assert "by nobody" in page_of(staff, difference)
        Dismissal.objects.create(difference=difference, reason="a trial", actor="bert", at=AT)
        assert "pi_1" not in staff.get(waiting).content.decode()
        assert "dismissed" in text_of(staff.get(listing))
        page = page_of(staff, Difference.objects.get())
        assert "by bert, 2026-11-02 08:00 UTC: a trial" in page
        assert MEANINGS["payment_without_row"] in page.replace("&#x27;", "'")


class TestADispute:
    def test_of_a_reservation_leads_to_its_tenant(self, staff: Client) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
        made = Dispute.objects.create(
            id="dp_2",
            reservation=row,
            amount_minor=471,
            fee_minor=1500,
            currency="usd",
            opened_at=AT,
        )
        address = reverse(
            "admin:marketplace_organization_change", args=[quote(row.organization_id)]
        )
        listing = staff.get(reverse("admin:billing_dispute_changelist")).content.decode()
        for page in (listing, page_of(staff, made)):
            assert f'href="{address}"' in page
            assert "15.00 USD" in page


class TestRefunds:
    def test_of_reservations_and_of_cards_have_their_pages(self, staff: Client) -> None:
        row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
        refund = Refund.objects.create(
            reservation=row, amount_minor=1_000_000, currency="usd", created_at=AT
        )
        card_refund = CardRefund.objects.create(
            payment=a_payment(),
            amount_minor=2_000_000,
            currency="usd",
            reason="asked",
            read_due_at=AT,
            created_at=AT,
        )
        for made, amount in ((refund, "10,000.00 USD"), (card_refund, "20,000.00 USD")):
            listing = staff.get(reverse(f"admin:billing_{made._meta.model_name}_changelist"))
            assert amount in listing.content.decode()
            assert amount in page_of(staff, made)
            assert "Perceptron AG" in page_of(staff, made)


def _asked(
    *, kind: ApprovalKind = ApprovalKind.REFUND, subject: str = "", by: str, minor: int = 60_000
) -> Approval:
    row = factories.reservation(buyer=factories.tenant(funds_minor=1_000))
    is_promotion = kind == ApprovalKind.PROMOTION
    return approvals.request(
        kind=kind,
        organization=row.organization,
        subject_id=subject or row.pk,
        amount=Money(minor, "usd"),
        reason="GPU 3 throttled; case 4711",
        at=timezone.now(),
        actor=by,
        expires_at=timezone.now() + dt.timedelta(days=30) if is_promotion else None,
    )


class TestTheDecision:
    def test_is_made_on_what_has_to_be_known(self, staff: Client) -> None:
        asked = _asked(by="bert")
        page = staff.get(reverse("admin:billing_decide", args=[asked.pk])).content.decode()
        for said in ("600.00 USD", "case 4711", "bert", "Sent back before", "0.00 USD"):
            assert said in page
        address = reverse("admin:scheduler_reservation_change", args=[quote(asked.subject_id)])
        assert f'href="{address}"' in page
        assert 'value="approve"' in page

    def test_is_not_offered_to_who_asked(self, staff: Client) -> None:
        asked = _asked(by=ANNA)
        page = staff.get(reverse("admin:billing_decide", args=[asked.pk])).content.decode()
        assert "takes somebody else" in page
        assert 'value="approve"' not in page

    def test_is_not_offered_twice(self, staff: Client) -> None:
        asked = _asked(by="bert")
        approvals.refuse(approval_id=asked.pk, at=timezone.now(), actor="carl")
        page = staff.get(reverse("admin:billing_decide", args=[asked.pk])).content.decode()
        assert "It is refused, by carl" in page
        assert 'value="refuse"' not in page

    def test_shows_only_the_terms_that_its_kind_has(self, staff: Client) -> None:
        refund = page_of(staff, _asked(by="bert"))
        assert "Net days" not in refund
        assert "Expires at" not in refund
        credit = debtors.ask_for_credit(factories.tenant(), limit=1_000_000, at=timezone.now())
        decision = staff.get(reverse("admin:billing_decide", args=[credit.pk])).content.decode()
        assert "30 days" in decision
        assert "10,000.00 USD" in decision
        promotion = _asked(kind=ApprovalKind.PROMOTION, subject="welcome", by="bert")
        assert "Expires at" in page_of(staff, promotion)


class TestAPromotion:
    def test_tells_its_state_what_is_left_and_its_moves(self, staff: Client) -> None:
        buyer = factories.tenant()
        grant = factories.promotion(buyer=buyer, minor=10_000)
        row = factories.reservation(buyer=buyer, paid=False)
        promotions.spend(reservation=row, amount_minor=471, key=row.pk, at=AT)
        page = page_of(staff, grant)
        assert "100.00 USD" in page
        assert "95.29 USD" in page
        assert "−4.71 USD" in page
        assert reverse("admin:scheduler_reservation_change", args=[quote(row.pk)]) in page
        listing = reverse("admin:billing_promotion_changelist")
        assert "in use" in text_of(staff.get(listing))
        type(grant).objects.update(expired_at=AT)
        assert "expired" in text_of(staff.get(listing))
