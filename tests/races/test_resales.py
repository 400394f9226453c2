"""Time that was left is bought by many, and released by many ticks at one instant: each second counts once.

Yen, in which a part of a fee is a few units: whoever rounds each part for itself gives more than there was.
"""

import datetime as dt
from fractions import Fraction

import pytest
from django.db import IntegrityError
from django.db.models import Sum

from agents.models import Node
from billing import fee_shares, receivables, releases, resales
from billing.models import Entry, FeeShare, Resale, ResalePart, Settlement
from billing.states import AccountKind, EntryKind
from marketplace.core.money import round_half_even, share_of
from marketplace.models import Organization
from scheduler.models import Lease, Reservation
from tests.billing import bookings, debtors
from tests.billing.bookings import FUNDS_MINOR, LONG_AFTER, leave
from tests.billing.readings import purse
from tests.billing.resales import market as resold
from tests.billing.resales.market import breaches, buy, holds, release, slices
from tests.races.interleaving import before, heard, unlocked
from tests.races.test_last_gpus import at_once, sold_slots
from tests.scheduler import factories
from tests.scheduler.factories import NOW, hours, window_in

AHEAD = 8 * 24  # hours: half of the price is kept of who leaves
RELEASED_AT = NOW + LONG_AFTER

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
def market(settings):
    settings.CURRENCY = "jpy"
    resold.a_node(currency="jpy")


def a_tenant():
    return bookings.a_tenant(currency="jpy")


@pytest.fixture
def left(market):
    """Return what its tenant has left before it began: the owner has 12 of its fee, one and a half a GPU."""
    reservation = buy(by=a_tenant(), window=window_in(AHEAD, length=3))
    leave(reservation)
    assert FeeShare.objects.get().amount_minor == 12
    return reservation


@pytest.fixture
def returned(market):
    """Return what its tenant has had for an hour, and then left; the rest of it is two hours and a bit."""
    reservation = buy(by=a_tenant(), window=window_in(AHEAD - 2, length=5))
    resold.start(reservation)
    leave(reservation, at=reservation.starts_at + hours(1))
    resold.finish(reservation, at=reservation.starts_at + hours(1) + dt.timedelta(seconds=1))
    return reservation


def quoted(*gpus, at=NOW):
    return [
        factories.make_quote(
            tenant=a_tenant(), at=at, gpus=count, window=window_in(AHEAD, length=3)
        )
        for count in gpus
    ]


def buying(quote, *, at=NOW):
    return heard(lambda: bookings.purchase(quote, at=at))


def releasing():
    return f"released {releases.release_due(at=RELEASED_AT)}"


def releasing_fees():
    return f"released {fee_shares.release_due(at=RELEASED_AT)} fees"


def deliver(found):
    """Deliver reservations side by side, each in full, and settle them."""
    for reservation in found:
        resold.start(reservation)
    for reservation in found:
        resold.finish(reservation)


def sold(*gpus):
    """Return the settlements of what was sold again to as many buyers, and delivered to each."""
    found = [bookings.purchase(quote) for quote in quoted(*gpus)]
    deliver(found)
    return [Settlement.objects.get(lease__reservation=each) for each in found]


def freeing(settlement):
    return lambda: str(releases.release(settlement_id=settlement.pk, at=RELEASED_AT))


def is_shared_to_the_yen(reservation):
    """Check what was given of a fee against its terms, by the exact sum of all that was sold again of it."""
    fee = FeeShare.objects.get(change__reservation=reservation)
    (whole,) = fee.change.given_back_by_owner.values()
    sums = fee.resales.aggregate(
        worth=Sum("worth_micro_seconds"),
        part=Sum("fee_part_minor"),
        taken=Sum("taken_minor"),
        share=Sum("share_minor"),
    )
    assert sums["part"] == round_half_even(fee.amount_minor * Fraction(sums["worth"], whole))
    assert sums["taken"] <= sums["part"] <= fee.amount_minor
    assert sums["share"] == share_of(
        total_minor=sums["taken"], part=fee.resale_basis_points, whole=10_000
    )
    margin = resold.shared(AccountKind.RESALE_MARGIN, currency="jpy")
    assert margin == sums["taken"] - sums["share"]
    of_buyers = Lease.objects.exclude(reservation=reservation)
    assert ResalePart.objects.aggregate(sum=Sum("gpu_seconds"))["sum"] == sum(
        len(lease.gpu_uuids) * lease.window.seconds for lease in of_buyers
    )
    holds()
    return sums["share"]


