"""What a wallet keeps for an order that takes a second person of the tenant, until that one has decided."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import (
    approval_limits,
    changes,
    payments,
    promotions,
    purchase_requests,
    purchases,
    wallet_holds,
)
from billing.models import WalletHold
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from billing.purchase_requests import ApprovalRequired
from billing.states import EntryKind, PurchaseKind
from marketplace.models import Organization
from scheduler import extension_holds, extensions
from scheduler.calendar import CapacityTaken
from scheduler.extension_reach import ExtensionRefused
from scheduler.models import ChangeQuote, Quote, Reservation
from scheduler.quotas import LimitExceeded
from scheduler.states import PaymentMethod, QuoteStatus, ReservationStatus
from tests.billing import factories
from tests.properties.ledger import rows
from tests.properties.ledger.buying import Buying
from tests.properties.ledger.events import event
from tests.properties.ledger.model import HOURS, WHO, Absent
from tests.properties.ledger.wallets import RECEIVED, SQUARED

# What may come in the way of an extension after it was agreed to: the order fails, and its hold lapses.
NOT_EXTENDED = (LimitExceeded, CapacityTaken, ExtensionRefused)
FATES_OF_HOLDS = ("bought", "refused", "lapsed", "paid otherwise")


class Holding(Buying):
    """The rules of orders that wait for a second person."""

    @rule(price=st.integers(1, 3000), who=WHO)
    @event(EntryKind.HOLD, *SQUARED)
    def hold(self, price: int, who: int) -> None:
        """Ask for an order that one person may not make alone; its price is kept meanwhile."""
        tenant = self.tenants[who]
        row = rows.waiting(
            buyer=tenant,
            price=price,
            gpus=2,
            hours=HOURS,
            method=PaymentMethod.WALLET,
            until=factories.START,
        )
        Quote.objects.filter(pk=row.quote_id).update(
            status=QuoteStatus.OPEN, expires_at=factories.START + rows.QUOTED_FOR, used_at=None
        )
        self.let_nobody_order_alone(tenant)
        try:
            purchase_requests.ask_for_quote(
                organization=tenant,
                quote_id=row.quote_id,
                project="",
                payment_method=PaymentMethod.WALLET,
                at=factories.START,
                actor="key_1",
            )
        except ApprovalRequired:
            return
        raise AssertionError("one person may order for nothing alone")

    @precondition(lambda self: self.bought())
    @rule(data=st.data(), price=st.integers(50, 2000))
    @event(EntryKind.HOLD, *SQUARED)
    def hold_an_hour(self, data: st.DataObject, price: int) -> None:
        """Ask for an hour more, which one person may not order alone; its price is kept meanwhile."""
        row = self.pick(data, self.bought())
        quote = rows.asked_hour(of=row, price=price)
        self.let_nobody_order_alone(row.organization)
        try:
            purchase_requests.ask_for_change(
                organization=row.organization,
                reservation_id=row.pk,
                quote_id=quote.pk,
                payment_method=PaymentMethod.WALLET,
                at=factories.START,
                actor="key_1",
            )
        except ApprovalRequired:
            return
        raise AssertionError("one person may order an hour alone")

    @precondition(lambda self: self.held())
    @rule(data=st.data(), fate=st.sampled_from(FATES_OF_HOLDS))
    @event(EntryKind.VOID, *RECEIVED, *SQUARED, refused=NOT_EXTENDED)
    def resolve(self, data: st.DataObject, fate: str) -> None:
        """Buy with what is held once the second person agrees; else it goes back, and so if others pay."""
        held = self.pick(data, self.held())
        request = held.purchase_request
        if fate == "lapsed":
            wallet_holds.void_due(at=factories.START + rows.QUOTED_FOR)
            return
        decide = purchase_requests.refuse if fate == "refused" else purchase_requests.approve
        decide(
            organization=request.organization,
            request_id=request.pk,
            at=factories.START,
            actor="key_2",
        )
        if fate == "refused":
            return
        order = self.buy_with if request.kind == PurchaseKind.RESERVATION else self.extend_with
        order(request.quote_id, is_paid_by_hold=fate == "bought")

    def buy_with(self, quote_id: str, *, is_paid_by_hold: bool) -> None:
        """Accept an order as checkout does, with what is held for it, or on account."""
        row = Reservation.objects.select_related("organization", "quote").get(quote=quote_id)
        held = wallet_holds.open_of(quote_id=quote_id)
        if is_paid_by_hold:
            promoted = promotions.spend(
                reservation=row,
                amount_minor=purchases.price_with_tax(reservation=row),
                key=row.pk,
                at=factories.START,
            )
            purchases.post(reservation=row, at=factories.START, held=held, promoted_minor=promoted)
        else:
            assert held is not None, quote_id
            wallet_holds.void(held, at=factories.START)
            row.payment_method = PaymentMethod.INVOICE
            row.save(update_fields=["payment_method"])
            factories.bought_on_account(row)
        Quote.objects.filter(pk=quote_id).update(status=QuoteStatus.USED, used_at=factories.START)
        self.set_status(row, ReservationStatus.ACTIVE)

    def extend_with(self, quote_id: str, *, is_paid_by_hold: bool) -> None:
        """Extend by an hour with what is held for it, or by card.

        :raises Absent: when the reservation has begun, was left, or is another one by now.
        """
        used = ChangeQuote.objects.select_related("reservation__organization").get(pk=quote_id)
        row = used.reservation
        is_same = (row.starts_at, row.ends_at) == (used.from_starts_at, used.from_ends_at)
        if row not in self.bought() or not is_same or extension_holds.open_of(reservation=row):
            raise Absent
        kept, held = rows.kept(used, at=factories.START), wallet_holds.open_of(quote_id=quote_id)
        if is_paid_by_hold:
            changes.post(
                change=extensions.make_held(hold_id=kept.pk, at=factories.START), held=held
            )
            return
        assert held is not None, quote_id
        wallet_holds.void(held, at=factories.START)
        payment = payments.open_for_added_hours(
            held=kept, wishes=Wishes(means=PaymentMeans.CARD), at=factories.START
        )
        self.hear(payment, state="succeeded")

    def let_nobody_order_alone(self, tenant: Organization) -> None:
        approval_limits.set_limit(
            organization=tenant, amount_minor=0, at=factories.START, actor="key_cfo"
        )

    def held(self) -> list[WalletHold]:
        """Return what wallets keep for orders."""
        waiting = WalletHold.objects.open().select_related("purchase_request__organization")
        return self.read(waiting)

    def release_holds(self) -> None:
        wallet_holds.void_due(at=factories.START + rows.QUOTED_FOR)
