"""What tenants, their banks and owners do at the provider: each story on its own, in three acts.

A story is a generator that yields between its acts: a day before, of which the market knows all; ninety
minutes later, when what was not paid is released; and the next day, of which it knows what its calls were
answered and nothing else. No story depends on when its news arrive: each has a tenant of its own, a wallet
that covers what is taken from it, and GPUs that nobody else wants.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

from billing import (
    added_hours,
    card_refunds,
    changes,
    checkout,
    invoice_payments,
    onboarding,
    payments,
    payouts,
    provider,
    refunds,
    reservation_refunds,
    settlements,
    transfers,
)
from billing.deposits import collecting
from billing.models import CardRefund, Payment, Payout, PayoutAccount, Transfer
from marketplace.models import Organization
from marketplace.states import Tier
from scheduler import cancellations, extensions, reservations
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing import debtors
from tests.billing import factories as books_factories
from tests.billing.histories.market import BANK, CARD, PAYS, SAVED, SAVING, Market, owner_of
from tests.scheduler import factories

Acts = Iterator[None]
Story = Callable[[Market, str], Acts]

DECLINED = "pm_card_visa_chargeDeclined"
ASKS = "pm_card_threeDSecure2Required"
DISPUTES = "pm_card_createDispute"
REFUND_WAITS = "pm_card_pendingRefund"
# A quarter of an hour before the start of what was held for it: then it is taken.
NEXT_DAY = dt.timedelta(hours=24, minutes=46)
HELD_STARTS_IN = 25  # hours ahead
A_FORTNIGHT = 14 * 24


def play(market: Market, *, stories: Sequence[Story]) -> None:
    """Let stories happen side by side, act by act; one may happen several times, to different people."""
    running = [story(market, f"{story.__name__} {number}") for number, story in enumerate(stories)]
    _act(market, running)
    market.passes(minutes=90)
    reservations.expire_unpaid(at=market.at)
    _act(market, running)
    _release(market)
    market.passes(seconds=(factories.NOW + NEXT_DAY - market.at).total_seconds())
    reservations.expire_unpaid(at=market.at)
    _release(market)
    for story in running:
        assert next(story, "over") == "over"
        market.hears()


def _act(market: Market, running: list[Acts]) -> None:
    for story in running:
        next(story)
        market.hears()


def _release(market: Market) -> None:
    """Give up what nobody paid; who has paid in this very moment is told so by the refusal."""
    payments.give_up_due(at=market.at)
    provider.drive_due(at=market.at)
    market.hears()


# --- money for the wallet ------------------------------------------------------------------------


def a_top_up(*methods: str) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        market.pays(market.top_up(tenant), *methods)

    story.__name__ = f"top-up {' then '.join(methods)}"
    return story


def asked_by_the_bank(*, passed: bool) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        payment = market.top_up(tenant)
        market.pays(payment, ASKS)
        market.answers_bank(payment, passed=passed)

    story.__name__ = f"top-up 3-D Secure {passed}"
    return story


def cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.cancels_there(market.top_up(tenant))


def declined_and_cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    payment = market.top_up(tenant)
    market.pays(payment, DECLINED)
    market.cancels_there(payment)


def saved_card_whose_answer_is_lost(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    first = market.top_up(tenant, wishes=SAVING)
    market.pays(first, PAYS)
    market.learns(first)
    yield
    yield
    market.top_up(tenant, 7000, SAVED, lost=True)


def saved_card_that_is_declined(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    first = market.top_up(tenant, wishes=SAVING)
    market.pays(first, PAYS)
    market.learns(first)
    card = market.stand_in.world.get(
        type(tenant).objects.get(pk=tenant.pk).payer.saved_card_id, "payment_method"
    )
    yield
    yield
    card = market.stand_in.world.get(card["id"], "payment_method")
    card["_behaves"] = "insufficient_funds"
    market.top_up(tenant, 7000, SAVED, lost=True)


def card_saved_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    market.pays(market.top_up(tenant, wishes=SAVING), PAYS)
    market.client().v1.setup_intents.create(
        {
            "customer": tenant.payer.customer_id,
            "payment_method": "pm_card_visa",
            "confirm": True,
        }
    )


def sent_by_bank(*parts: int) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        market.top_up(tenant, 10_000, BANK)
        for part in parts:
            market.sends_by_bank(tenant, part)

    story.__name__ = f"bank {parts}"
    return story


def disputed_top_up(*, won: bool | None) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        payment = market.top_up(tenant)
        market.pays(payment, PAYS)
        market.learns(payment)
        yield
        yield
        market.disputes(payment, won=won)

    story.__name__ = f"disputed top-up {won}"
    return story


def top_up_disputed_unheard(*, won: bool | None) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        payment = market.top_up(tenant)
        market.pays(payment, DISPUTES)
        market.decides(_dispute_of(market, payment), won=won)

    story.__name__ = f"top-up disputed unheard {won}"
    return story


# --- money that goes back ------------------------------------------------------------------------


def a_card_refund(ending: str) -> Story:
    """Return a part of a top-up: `settles`, `fails` while it waits, `comes back` later, or is `lost`."""

    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        payment = market.top_up(tenant)
        market.pays(payment, REFUND_WAITS if ending in {"settles", "fails"} else PAYS)
        market.learns(payment)
        if ending in {"settles", "comes back"}:
            _give_back(market, payment)
        yield
        if ending == "fails":  # young enough to wait still, the next day
            _give_back(market, payment)
        yield
        if ending == "lost":
            market.stand_in.fail("timeout_after", "POST /v1/refunds")
            _give_back(market, payment)
        if ending in {"fails", "comes back"}:
            market.refund_fails(payment)

    story.__name__ = f"card refund {ending}"
    return story


def a_refund_of_a_reservation(ending: str) -> Story:
    """Cancel a reservation that was paid by card; what it owes ends as a card refund may."""

    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        reservation, payment = market.bought(
            tenant, REFUND_WAITS if ending in {"settles", "fails"} else PAYS
        )
        if ending in {"settles", "comes back"}:
            _cancel(market, reservation)
        yield
        if ending == "fails":
            _cancel(market, reservation)
        yield
        if ending == "lost":
            market.stand_in.fail("timeout_after", "POST /v1/refunds")
            _cancel(market, reservation)
        if ending in {"fails", "comes back"}:
            market.refund_fails(payment)

    story.__name__ = f"refund of a reservation {ending}"
    return story


# --- reservations --------------------------------------------------------------------------------


def a_reservation(*methods: str) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        _, payment = market.reserve(tenant)
        market.pays(payment, *methods)

    story.__name__ = f"reservation {' then '.join(methods)}"
    return story


def reservation_asked_by_the_bank(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.pays(payment, ASKS)
    market.answers_bank(payment, passed=True)


def reservation_cancelled_there(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant)
    market.cancels_there(payment)


def abandoned(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant)
    market.pays(payment, ASKS)
    yield
    yield


def paid_late(*, starts_in: int) -> Story:
    """Pay what was released: it is booked again, or its window has begun and the money goes back."""

    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        _, payment = market.reserve(tenant, starts_in=starts_in)
        yield
        market.pays(payment, PAYS)
        yield

    story.__name__ = f"paid late for {starts_in}"
    return story


def held_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant, starts_in=48, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)


def held_and_lapsed(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=48, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    market.cancels_there(payment)


def held_and_taken_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, starts_in=HELD_STARTS_IN, tier=Tier.RECLAIMABLE)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    market.stand_in.fail("timeout_after", f"POST /v1/payment_intents/{payment.provider_id}/capture")
    payments.capture_due(at=market.at)
    provider.drive_subject(subject_id=payment.pk, at=market.at)


def reservation_by_bank(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = market.reserve(tenant, BANK)
    market.sends_by_bank(tenant, payment.amount_minor)


def reservation_by_bank_too_late(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    _, payment = market.reserve(tenant, BANK)
    yield
    yield
    market.sends_by_bank(tenant, payment.amount_minor)


def disputed_reservation(*, won: bool | None) -> Story:
    def story(market: Market, name: str) -> Acts:
        _, payment = market.bought(market.tenant(name))
        yield
        yield
        market.disputes(payment, won=won)

    story.__name__ = f"disputed reservation {won}"
    return story


def reservation_disputed_unheard(*, won: bool | None) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        yield
        yield
        _, payment = market.reserve(tenant)
        market.pays(payment, DISPUTES)
        market.decides(_dispute_of(market, payment), won=won)

    story.__name__ = f"reservation disputed unheard {won}"
    return story


def late_payment_disputed_unheard(*, won: bool | None) -> Story:
    """Pay for what has begun, and dispute it: it bought nothing, so its dispute is the wallet's.

    None of these is won: whether its money could go back to the card would be a matter of the moment.
    """

    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        _, payment = market.reserve(tenant, starts_in=1)
        yield
        market.pays(payment, DISPUTES)
        market.decides(_dispute_of(market, payment), won=won)
        yield

    story.__name__ = f"late payment disputed unheard {won}"
    return story


def hours_added(*, lost: bool) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        reservation, payment = market.reserve(tenant, SAVING)
        market.pays(payment, PAYS)
        market.learns(payment)
        yield
        yield
        reservation.refresh_from_db()
        quote = extensions.quote(
            organization=tenant,
            reservation_id=reservation.pk,
            ends_at=reservation.ends_at + factories.hours(2),
            max_rate=None,
            at=market.at,
        )
        held = added_hours.extend(
            organization=tenant,
            reservation_id=reservation.pk,
            quote_id=quote.pk,
            with_saved_card=lost,
            saves_card=False,
            at=market.at,
            actor="test",
        )
        more = market.asks(Payment.objects.get(extension=held.pk), lost=lost)
        if not lost:
            market.pays(more, DECLINED, PAYS)

    story.__name__ = f"hours added, answer lost {lost}"
    return story


def deposit_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = _in_two_parts(market, tenant)
    market.pays(payment, PAYS)


def balance(*methods: str) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.tenant(name)
        reservation, payment = _in_two_parts(market, tenant)
        market.pays(payment, PAYS)
        market.learns(payment)
        yield
        yield
        rest = collecting.pay_early(
            organization=tenant, reservation_id=reservation.pk, wishes=CARD, at=market.at
        )
        market.pays(market.asks(rest), *methods)

    story.__name__ = f"balance {' then '.join(methods)}"
    return story


def invoice_paid(*, by_bank: bool) -> Story:
    def story(market: Market, name: str) -> Acts:
        tenant = market.named(debtors.a_debtor(), name)
        quote = factories.make_quote(
            tenant=tenant, window=factories.window_in(A_FORTNIGHT), at=market.at
        )
        sale = debtors.sale_of(debtors.buy(quote, at=market.at))
        yield
        yield
        payment = market.asks(
            invoice_payments.through_provider(
                sale=sale, amount_minor=None, wishes=BANK if by_bank else CARD, at=market.at
            )
        )
        if by_bank:
            market.sends_by_bank(tenant, payment.amount_minor + 777)
        else:
            market.pays(payment, DECLINED, PAYS)

    story.__name__ = f"invoice paid by bank {by_bank}"
    return story


# --- owners --------------------------------------------------------------------------------------


def account_that_may_receive_unheard(market: Market, name: str) -> Acts:
    account = _onboards(market, owner_of(name))
    yield
    yield
    _earns(market, account.owner)
    market.stand_in.control("/_control/capability", {"id": account.provider_id})


def account_that_is_disabled(market: Market, name: str) -> Acts:
    account = _receives(market, owner_of(name))
    yield
    yield
    market.stand_in.control(
        "/_control/capability", {"id": account.provider_id, "status": "restricted"}
    )


def account_that_flips(market: Market, name: str) -> Acts:
    account = _receives(market, owner_of(name))
    yield
    yield
    for status in ("restricted", "active"):
        market.stand_in.control(
            "/_control/capability", {"id": account.provider_id, "status": status}
        )
        market.hears()


def account_whose_answer_is_lost(market: Market, name: str) -> Acts:
    owner = owner_of(name)
    yield
    yield
    market.stand_in.fail("timeout_after", "POST /v2/core/accounts")
    _onboards(market, owner)


def transfer_whose_answer_is_lost(market: Market, name: str) -> Acts:
    account = _receives(market, owner_of(name))
    yield
    yield
    market.stand_in.fail("timeout_after", "POST /v1/transfers")
    _sends(market, _earns(market, account.owner))


def transfer_that_is_taken_back(market: Market, name: str) -> Acts:
    account = _receives(market, owner_of(name))
    _sends(market, _earns(market, account.owner))
    yield
    yield
    market.stand_in.fail("timeout_after", "POST /v1/transfers/")
    (reversal,) = transfers.take_back(
        owner=account.owner, currency="usd", amount_minor=150, at=market.at
    )
    provider.drive_subject(subject_id=reversal.pk, at=market.at)


def payout_to_a_bank_that_fails(market: Market, name: str) -> Acts:
    """An owner's own bank sends back what the provider paid out: the owner's money there, not ours."""
    account = _receives(market, owner_of(name))
    _sends(market, _earns(market, account.owner))
    made = market.client().v1.payouts.create(
        {"amount": 400, "currency": "usd"}, {"stripe_account": account.provider_id}
    )
    yield
    yield
    market.stand_in.control("/_control/fail-payout", {"id": made.id})


# --- what the stories are made of ----------------------------------------------------------------


def _dispute_of(market: Market, payment: Payment) -> str:
    (made,) = (
        row
        for row in market.stand_in.world.all("dispute")
        if row["payment_intent"] == payment.provider_id
    )
    return str(made["id"])


def _give_back(market: Market, payment: Payment) -> CardRefund:
    refund = card_refunds.write(payment=payment, amount_minor=500, reason="asked", at=market.at)
    provider.drive_subject(subject_id=refund.pk, at=market.at)
    market.hears()
    return refund


def _cancel(market: Market, reservation: Reservation) -> None:
    """Cancel what was paid, and ask the provider to give back what that owes."""
    quote = cancellations.quote(
        organization=reservation.organization, reservation_id=reservation.pk, at=market.at
    )
    changes.cancel(
        organization=reservation.organization,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        at=market.at,
        actor="test",
    )
    (refund,) = refunds.open_for(reservation_id=reservation.pk, at=market.at)
    reservation_refunds.ask(refund_id=refund.pk, at=market.at)
    provider.drive_subject(subject_id=refund.pk, at=market.at)
    market.hears()


def _in_two_parts(market: Market, tenant: Organization) -> tuple[Reservation, Payment]:
    quote = factories.make_quote(
        tenant=tenant, gpus=8, window=factories.window_in(40 * 24, length=24), at=market.at
    )
    reservation = checkout.purchase(
        organization=tenant,
        quote_id=quote.pk,
        payment_method="card",
        details=ReservationDetails(),
        at=market.at,
        actor="test",
        in_two_parts=True,
    )
    return reservation, market.asks(Payment.objects.get(reservation=reservation))


def _onboards(market: Market, owner: Organization) -> PayoutAccount:
    account = onboarding.ask(
        owner=owner, email="owner@example.com", country="DE", at=market.at, actor="key_1"
    )
    provider.drive_subject(subject_id=account.pk, at=market.at)
    account.refresh_from_db()
    market.hears()
    return account


def _receives(market: Market, owner: Organization) -> PayoutAccount:
    account = _onboards(market, owner)
    market.stand_in.control("/_control/capability", {"id": account.provider_id})
    onboarding.read(account=account, at=market.at)
    account.refresh_from_db()
    return account


def _earns(market: Market, owner: Organization) -> Payout:
    buyer = books_factories.tenant(name=f"buyer of {owner.name}", funds_minor=471)
    lease = books_factories.lease(
        of=books_factories.reservation(buyer=buyer), on=factories.make_node(owner=owner)
    )
    settled = settlements.settle(lease_id=lease.pk, at=market.at)
    assert settled is not None
    payouts.release_due(at=settled.release_due_at)
    return Payout.objects.get(owner=owner)


def _sends(market: Market, payout: Payout) -> None:
    assert transfers.send(payout_id=payout.pk, at=market.at)
    transfer = Transfer.objects.get(payout=payout)
    provider.drive_subject(subject_id=transfer.pk, at=market.at)
    market.hears()


# One of each kind of thing: what the suite plays every time.
A_CUT: tuple[Story, ...] = (
    a_top_up(DECLINED, PAYS),
    saved_card_whose_answer_is_lost,
    sent_by_bank(4_000, 4_000, 4_000),
    top_up_disputed_unheard(won=False),
    a_card_refund("settles"),
    a_refund_of_a_reservation("comes back"),
    a_reservation(PAYS),
    paid_late(starts_in=1),
    held_and_taken_unheard,
    disputed_reservation(won=True),
    late_payment_disputed_unheard(won=False),
    hours_added(lost=False),
    balance(PAYS),
    invoice_paid(by_bank=True),
    account_that_flips,
    transfer_that_is_taken_back,
)
STORIES: tuple[Story, ...] = (
    *A_CUT,
    a_top_up(PAYS),
    a_top_up(DECLINED),
    asked_by_the_bank(passed=True),
    asked_by_the_bank(passed=False),
    cancelled_there,
    declined_and_cancelled_there,
    saved_card_that_is_declined,
    card_saved_unheard,
    sent_by_bank(10_000),
    sent_by_bank(4_000),
    *(disputed_top_up(won=won) for won in (None, True, False)),
    *(top_up_disputed_unheard(won=won) for won in (None, True)),
    *(a_card_refund(ending) for ending in ("fails", "comes back", "lost")),
    *(a_refund_of_a_reservation(ending) for ending in ("settles", "fails", "lost")),
    a_reservation(DECLINED),
    a_reservation(DECLINED, PAYS),
    reservation_asked_by_the_bank,
    reservation_cancelled_there,
    abandoned,
    paid_late(starts_in=30 * 24),
    held_unheard,
    held_and_lapsed,
    reservation_by_bank,
    reservation_by_bank_too_late,
    *(disputed_reservation(won=won) for won in (None, False)),
    *(reservation_disputed_unheard(won=won) for won in (None, True, False)),
    late_payment_disputed_unheard(won=None),
    hours_added(lost=True),
    deposit_unheard,
    balance(DECLINED),
    invoice_paid(by_bank=False),
    account_that_may_receive_unheard,
    account_that_is_disabled,
    account_whose_answer_is_lost,
    transfer_whose_answer_is_lost,
    payout_to_a_bank_that_fails,
)
