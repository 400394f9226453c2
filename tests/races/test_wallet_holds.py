"""An order that a wallet waits for is approved, refused, made and late at one instant: one of these counts.

What was held is spent by the entry that buys, or given back in full; wallet and calendar tell the same.
"""

import pytest
from django.db import IntegrityError

from billing import changes, ledger, purchase_requests, wallet_holds
from billing.models import Entry, PurchaseRequest, WalletHold
from billing.models.purchase_requests import PurchaseRequestQuerySet
from billing.states import EntryKind
from scheduler import checks, extensions, quotes
from scheduler.models import Change, Reservation
from tests.billing.wallet_holds.market import (
    ASKER,
    a_tenant,
    ask,
    breaches,
    decide,
    decide_limit,
    free,
    fund,
    held,
    limited,
    order,
)
from tests.races.interleaving import before, heard, unconditional, unlocked
from tests.races.test_last_gpus import at_once, sold_slots
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, window_in

CALLS = 6

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


class AReservation:
    """An order of three GPUs that a quote holds, for which all of a wallet is held."""

    gpus = 3

    def __init__(self):
        self.tenant = a_tenant(funds=0)
        self.quote = factories.make_quote(tenant=self.tenant, gpus=self.gpus, hold=True)
        self.price = self.quote.total_minor
        fund(self.tenant, self.price)
        self.asked = ask(self.quote)

    def order(self):
        order(self.quote)

    def is_bought(self):
        found = Reservation.objects.filter(quote=self.quote)
        assert sorted(sold_slots().values()) == [1] * self.gpus * found.count()
        return found.exists()


class AnExtension:
    """An order of two more hours of what its tenant has, for which all that is left in a wallet is held."""

    def __init__(self):
        self.tenant = a_tenant(funds=0)
        limited(self.tenant, None)
        decide_limit(self.tenant)
        first = factories.make_quote(tenant=self.tenant, gpus=2, window=window_in(60))
        fund(self.tenant, first.total_minor)
        self.reservation = order(first)
        limited(self.tenant)
        self.old_end = self.reservation.ends_at
        self.quote = extensions.quote(
            organization=self.tenant,
            reservation_id=self.reservation.pk,
            ends_at=self.old_end + hours(2),
            max_rate=None,
            at=NOW,
        )
        self.price = self.quote.charge_minor
        fund(self.tenant, self.price)
        asking = {**self.of_quote(), "payment_method": "wallet"}
        with pytest.raises(purchase_requests.ApprovalRequired):
            purchase_requests.ask_for_change(**asking)
        self.asked = PurchaseRequest.objects.get(quote_id=self.quote.pk)

    def order(self):
        changes.extend(**self.of_quote(), payment_method="wallet")

    def is_bought(self):
        found = Change.objects.filter(quote=self.quote)
        self.reservation.refresh_from_db()
        added = hours(2) if found.exists() else hours(0)
        assert self.reservation.ends_at == self.old_end + added
        (place,) = self.reservation.allocations.filter(live=True)
        assert place.period.upper == self.reservation.ends_at
        return found.exists()

    def of_quote(self):
        return {
            "organization": self.tenant,
            "reservation_id": self.reservation.pk,
            "quote_id": self.quote.pk,
            "at": NOW,
            "actor": ASKER,
        }


@pytest.fixture(params=[AReservation, AnExtension], ids=["reservation", "extension"])
def wanted(request):
    return request.param()


def approved(wanted):
    decide(purchase_requests.approve, wanted.asked)
    return wanted


def approving(wanted):
    """Return what a second person and then the first one does."""

    def approve_and_order():
        decide(purchase_requests.approve, wanted.asked)
        wanted.order()

    return heard(approve_and_order)


def refusing(wanted):
    return heard(lambda: decide(purchase_requests.refuse, wanted.asked))


def voiding(wanted):
    """Return what the beat does with held money when the quote has expired: its clock may be ahead."""
    return lambda: f"given back {wallet_holds.void_due(at=wanted.quote.expires_at)}"


def lapsing(wanted):
    """Return what the beat does with the quote as well, and with the GPUs that it holds."""

    def sweep():
        quotes.expire_due(at=wanted.quote.expires_at)
        return voiding(wanted)()

    return sweep


