"""Each check of the books finds its own breach, and no other check claims it."""

import datetime as dt
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from psycopg.types.range import Range

from billing import books, releases, settlements
from billing.models import Account, Entry, Payout, Posting, Settlement
from billing.states import AccountKind, EntryKind, Side
from marketplace.models import Listing
from scheduler.models import Allocation, Lease, Quote, Reservation
from scheduler.states import LeaseStatus, ReservationStatus
from tests.billing import factories

pytestmark = pytest.mark.django_db

MUCH_LATER = factories.START + dt.timedelta(days=60)


@pytest.fixture
def story() -> Reservation:
    """Return a reservation that was bought, partly delivered, settled and released."""
    reservation = factories.reservation(
        buyer=factories.tenant(funds_minor=1000), status=ReservationStatus.COMPLETED
    )
    lease = factories.lease(of=reservation, handed_over_after_seconds=60)
    factories.meter_fully(of=lease)
    settlements.settle_ended(at=MUCH_LATER - dt.timedelta(days=30))
    releases.release_due(at=MUCH_LATER)
    return reservation


def broken() -> list[str]:
    return [check.name for check in books.check(at=MUCH_LATER).checks if not check.ok]


def parked() -> set[str]:
    """Return whose money the breaches would park."""
    return set(books.breaches_of(books.check(at=MUCH_LATER)))


def allocate(reservation: Reservation) -> None:
    lease = reservation.leases.get()
    listing, _ = Listing.objects.get_or_create(
        organization=lease.node.organization,
        name="all",
        defaults={
            "gpu_model": reservation.gpu_model,
            "starts_at": factories.START,
            "floor_rate": 1,
            "currency": "usd",
            "created_at": factories.START,
            "updated_at": factories.START,
        },
    )
    Allocation.objects.create(
        node=lease.node,
        listing=listing,
        reservation=reservation,
        slots=Range(lease.node.slot_base, lease.node.slot_base + 2),
        period=Range(reservation.starts_at, reservation.ends_at),
        created_at=factories.START,
    )


