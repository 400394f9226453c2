"""What money buys: from the wallet, on account, by card and by bank, in two parts, and out of a hold."""

import datetime as dt

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import budgets, deposits, payments, promotions, purchases
from billing.budgets import BudgetExceeded, BudgetWish
from billing.deposits import collecting
from billing.models import Payment
from billing.payments import Wishes
from billing.promised import Promise
from billing.provider_states import IntentKind, PaymentMeans, PaymentPurpose, PaymentStatus
from billing.states import BudgetMode, BudgetPeriod, EntryKind
from marketplace.core.errors import InvalidValue
from marketplace.core.windows import Window
from marketplace.states import Tier
from scheduler import reservations
from scheduler.models import Reservation
from scheduler.states import PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.properties.ledger import rows
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DAY, HOURS, LATER, WHO
from tests.properties.ledger.wallets import RECEIVED, Wallets

BALANCE_DUE_AT = factories.START - 14 * DAY
HELD_AT = factories.START - dt.timedelta(hours=4)
CAPTURED_AT = factories.START - dt.timedelta(minutes=15)
BY_PROVIDER = (PaymentMethod.CARD, PaymentMethod.BANK_TRANSFER)
MEANS = {
    PaymentMethod.CARD: PaymentMeans.CARD,
    PaymentMethod.BANK_TRANSFER: PaymentMeans.BANK_TRANSFER,
}


