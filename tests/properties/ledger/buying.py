"""Money that comes in, what it buys, what becomes of that before it begins, and invoices."""

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import (
    approvals,
    changes,
    deposits,
    promotions,
    provider_money,
    purchases,
    receivables,
    tax,
    wallet,
    wallet_holds,
)
from billing.models import Payment, PurchaseRequest
from billing.states import ApprovalKind, PurchaseKind
from scheduler import change_rules
from scheduler.models import Reservation
from scheduler.states import ChangeKind, PaymentMethod, ReservationStatus
from tests.billing import factories
from tests.properties.ledger.model import FAR, FARTHER, HOURS, TAXES, Model

WHO = st.integers(0, len(TAXES) - 1)


class Buying(Model):
    """The rules of what happens before a reservation begins."""

    @rule(amount=st.integers(1, 20_000), who=WHO)
    def deposit(self, amount: int, who: int) -> None:
        key = self.next_id("deposit")
        for _ in range(2):
            wallet.record_deposit(
                organization=self.tenants[who],
                amount=self.money(amount),
                idempotency_key=key,
                at=factories.START,
                actor="test",
            )

    @rule(amount=st.integers(1, 20_000), who=WHO)
    def top_up(self, amount: int, who: int) -> None:
        payment = self.next_id("pi")
        for _ in range(2):
            factories.topped_up(
                buyer=self.tenants[who],
                object_id=payment,
                minor=amount,
                currency=settings.CURRENCY,
            )
        self.clearing[payment] = amount

    @rule(amount=st.integers(1, 5_000), who=WHO)
    def grant(self, amount: int, who: int) -> None:
        factories.promotion(buyer=self.tenants[who], minor=amount)

    @rule(
        price=st.integers(0, 3000),
        gpus=st.integers(1, 4),
        fee=st.integers(0, 9000),
        method=st.sampled_from(PaymentMethod),
        who=WHO,
        is_promoted=st.booleans(),
    )
    def buy(
        self,
        *,
        price: int,
        gpus: int,
        fee: int,
        method: PaymentMethod,
        who: int,
        is_promoted: bool,
    ) -> None:
        tenant = self.tenants[who]

        def purchase() -> Reservation:
            row = factories.reservation(
                buyer=tenant,
                gpus=gpus,
                hours=HOURS,
                total_minor=price,
                fee_basis_points=fee,
                currency=settings.CURRENCY,
                paid=False,
            )
            row.payment_method = method
            row.save(update_fields=["payment_method"])
            asked = purchases.price_with_tax(reservation=row)
            if method == PaymentMethod.CARD:
                payment = self.next_id("pi")
                factories.paid_by_card(row, object_id=payment)
                self.clearing[payment] = asked
            elif method == PaymentMethod.INVOICE:
                invoice = factories.bought_on_account(row)
                self.invoices[invoice] = tenant
                self.on_account[row.pk] = invoice
            else:
                if is_promoted and method == PaymentMethod.WALLET:
                    promotions.spend(
                        reservation=row, amount_minor=asked, key=row.pk, at=factories.START
                    )
                purchases.post(reservation=row, at=factories.START)
            return row

        row = self.attempt(purchase)
        if row is not None:
            self.bought.append(row)

    @rule(price=st.integers(1, 3000), who=WHO)
    def hold(self, price: int, who: int) -> None:
        def take() -> Reservation:
            row = factories.reservation(
                buyer=self.tenants[who],
                hours=HOURS,
                total_minor=price,
                currency=settings.CURRENCY,
                status=ReservationStatus.PAYMENT_PENDING,
                paid=False,
            )
            Reservation.objects.filter(pk=row.pk).update(payment_due_at=FARTHER)
            asked = PurchaseRequest.objects.create(
                organization=row.organization,
                kind=PurchaseKind.RESERVATION,
                quote_id=row.quote_id,
                amount_minor=price,
                currency=settings.CURRENCY,
                requested_by="anna",
                requested_at=factories.START,
                expires_at=FARTHER,
            )
            gross = purchases.price_with_tax(reservation=row)
            wallet_holds.hold(request=asked, price=self.money(gross), at=factories.START)
            return row

        row = self.attempt(take)
        if row is not None:
            self.held.append(row)

    @precondition(lambda self: self.held)
    @rule(is_captured=st.booleans())
    def resolve(self, *, is_captured: bool) -> None:
        row = self.held.pop()
        kept = wallet_holds.open_of(quote_id=row.quote_id)
        if is_captured:
            purchases.post(reservation=row, at=factories.START, held=kept)
            self.bought.append(row)
        elif kept is not None:
            wallet_holds.void(kept, at=factories.START)
        self.set_status(row, ReservationStatus.ACTIVE if is_captured else ReservationStatus.EXPIRED)

    @rule(
        price=st.integers(2, 3000),
        gpus=st.integers(1, 4),
        share=st.integers(1, 9_999),
        who=WHO,
    )
    def buy_in_two_parts(self, *, price: int, gpus: int, share: int, who: int) -> None:
        """Pay a deposit by card; the balance stays open, and nothing begins before it is paid."""
        row = factories.reservation(
            buyer=self.tenants[who],
            gpus=gpus,
            hours=HOURS,
            total_minor=price,
            currency=settings.CURRENCY,
            status=ReservationStatus.SCHEDULED,
            paid=False,
        )
        net = max(1, price * share // 10_000)
        row.payment_method, row.unpaid_minor = PaymentMethod.CARD, price - net
        row.save(update_fields=["payment_method", "unpaid_minor"])
        gross = purchases.due_now_with_tax(reservation=row)
        parts = deposits.Parts(
            net_minor=net,
            gross_minor=gross,
            balance_net_minor=price - net,
            balance_gross_minor=purchases.price_with_tax(reservation=row) - gross,
            balance_due_at=factories.START,
        )
        deposits.make(reservation=row, parts=parts, at=factories.START)
        self.charge(row, amount=gross)
        purchases.post(reservation=row, at=factories.START)
        deposits.open_plan(reservation=row, at=factories.START)
        self.in_parts.append(row)

    @precondition(lambda self: self.in_parts)
    @rule(data=st.data())
    def pay_balance(self, data: st.DataObject) -> None:
        row = self.in_parts.pop(data.draw(st.integers(0, len(self.in_parts) - 1)))
        self.charge(row, amount=row.deposit.balance_gross_minor)
        deposits.settle(payment=Payment(reservation=row), at=factories.START)
        self.set_status(row, ReservationStatus.ACTIVE)
        row.refresh_from_db()
        self.bought.append(row)

    @precondition(lambda self: self.in_parts)
    @rule(data=st.data(), basis_points=st.integers(0, 10_000))
    def leave_before_the_balance(self, data: st.DataObject, basis_points: int) -> None:
        """Cancel what a deposit was paid for: the fee counts the whole price, and takes no more than that."""
        row = self.in_parts.pop(data.draw(st.integers(0, len(self.in_parts) - 1)))
        paid = row.total_minor - row.unpaid_minor
        money = change_rules.difference(
            before=paid, after=0, fee_basis_points=basis_points, unpaid=row.unpaid_minor
        )
        assert money.fee + money.refund == paid
        made = factories.change(
            of=row,
            kind=ChangeKind.CANCELLATION,
            refunded=money.refund,
            fee=money.fee,
            released=row.gpus * row.window.seconds,
        )
        changes.post(change=made)
        self.set_status(row, ReservationStatus.CANCELLED)

    def charge(self, row: Reservation, *, amount: int) -> None:
        """Let the provider bring an amount that a reservation's tenant pays by card."""
        payment = self.next_id("pi")
        factories.topped_up(
            buyer=row.organization, object_id=payment, minor=amount, currency=settings.CURRENCY
        )
        self.clearing[payment] = amount

    @precondition(lambda self: self.bought)
    @rule(data=st.data(), kept=st.integers(0, 3000))
    def leave(self, data: st.DataObject, kept: int) -> None:
        """Cancel what has not begun; a part of the price stays as the fee."""
        row = self.bought.pop(data.draw(st.integers(0, len(self.bought) - 1)))
        fee = min(kept, row.total_minor)
        made = factories.change(
            of=row,
            kind=ChangeKind.CANCELLATION,
            refunded=row.total_minor - fee,
            fee=fee,
            released=row.gpus * row.window.seconds,
        )
        changes.post(change=made)
        self.set_status(row, ReservationStatus.CANCELLED)

    @precondition(lambda self: self.bought)
    @rule(data=st.data(), price=st.integers(0, 2000), is_by_card=st.booleans())
    def extend(self, data: st.DataObject, price: int, *, is_by_card: bool) -> None:
        """Add an hour to what has not begun, from the wallet or by card, whatever paid the rest."""
        row = self.bought[data.draw(st.integers(0, len(self.bought) - 1))]
        if is_by_card and price:
            taxed = tax.preview(reservation=row, charged=price)
            self.charge(row, amount=price + taxed.charged)

        def add() -> Reservation:
            changes.post(
                change=factories.change(
                    of=row, kind=ChangeKind.EXTENSION, charged=price, added=row.gpus * 3600
                )
            )
            return row

        if self.attempt(add) is None:
            row.refresh_from_db()

    @precondition(lambda self: any(row.pk in self.on_account for row in self.bought))
    @rule()
    def void_invoice(self) -> None:
        """Take back the invoice of a reservation that has not begun and that nobody has paid."""
        row = next(row for row in self.bought if row.pk in self.on_account)
        invoice = self.on_account.pop(row.pk)
        if invoice not in self.invoices or row.changes.exists():
            return
        self.bought.remove(row)
        factories.given_back(row)
        self.set_status(row, ReservationStatus.CANCELLED)
        del self.invoices[invoice]

    @precondition(lambda self: self.invoices)
    @rule(data=st.data())
    def pay_invoice(self, data: st.DataObject) -> None:
        invoice = next(reversed(self.invoices))
        owed = self.owed(invoice)
        tenant = self.invoices.pop(invoice)
        paid = data.draw(st.integers(0, owed + 50))
        if paid:
            receivables.pay(
                organization=tenant,
                invoice_id=invoice,
                payment_id=self.next_id("pay"),
                amount_minor=paid,
                currency=settings.CURRENCY,
                at=factories.START,
                is_by_bank=True,
            )
        if paid < owed:
            approval = approvals.request(
                kind=ApprovalKind.WRITE_OFF,
                organization=tenant,
                subject_id=invoice,
                amount=self.money(owed - paid),
                reason="nobody pays",
                at=factories.START,
                actor="anna",
            )
            approvals.approve(approval_id=approval.id, at=factories.START, actor="bert")

    @precondition(lambda self: self.clearing)
    @rule(fee=st.integers(0, 40))
    def match(self, fee: int) -> None:
        payment, amount = self.clearing.popitem()
        if not amount:
            return
        taken = min(fee, amount)
        transaction_id = self.next_id("txn")
        provider_money.match(
            object_id=payment,
            transaction_id=transaction_id,
            amount=self.money(amount),
            fee_minor=taken,
            at=FAR,
        )
        if amount > taken:
            provider_money.make_available(
                transaction_id=transaction_id, amount=self.money(amount - taken), at=FAR
            )