def ends_even(wanted):
    """Let what is left be given back; return whether it was bought, on which money and GPUs agree."""
    at = wanted.quote.expires_at
    lapsing(wanted)()
    is_bought = wanted.is_bought()
    assert held(wanted.tenant) == 0
    assert free(wanted.tenant) == (0 if is_bought else wanted.price)
    kept = WalletHold.objects.get()
    given_back = Entry.objects.filter(kind=EntryKind.VOID, subject_id=wanted.asked.pk)
    assert given_back.exists() == (kept.resolution == "voided")
    assert is_bought or kept.resolution == "voided"
    assert breaches(at=at) == []
    found = checks.check(at=at)
    assert found.ok, [check for check in found.checks if not check.ok]
    return is_bought


def status(wanted):
    return PurchaseRequest.objects.get(pk=wanted.asked.pk).status


class TestADecision:
    @pytest.mark.parametrize("seed", range(3))
    def test_is_that_of_one_of_two_people(self, wanted, seed):
        actions = [approving(wanted), refusing(wanted), refusing(wanted)]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert outcomes == {"done": 1, "state_conflict": 2}
        assert ends_even(wanted) == (status(wanted) == "approved")

    def test_that_comes_second_is_refused(self, wanted, monkeypatch):
        approver = before(monkeypatch, PurchaseRequestQuerySet, "update", approving(wanted))

        assert refusing(wanted)() == "state_conflict"
        assert (approver.outcome(), status(wanted)) == ("done", "approved")
        assert ends_even(wanted)

    def test_keeps_who_approves_waiting_until_the_money_is_back(self, wanted, monkeypatch):
        approver = before(monkeypatch, wallet_holds, "void_of", approving(wanted))

        assert refusing(wanted)() == "done"
        assert (approver.outcome(), status(wanted)) == ("state_conflict", "refused")
        assert not ends_even(wanted)

    def test_of_what_needs_nobody_any_more_finds_it_bought(self, wanted, monkeypatch):
        """The limit was taken away, and so the order does not ask who decides."""
        limited(wanted.tenant, None)
        decide_limit(wanted.tenant)
        refuser = before(monkeypatch, ledger, "require_funds", refusing(wanted))

        wanted.order()

        assert refuser.outcome() == "done"
        assert ends_even(wanted)
        assert WalletHold.objects.get().resolution == "captured"


class TestWhatIsLate:
    @pytest.mark.parametrize("seed", range(3))
    def test_is_bought_or_given_back_whoever_is_first(self, wanted, seed):
        actions = [approving(wanted), lapsing(wanted), lapsing(wanted)]

        outcomes = at_once(actions[seed:] + actions[:seed])

        assert outcomes["done"] + outcomes["quote_expired"] == 1
        assert outcomes["given back 1"] <= 1
        assert ends_even(wanted) == (outcomes["done"] == 1)

    def test_is_left_to_the_order_that_spends_it(self, wanted, monkeypatch):
        sweep = before(monkeypatch, ledger, "require_funds", lapsing(approved(wanted)))

        assert heard(wanted.order)() in {"done", "quote_expired"}
        assert sweep.outcome() == "given back 0"
        ends_even(wanted)

    def test_is_given_back_before_an_order_that_waits_for_it(self, wanted, monkeypatch):
        approved(wanted)
        buyer = before(monkeypatch, wallet_holds, "_give_back", heard(wanted.order))

        assert wallet_holds.void_due(at=wanted.quote.expires_at) == 1
        assert buyer.outcome() == "done", "its clock says that the quote stands"
        assert ends_even(wanted)
        assert WalletHold.objects.get().resolution == "voided"

    @pytest.mark.parametrize("seed", range(2))
    def test_and_refused_is_given_back_once(self, wanted, seed):
        actions = [lapsing(wanted), refusing(wanted), lapsing(wanted)]

        at_once(actions[seed:] + actions[:seed])

        assert not ends_even(wanted)
        assert status(wanted) == "refused"