class Buying(Wallets):
    """The rules of what happens until something is bought."""

    @rule(who=WHO, amount=st.integers(1, 30_000), mode=st.none() | st.sampled_from(BudgetMode))
    @event()
    def set_a_budget(self, who: int, amount: int, mode: BudgetMode | None) -> None:
        """Let a tenant cap what it orders, or be told, or want no budget any more."""
        wish = mode and BudgetWish(
            project="", period=BudgetPeriod.TOTAL, mode=mode, amount_minor=amount
        )
        budgets.put(
            organization=self.tenants[who],
            wishes=[wish] if wish else [],
            only_if=None,
            at=factories.START,
            actor="key_cfo",
        )

    @rule(
        price=st.integers(0, 3000),
        gpus=st.integers(1, 4),
        fee=st.integers(0, 9000),
        who=WHO,
        is_promoted=st.booleans(),
    )
    @event(EntryKind.PURCHASE, EntryKind.PROMOTION_SPENT, refused=(BudgetExceeded,))
    def buy(self, *, price: int, gpus: int, fee: int, who: int, is_promoted: bool) -> None:
        row = self.ordered(who, price=price, gpus=gpus, fee=fee)
        if is_promoted:
            promotions.spend(
                reservation=row,
                amount_minor=purchases.price_with_tax(reservation=row),
                key=row.pk,
                at=factories.START,
            )
        purchases.post(reservation=row, at=factories.START)

    @rule(
        price=st.integers(0, 3000),
        gpus=st.integers(1, 4),
        fee=st.integers(0, 9000),
        who=WHO,
        is_far_ahead=st.booleans(),
    )
    @event(EntryKind.PURCHASE, refused=(BudgetExceeded,))
    def buy_on_account(
        self, *, price: int, gpus: int, fee: int, who: int, is_far_ahead: bool
    ) -> None:
        """Owe a price; what begins long after its invoice is due can be given up for it."""
        row = self.ordered(who, price=price, gpus=gpus, fee=fee)
        row.payment_method = PaymentMethod.INVOICE
        row.save(update_fields=["payment_method"])
        if is_far_ahead:
            rows.postpone(row, to=LATER)
            rows.place(row)
            self.set_status(row, ReservationStatus.SCHEDULED)
        factories.bought_on_account(row)

    @rule(
        price=st.integers(1, 3000),
        gpus=st.integers(1, 4),
        who=WHO,
        method=st.sampled_from(BY_PROVIDER),
        fate=st.sampled_from(("paid", "paid", "paid", "open", "lapsed", "declined")),
    )
    @event(*RECEIVED, refused=(BudgetExceeded, InvalidValue))
    def buy_through_the_provider(
        self, *, price: int, gpus: int, who: int, method: PaymentMethod, fate: str
    ) -> None:
        """Ask for a price; it is paid in time, or later, or its reservation lapses before, or it is not."""
        self.require_budget(who, price=price, gpus=gpus)
        row = rows.waiting(
            buyer=self.tenants[who],
            price=price,
            gpus=gpus,
            hours=HOURS,
            method=method,
            until=factories.START + rows.PAYMENT_WINDOW,
        )
        payment = self.ask(row, means=MEANS[method], at=factories.START)
        if fate == "paid":
            self.hear(payment, state="succeeded")
        elif fate == "declined":
            self.hear(payment, state="canceled")
        elif fate == "lapsed":
            reservations.expire_unpaid(at=factories.START + rows.PAYMENT_WINDOW)

    @rule(
        price=st.integers(50, 3000),
        gpus=st.integers(1, 4),
        who=WHO,
        fate=st.sampled_from(("taken", "taken", "left", "taken too late")),
    )
    @event(*RECEIVED, refused=(InvalidValue,))
    def hold_on_a_card(self, *, price: int, gpus: int, who: int, fate: str) -> None:
        """Hold a price on a card; it is taken before the start, or released, or taken all the same."""
        row = rows.waiting(
            buyer=self.tenants[who],
            price=price,
            gpus=gpus,
            hours=HOURS,
            method=PaymentMethod.CARD,
            until=factories.START,
            tier=Tier.RECLAIMABLE,
        )
        payment = self.ask(row, means=PaymentMeans.CARD, at=HELD_AT)
        assert payment.is_held
        payment = self.hear(payment, state="requires_capture", at=HELD_AT)
        row.refresh_from_db()
        assert (payment.status, row.is_payment_held) == (PaymentStatus.AUTHORIZED, True)
        assert purchases.price_with_tax(reservation=row) <= payment.amount_minor
        if fate != "left":
            payments.capture_due(at=CAPTURED_AT)
        if fate != "taken":
            payments.end_untaken(at=factories.START)
        taken = self.call(IntentKind.CAPTURE, payment.pk, at=CAPTURED_AT)
        released = self.call(IntentKind.CANCEL, payment.pk, at=factories.START)
        made = self.payment_made(payment, state="succeeded" if taken else "canceled")
        call = taken or released
        if call is not None:
            self.answer(call, made, at=factories.START)
            payment.refresh_from_db()
        if payment.status == PaymentStatus.SUCCEEDED:
            self.will_book("charge", payment.charge_id, payment.received_minor, fee=3)

    @rule(
        price=st.integers(200, 3000), gpus=st.integers(1, 4), share=st.integers(1, 9_999), who=WHO
    )
    @event(*RECEIVED, refused=(InvalidValue,))
    def buy_in_two_parts(self, *, price: int, gpus: int, share: int, who: int) -> None:
        """Pay a deposit by card; the balance stays open, and nothing begins before it is paid."""
        net = max(1, price * share // 10_000)
        row = rows.waiting(
            buyer=self.tenants[who],
            price=price,
            gpus=gpus,
            hours=HOURS,
            method=PaymentMethod.CARD,
            until=BALANCE_DUE_AT - DAY,
            unpaid=price - net,
        )
        rows.place(row)
        gross = purchases.due_now_with_tax(reservation=row)
        parts = deposits.Parts(
            net_minor=net,
            gross_minor=gross,
            balance_net_minor=price - net,
            balance_gross_minor=purchases.price_with_tax(reservation=row) - gross,
            balance_due_at=BALANCE_DUE_AT,
        )
        asked_at = BALANCE_DUE_AT - 10 * DAY
        deposits.make(reservation=row, parts=parts, at=asked_at)
        self.hear(
            self.ask(row, means=PaymentMeans.CARD, at=asked_at), state="succeeded", at=asked_at
        )

    @precondition(lambda self: self.in_parts())
    @rule(data=st.data(), is_paid=st.booleans())
    @event(*RECEIVED, EntryKind.FEE_SHARE)
    def collect_a_balance(self, data: st.DataObject, *, is_paid: bool) -> None:
        """Charge the saved card; who does not pay in its time loses the deposit."""
        row = self.pick(data, self.in_parts())
        for at in (BALANCE_DUE_AT - 3 * DAY, BALANCE_DUE_AT):
            collecting.advance_due(at=at)
        asked = row.provider_payments.filter(
            purpose=PaymentPurpose.BALANCE, status__in=payments.OPEN_STATUSES
        )
        for payment in asked:
            self.hear(
                payment, state="succeeded" if is_paid else "canceled", at=BALANCE_DUE_AT + DAY
            )
        collecting.advance_due(at=BALANCE_DUE_AT + 3 * DAY)

    def ordered(self, who: int, *, price: int, gpus: int, fee: int) -> Reservation:
        """Return what a tenant orders within its budget; it is to be bought in the same event."""
        self.require_budget(who, price=price, gpus=gpus)
        return factories.reservation(
            buyer=self.tenants[who],
            gpus=gpus,
            hours=HOURS,
            total_minor=price,
            fee_basis_points=fee,
            currency=settings.CURRENCY,
            paid=False,
        )

    def require_budget(self, who: int, *, price: int, gpus: int) -> None:
        """Ask as whoever accepts an order does, before it stands."""
        window = Window(factories.START, factories.START + dt.timedelta(hours=HOURS))
        lots = factories.lots(window=window, gpus=gpus, rate=factories.RATE, fee_basis_points=0)
        budgets.require(
            organization=self.tenants[who],
            project="",
            promise=Promise(total_minor=price, lots=lots.as_json(), window=window),
            at=factories.START,
        )

    def ask(self, row: Reservation, *, means: PaymentMeans, at: dt.datetime) -> Payment:
        return payments.open_for_reservation(reservation=row, wishes=Wishes(means=means), at=at)
