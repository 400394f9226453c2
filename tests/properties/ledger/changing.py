"""What becomes of what was bought before it begins: it is left, extended, or its invoice is asked for."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import changes, credit, dunning, invoice_payments, payments, receivables
from billing.models import CreditSale, Entry
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from billing.states import ApprovalKind, EntryKind
from scheduler import cancellations, extension_holds
from scheduler.models import Reservation
from scheduler.states import ChangeKind, ExtensionDropReason, ReservationStatus
from tests.billing import factories
from tests.properties.ledger import rows
from tests.properties.ledger.events import event
from tests.properties.ledger.holding import Holding
from tests.properties.ledger.model import DAY, FAR
from tests.properties.ledger.wallets import RECEIVED

# What pays for what was given up: then its tax is owed again.
RECOVERED = (EntryKind.RECOVERY, EntryKind.RELIEF_WITHDRAWN)
# What a change writes: itself, its fee's share, and what is set against what is owed or a promotion's.
CHANGED = (
    EntryKind.CHANGE,
    EntryKind.FEE_SHARE,
    EntryKind.OFFSET,
    EntryKind.PROMOTION_RETURNED,
    EntryKind.PROMOTION_EXPIRY,
    *RECOVERED,
)
OWED_SINCE = factories.START + 30 * DAY  # when the invoices of START are due


class Changing(Holding):
    """The rules of changes, and of what is owed."""

    @precondition(lambda self: self.bought())
    @rule(data=st.data(), kept=st.integers(0, 3000))
    @event(*CHANGED)
    def leave(self, data: st.DataObject, kept: int) -> None:
        """Cancel what has not begun; a part of the price stays as the fee."""
        row = self.pick(data, self.bought())
        extension_holds.drop(
            reservation=row, reason=ExtensionDropReason.RESERVATION_CHANGED, at=factories.START
        )
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

    @precondition(lambda self: self.in_parts())
    @rule(data=st.data(), notice=st.integers(1, 60))
    @event(*CHANGED)
    def leave_before_the_balance(self, data: st.DataObject, notice: int) -> None:
        """Cancel what a deposit was paid for: the fee counts the whole price, and takes no more than that."""
        row, at = self.pick(data, self.in_parts()), factories.START - notice * DAY
        quote = cancellations.quote(organization=row.organization, reservation_id=row.pk, at=at)
        changes.cancel(
            organization=row.organization,
            reservation_id=row.pk,
            quote_id=quote.pk,
            at=at,
            actor="test",
        )

    @precondition(lambda self: self.bought())
    @rule(data=st.data(), price=st.integers(0, 2000))
    @event(EntryKind.CHANGE, EntryKind.PROMOTION_SPENT)
    def extend(self, data: st.DataObject, price: int) -> None:
        """Add an hour to what has not begun, from the wallet, whatever paid the rest."""
        row = self.pick(data, self.bought())
        changes.post(
            change=factories.change(
                of=row, kind=ChangeKind.EXTENSION, charged=price, added=row.gpus * 3600
            )
        )

    @precondition(lambda self: self.bought())
    @rule(
        data=st.data(),
        price=st.integers(50, 2000),
        fate=st.sampled_from(("paid", "paid", "open", "dropped", "declined")),
    )
    @event(*RECEIVED)
    def extend_by_card(self, data: st.DataObject, price: int, fate: str) -> None:
        """Keep an hour behind what has not begun until a card has paid for it, in time, late or never."""
        row = self.pick(data, self.bought())
        if extension_holds.open_of(reservation=row) is not None:
            return
        payment = payments.open_for_added_hours(
            held=rows.kept(rows.asked_hour(of=row, price=price), at=factories.START),
            wishes=Wishes(means=PaymentMeans.CARD),
            at=factories.START,
        )
        if fate == "dropped":
            extension_holds.drop_due(at=factories.START + rows.PAYMENT_WINDOW)
        elif fate != "open":
            self.hear(payment, state="succeeded" if fate == "paid" else "canceled")

    @precondition(lambda self: self.placed())
    @rule(
        data=st.data(),
        price=st.integers(50, 2000),
        hours=st.integers(1, 30),
        fate=st.sampled_from(("paid", "late", "declined", "dropped")),
    )
    @event(*RECEIVED)
    def move_by_card(self, *, data: st.DataObject, price: int, hours: int, fate: str) -> None:
        """Keep a later window beside the old one until a card has paid for it, in time, late or never."""
        row = self.pick(data, self.placed())
        if extension_holds.open_of(reservation=row) is not None:
            return
        at = row.starts_at - DAY
        held = rows.kept_window(of=row, price=price, hours=hours, at=at)
        payment = payments.open_for_added_hours(
            held=held, wishes=Wishes(means=PaymentMeans.CARD), at=at
        )
        if fate in {"late", "dropped"}:
            at += rows.PAYMENT_WINDOW
            extension_holds.drop_due(at=at)
        if fate != "dropped":
            self.hear(payment, state="canceled" if fate == "declined" else "succeeded", at=at)
        row.refresh_from_db()
        assert (row.window == held.window) == (fate == "paid")

    @precondition(lambda self: self.owed_sales())
    @rule(data=st.data(), way=st.sampled_from(("bank", "wallet", "provider")))
    @event(*RECEIVED)
    def pay_invoice(self, data: st.DataObject, way: str) -> None:
        """Pay an invoice, or a part of it; by bank perhaps more than it says."""
        sale = self.pick(data, self.owed_sales())
        owed = self.owed(sale)
        if way == "bank":
            invoice_payments.record_transfer(
                sale=sale,
                amount=self.money(data.draw(st.integers(1, owed + 50))),
                idempotency_key=self.next_id("transfer"),
                at=factories.START,
                actor="test",
            )
        elif way == "wallet":
            amount = data.draw(st.integers(1, owed))
            invoice_payments.from_wallet(sale=sale, amount_minor=amount, at=factories.START)
        elif owed >= self.takeable(1):
            payment = payments.open_for_invoice(
                organization=sale.organization,
                invoice_id=sale.invoice_id,
                amount=self.money(self.takeable(data.draw(st.integers(1, owed)))),
                wishes=Wishes(means=PaymentMeans.CARD, with_saved_card=True),
                at=factories.START,
            )
            if data.draw(st.booleans()):
                self.hear(payment, state="succeeded")

    @precondition(lambda self: self.owed_sales())
    @rule(data=st.data(), percent=st.integers(1, 100))
    @event(EntryKind.WRITE_OFF)
    def write_off(self, data: st.DataObject, percent: int) -> None:
        sale = self.pick(data, self.owed_sales())
        self.give_up(sale, amount=max(1, self.owed(sale) * percent // 100))

    @precondition(lambda self: self.written_off())
    @rule(data=st.data(), amount=st.integers(1, 4_000))
    @event(EntryKind.PAYMENT, *RECOVERED)
    def pay_after_all(self, data: st.DataObject, amount: int) -> None:
        """Pay by bank an invoice of which something was given up."""
        invoice_payments.record_transfer(
            sale=self.pick(data, self.written_off()),
            amount=self.money(amount),
            idempotency_key=self.next_id("transfer"),
            at=FAR,
            actor="test",
        )

    @precondition(lambda self: self.owed_sales())
    @rule(days=st.sampled_from((0, 3, 10, 14, 14)), is_late=st.booleans())
    @event(*CHANGED)
    def dun(self, days: int, *, is_late: bool) -> None:
        """Remind of what is owed, then give back what has not begun and is not paid."""
        at = OWED_SINCE + days * DAY
        for _ in range(4 if is_late else 1):
            dunning.advance_due(at=at)
            at += 7 * DAY

    def give_up(self, sale: CreditSale, *, amount: int) -> None:
        self.by_two(
            ApprovalKind.WRITE_OFF,
            organization=sale.organization,
            subject_id=sale.invoice_id,
            amount=self.money(amount),
            at=FAR,
        )

    def placed(self) -> list[Reservation]:
        """Return what is bought, has not begun, and stands in the calendar."""
        return self.reservations(
            status=ReservationStatus.SCHEDULED,
            unpaid_minor=0,
            leases__isnull=True,
            allocations__live=True,
        )

    def owed_sales(self) -> list[CreditSale]:
        return self.read(credit.still_open().select_related("organization", "invoice"))

    def written_off(self) -> list[CreditSale]:
        given_up = Entry.objects.filter(kind=EntryKind.WRITE_OFF).values("subject_id")
        known = CreditSale.objects.filter(invoice__in=given_up)
        return self.read(known.select_related("organization", "invoice"))

    def owed(self, sale: CreditSale) -> int:
        """Return what is open of an invoice: what goes back, and credits, are set against it."""
        return receivables.open_minor(
            organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
        )