class TestBuyersOfWhatWasLeft:
    @pytest.mark.parametrize("seed", range(3))
    def test_get_each_gpu_once_and_their_leaver_each_second(self, left, seed):
        actions = [buying(quote) for quote in quoted(1, 6, 1, 2)]

        outcomes = at_once([*actions[seed:], *actions[:seed], releasing_fees])

        assert outcomes["done"] + outcomes["capacity_taken"] == 4
        assert outcomes["done"] >= 2
        assert set(sold_slots().values()) == {1}
        found = list(Reservation.objects.filter(status="scheduled"))
        deliver(found)
        at_once([releasing, releasing_fees, releasing, releasing])
        release()
        before_it = FUNDS_MINOR - left.changes.get().fee_minor
        assert len(slices()) == len(found)
        assert purse(left.organization) == before_it + is_shared_to_the_yen(left)

    def test_of_what_was_returned_early_while_its_own_lease_is_released(self, returned):
        at = returned.starts_at + hours(1.5)
        Node.objects.update(last_report_at=at)
        actions = [buying(quote, at=at) for quote in quoted(1, 1, 6, at=at)]

        outcomes = at_once([*actions, releasing, releasing_fees])

        assert outcomes["done"] == 3
        deliver(list(Reservation.objects.filter(status="scheduled")))
        at_once([releasing, releasing_fees, releasing, releasing])
        release()
        assert Resale.objects.count() == 3
        is_shared_to_the_yen(returned)

    def test_wait_for_each_other_at_their_release(self, left, monkeypatch):
        first, second, third = sold(1, 1, 6)
        other = before(monkeypatch, resales, "_give", freeing(second))

        assert (freeing(first)(), other.outcome()) == ("True", "True")
        assert freeing(third)() == "True"
        assert sum(each[1] for each in slices()) == 12
        assert is_shared_to_the_yen(left) == 10

    def test_are_each_released_once(self, left):
        (settled,) = sold(8)

        assert at_once([freeing(settled)] * 6) == {"True": 1, "False": 5}
        assert Entry.objects.filter(kind=EntryKind.RESALE).count() == 1
        is_shared_to_the_yen(left)


class TestAFeeThatIsWrittenOff:
    def test_while_its_time_is_released_is_shared_with_nobody(self, monkeypatch):
        """It is written off after the release has looked, and before that has locked anything."""
        factories.make_pool()
        quote = factories.make_quote(tenant=debtors.a_debtor(), gpus=8, window=window_in(48))
        reservation = debtors.buy(quote)
        leave(reservation)
        sale = debtors.sale_of(reservation)
        settled = resold.deliver(buy())

        def give_up():
            receivables.write_off(
                organization=reservation.organization,
                invoice_id=sale.invoice_id,
                amount_minor=1882,
                currency="usd",
                decision_id="apr_1",
                at=NOW,
            )

        writer = before(monkeypatch, resales, "_lock", heard(give_up))

        assert freeing(settled)() == "False"
        assert writer.outcome() == "done"
        assert freeing(settled)() == "True"
        assert (slices(), purse(reservation.organization)) == ([], 0)
        holds()


class TestTwins:
    def test_without_the_locks_more_of_a_fee_is_given_than_there_was(self, left, monkeypatch):
        first, second, third = sold(1, 1, 6)
        unlocked(monkeypatch, FeeShare, Reservation, Organization)
        monkeypatch.setattr(resales, "_lock", lambda *_, **__: None)
        other = before(monkeypatch, resales, "_give", freeing(second))

        assert (freeing(first)(), other.outcome()) == ("True", "True")
        freeing(third)()
        assert sum(each[1] for each in slices()) > 12
        assert "resales_stay_within_their_fee" in {each.split(":")[0] for each in breaches()}

    def test_without_the_lock_a_lease_is_released_twice_but_for_the_constraint(
        self, left, monkeypatch
    ):
        (settled,) = sold(8)
        unlocked(monkeypatch, Settlement, FeeShare, Reservation, Organization)
        monkeypatch.setattr(resales, "_lock", lambda *_, **__: None)
        other = before(monkeypatch, resales, "_give", freeing(settled))

        with pytest.raises(IntegrityError, match="billing_resale_entry_id_key"):
            freeing(settled)()
        assert other.outcome() == "True"