class TestAsking:
    def asking(self, quote):
        return heard(
            lambda: purchase_requests.ask_for_quote(
                organization=quote.organization,
                quote_id=quote.pk,
                project="",
                payment_method="wallet",
                at=NOW,
                actor=ASKER,
            )
        )

    def two_for_the_money_of_one(self):
        tenant = a_tenant(funds=0)
        wanted = [
            factories.make_quote(tenant=tenant, gpus=2, window=window_in(start))
            for start in (24, 48)
        ]
        fund(tenant, max(quote.total_minor for quote in wanted))
        return tenant, wanted

    def test_however_often_holds_once(self):
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)

        assert at_once([self.asking(quote)] * CALLS) == {"approval_required": CALLS}
        assert held(tenant) == quote.total_minor
        assert Entry.objects.filter(kind=EntryKind.HOLD).count() == 1
        assert breaches() == []

    def test_for_two_with_the_money_of_one_holds_for_one(self):
        tenant, wanted = self.two_for_the_money_of_one()

        outcomes = at_once([self.asking(quote) for quote in wanted])

        assert outcomes == {"approval_required": 1, "payment_required": 1}
        row = PurchaseRequest.objects.get()
        assert (held(tenant), free(tenant)) == (row.amount_minor, 0)
        assert breaches() == []

    def test_again_while_somebody_refuses_leaves_nothing_held(self, monkeypatch):
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote, method="card")
        refuser = before(
            monkeypatch,
            wallet_holds,
            "hold",
            heard(lambda: decide(purchase_requests.refuse, asked)),
        )

        assert self.asking(quote)() == "approval_required"
        assert refuser.outcome() == "done"
        assert (held(tenant), WalletHold.objects.get().resolution) == (0, "voided")
        assert breaches() == []

    def test_without_the_lock_holds_for_what_was_refused(self, monkeypatch):
        """The twin of the one above: until the next tick the money lies there for nothing."""
        unlocked(monkeypatch, PurchaseRequest)
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        asked = ask(quote, method="card")
        refuser = before(
            monkeypatch,
            wallet_holds,
            "hold",
            heard(lambda: decide(purchase_requests.refuse, asked)),
        )

        self.asking(quote)()

        assert refuser.outcome() == "done"
        assert held(tenant) == quote.total_minor

    def test_without_the_lock_only_the_key_is_left(self, monkeypatch):
        unlocked(monkeypatch, PurchaseRequest)
        tenant = a_tenant()
        quote = factories.make_quote(tenant=tenant)
        ask(quote, method="card")
        other = before(monkeypatch, wallet_holds, "hold", self.asking(quote))

        with pytest.raises(IntegrityError, match="billing_wallethold_pkey"):
            self.asking(quote)()
        assert other.outcome() == "approval_required"

    def test_without_the_lock_on_the_wallet_an_order_waits_for_which_nothing_is_held(
        self, monkeypatch
    ):
        tenant, (first, second) = self.two_for_the_money_of_one()
        monkeypatch.setattr(ledger, "require_funds", lambda **_: None)
        other = before(monkeypatch, ledger, "kept_balance", self.asking(second))

        assert self.asking(first)() == "approval_required"
        assert other.outcome() == "approval_required"
        assert PurchaseRequest.objects.filter(hold__isnull=True).count() == 1
        assert held(tenant) == second.total_minor


class TestTwins:
    def test_without_the_condition_an_order_is_refused_and_made(self, wanted, monkeypatch):
        unconditional(monkeypatch, PurchaseRequestQuerySet, "status")
        approver = before(monkeypatch, PurchaseRequestQuerySet, "update", approving(wanted))

        assert refusing(wanted)() == "done"
        assert approver.outcome() == "done"
        assert (status(wanted), wanted.is_bought()) == ("refused", True)

    def test_without_locks_an_order_spends_what_was_given_back(self, wanted, monkeypatch):
        """Nothing but the guard of what is held is left, and an order that was paid for is not made."""
        unlocked(monkeypatch, WalletHold)
        monkeypatch.setattr(ledger, "require_funds", lambda **_: None)
        sweep = before(monkeypatch, wallet_holds, "captured_minor", voiding(approved(wanted)))

        with pytest.raises(IntegrityError, match="account_is_not_overdrawn"):
            wanted.order()
        assert sweep.outcome() == "given back 1"
        assert free(wanted.tenant) == wanted.price, "it could pay, and got nothing"
