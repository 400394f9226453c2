"""What a wallet keeps for an order that takes a second person of the tenant, until that one has decided."""

import datetime as dt

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import (
    approval_limits,
    promotions,
    purchase_requests,
    purchases,
    wallet_holds,
)
from billing.models import WalletHold
from billing.purchase_requests import ApprovalRequired
from billing.states import EntryKind
from scheduler.models import Quote, Reservation
from scheduler.states import PaymentMethod, QuoteStatus, ReservationStatus
from tests.billing import factories
from tests.properties.ledger import rows
from tests.properties.ledger.buying import Buying
from tests.properties.ledger.events import event
from tests.properties.ledger.model import HOURS, WHO

QUOTED_FOR = dt.timedelta(minutes=10)


class Holding(Buying):
    """The rules of orders that wait for a second person."""

    @rule(price=st.integers(1, 3000), who=WHO)
    @event(EntryKind.HOLD)
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
            status=QuoteStatus.OPEN, expires_at=factories.START + QUOTED_FOR, used_at=None
        )
        approval_limits.set_limit(
            organization=tenant, amount_minor=0, at=factories.START, actor="key_cfo"
        )
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

    @precondition(lambda self: self.held())
    @rule(data=st.data(), fate=st.sampled_from(("bought", "refused", "lapsed")))
    @event(EntryKind.PURCHASE, EntryKind.VOID, EntryKind.PROMOTION_SPENT)
    def resolve(self, data: st.DataObject, fate: str) -> None:
        """Buy with what is held once the second person agrees; else it goes back."""
        held = self.pick(data, self.held())
        request = held.purchase_request
        row = Reservation.objects.get(quote=request.quote_id)
        if fate == "lapsed":
            wallet_holds.void_due(at=factories.START + QUOTED_FOR)
            return
        decide = purchase_requests.approve if fate == "bought" else purchase_requests.refuse
        decide(
            organization=request.organization,
            request_id=request.pk,
            at=factories.START,
            actor="key_2",
        )
        if fate == "bought":
            self.buy_with(row)

    def buy_with(self, row: Reservation) -> None:
        """Accept an order as checkout does, with what is held for it."""
        held = wallet_holds.open_of(quote_id=row.quote_id)
        promoted = promotions.spend(
            reservation=row,
            amount_minor=purchases.price_with_tax(reservation=row),
            key=row.pk,
            at=factories.START,
        )
        purchases.post(reservation=row, at=factories.START, held=held, promoted_minor=promoted)
        Quote.objects.filter(pk=row.quote_id).update(
            status=QuoteStatus.USED, used_at=factories.START
        )
        self.set_status(row, ReservationStatus.ACTIVE)

    def held(self) -> list[WalletHold]:
        """Return what wallets keep for orders."""
        waiting = WalletHold.objects.open().select_related("purchase_request__organization")
        return self.read(waiting)

    def release_holds(self) -> None:
        wallet_holds.void_due(at=factories.START + QUOTED_FOR)