def alter(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        cursor.execute(statement)


class TestCheck:
    def test_finds_nothing_in_empty_books(self):
        assert broken() == []

    def test_finds_nothing_after_a_whole_story(self, story):
        allocate(story)
        assert broken() == []

    def test_has_a_name_for_each_invariant(self):
        names = list(books.NAMES)
        assert len(set(names)) == len(names)


class TestBreach:
    def test_of_balanced_entries(self, story, unguarded):
        # Two entries are off in opposite directions, so that the sum of all accounts stays zero.
        fee = Account.objects.get(kind=AccountKind.PLATFORM_FEE)
        with unguarded():
            for side in Side:
                entry = Entry.objects.create(
                    idempotency_key=side,
                    content_sha256="",
                    kind=EntryKind.DEPOSIT,
                    subject_id="x",
                    effective_at=MUCH_LATER,
                )
                Posting.objects.create(entry=entry, account=fee, side=side, amount=5)
        assert broken() == ["entries_balance"]
        assert parked() == set()  # an account of ours alone

    def test_of_a_balanced_entry_parks_all_who_are_in_it(self, story, unguarded):
        settled = Settlement.objects.get()
        with unguarded():
            Posting.objects.filter(entry=settled.entry, account__kind="deferred").update(amount=1)
        assert "entries_balance" in broken()
        assert parked() >= {story.organization_id, settled.owner_id}

    def test_of_entries_with_postings(self, story, unguarded):
        with unguarded():
            Entry.objects.create(
                idempotency_key="empty",
                content_sha256="",
                kind=EntryKind.DEPOSIT,
                subject_id="x",
                effective_at=MUCH_LATER,
            )
        assert broken() == ["entries_have_postings"]
        assert parked() == set()

    @pytest.mark.parametrize("subject", ["tenant", "reservation", "lease", "settlement", "payout"])
    def test_of_an_empty_entry_parks_whom_its_subject_belongs_to(self, story, unguarded, subject):
        settled, payout = Settlement.objects.get(), Payout.objects.get()
        tenant, owner = story.organization_id, settled.owner_id
        subject_id, whose = {
            "tenant": (tenant, {tenant}),
            "reservation": (story.pk, {tenant}),
            "lease": (settled.lease_id, {tenant, owner}),
            "settlement": (settled.pk, {owner}),
            "payout": (payout.pk, {owner}),
        }[subject]
        with unguarded():
            Entry.objects.create(
                idempotency_key="empty",
                content_sha256="",
                kind=EntryKind.DEPOSIT,
                subject_id=subject_id,
                effective_at=MUCH_LATER,
            )
        assert (broken(), parked()) == (["entries_have_postings"], whose)
        shown = next(c for c in books.check(at=MUCH_LATER).checks if not c.ok)
        assert shown.detail.count("has no postings") == 1

    def test_of_the_sum_of_all_accounts(self, story, unguarded):
        # A posting whose entry is gone is in no entry's balance, but in its account's.
        fee = Account.objects.get(kind=AccountKind.PLATFORM_FEE)
        with unguarded():
            Posting.objects.create(entry_id="ent_gone", account=fee, side=Side.CREDIT, amount=5)
        assert broken() == ["accounts_sum_to_zero"]
        assert parked() == set()
        with unguarded():
            Posting.objects.filter(entry_id="ent_gone").delete()

    def test_of_a_guarded_balance(self, story, unguarded):
        with unguarded():
            Account.objects.filter(kind=AccountKind.WALLET).update(balance=10**9)
        assert broken() == ["guarded_balances_are_derived"]

    def test_of_a_guard(self, story):
        alter("ALTER TABLE billing_posting DISABLE TRIGGER books_keep_rows")
        assert broken() == ["guards_are_in_place"]

    def test_of_a_locked_price(self, story):
        Quote.objects.update(total_minor=story.total_minor - 1)
        assert broken() == ["prices_are_locked"]

    def test_of_a_reservation_that_nobody_paid(self, story):
        factories.reservation(
            buyer=story.organization, status=ReservationStatus.SCHEDULED, paid=False
        )
        assert broken() == ["prices_are_locked"]

    def test_of_a_closed_reservation(self, story):
        factories.reservation(buyer=story.organization, status=ReservationStatus.FAILED)
        assert broken() == ["closed_reservations_are_empty"]
        assert parked() == {story.organization_id}

    def test_of_a_closed_reservation_that_waits_for_its_lease_parks_nobody(self, story):
        late = factories.reservation(buyer=story.organization, status=ReservationStatus.COMPLETED)
        factories.lease(of=late)
        assert broken() == ["closed_reservations_are_empty", "finished_leases_are_settled"]
        assert parked() == set()

    def test_of_gpu_seconds(self, story):
        Reservation.objects.update(gpus=3)
        assert broken() == ["gpu_seconds_add_up"]

    def test_of_a_settlement(self, story, unguarded):
        with unguarded():
            Settlement.objects.update(gpu_seconds_busy=0)
        assert broken() == ["settlements_equal_their_entries"]

    def test_of_a_lease_that_waits_for_its_settlement(self, story):
        running = factories.reservation(buyer=story.organization)
        lease = factories.lease(of=running)
        assert broken() == ["finished_leases_are_settled"]
        assert parked() == set()
        Lease.objects.filter(pk=lease.pk).update(closed_at=MUCH_LATER)
        assert broken() == []

    def test_of_a_settlement_before_the_end(self, story):
        Lease.objects.update(status=LeaseStatus.ACTIVE)
        assert broken() == ["finished_leases_are_settled"]
        assert parked() == {factories.owner().pk}

    def test_of_a_payout(self, story, unguarded):
        with unguarded():
            Payout.objects.update(amount_minor=1)
        assert broken() == ["payouts_equal_releases", "owners_are_owed_what_their_payouts_say"]

    def test_of_a_release_without_a_payout(self, story, unguarded):
        with unguarded():
            connection.cursor().execute("DELETE FROM billing_payouttransition")
            connection.cursor().execute("DELETE FROM billing_payout")
        assert broken() == ["payouts_equal_releases", "owners_are_owed_what_their_payouts_say"]

    def test_of_the_calendar(self, story):
        alter("ALTER TABLE scheduler_allocation DROP CONSTRAINT allocation_no_overlap")
        allocate(story)
        allocate(story)
        assert broken() == ["no_double_allocation"]
        assert parked() == {factories.owner().pk}
        Allocation.objects.filter(pk=Allocation.objects.latest("id").pk).update(live=False)
        assert broken() == []

    def test_is_shown_with_its_number_and_some_examples(self, story, unguarded):
        with unguarded():
            for number in range(8):
                Entry.objects.create(
                    idempotency_key=f"empty {number}",
                    content_sha256="",
                    kind=EntryKind.DEPOSIT,
                    subject_id="x",
                    effective_at=MUCH_LATER,
                )
        (check,) = (c for c in books.check(at=MUCH_LATER).checks if not c.ok)
        assert check.detail.endswith("; and 3 more")


class TestCommand:
    def test_prints_a_line_per_check(self, story):
        out = StringIO()
        call_command("check_books", stdout=out)
        assert out.getvalue().count("\nok") == len(books.NAMES) - 1
        assert f"all {len(books.NAMES)} invariants hold" in out.getvalue()

    def test_fails_on_a_breach(self, story):
        Quote.objects.update(total_minor=0)
        out = StringIO()
        with pytest.raises(SystemExit) as caught:
            call_command("check_books", stdout=out)
        assert caught.value.code == 1
        assert "BROKEN  prices_are_locked" in out.getvalue()


@pytest.mark.django_db(transaction=True)
class TestSnapshot:
    def test_is_taken_outside_of_any_transaction_too(self):
        factories.reservation(buyer=factories.tenant(funds_minor=1000))
        assert books.check(at=MUCH_LATER).ok
