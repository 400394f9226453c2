"""What the market itself does: bookings matched, suspense, taxes, months, and money that is parked."""

from typing import Any

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import invoices, parking, provider_books, provider_money, suspense, tax_remittances
from billing.ledger import AccountRef
from billing.models import Parking
from billing.states import RESOLUTIONS, AccountKind, ApprovalKind, EntryKind
from billing.tax_remittances import NothingToRemit
from marketplace.core.errors import InvalidValue
from tests.billing import factories
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DAY, FAR, FARTHER, WHO, Absent
from tests.properties.ledger.paying_out import PayingOut

MONTH = 31 * DAY
OF_ITS_OWN = ("payout", "payout_reversal", "topup", "topup_reversal", "risk_reserved_funds", "fee")
# The months in which most money moves: tax of these is over and filed at FARTHER.
FILED = tuple(f"{at:%Y-%m}" for at in (factories.START, FAR))


class Controls(PayingOut):
    """The rules of keeping the books."""

    @precondition(lambda self: self.unbooked)
    @rule(data=st.data())
    @event(EntryKind.BALANCE_TRANSACTION, EntryKind.REFUND_SETTLED)
    def match(self, data: st.DataObject) -> None:
        """Let the provider book some of what it did, and take that over."""
        if not self.unbooked:
            raise Absent
        for place in sorted(self.unbooked)[: data.draw(st.integers(1, len(self.unbooked)))]:
            self.book_one(place)
        self.take_over_bookings(at=FAR)

    @rule(amount=st.integers(0, 900), fee=st.integers(0, 50), category=st.sampled_from(OF_ITS_OWN))
    @event(EntryKind.BALANCE_TRANSACTION)
    def book_of_its_own(self, amount: int, fee: int, category: str) -> None:
        """Let the provider book what no call of ours asked for: to our bank and back, held back, or a fee."""
        signed = amount if category in ("payout_reversal", "topup") else -amount
        self.book(category, self.next_id("po"), signed, fee=fee, at=FAR)
        self.take_over_bookings(at=FAR)

    @rule(amount=st.integers(1, 900), is_received=st.booleans())
    @event(EntryKind.SUSPENSE)
    def put_aside(self, amount: int, *, is_received: bool) -> None:
        """Book what matches nothing as nobody's yet."""
        self.set_aside(amount if is_received else -amount)

    @precondition(lambda self: any(category == "charge" for category, _ in self.unbooked))
    @rule()
    @event(EntryKind.SUSPENSE)
    def miss_a_booking(self) -> None:
        """Give up to wait for the booking of a payment: nobody knows where its money is."""
        place = next(place for place in sorted(self.unbooked) if place[0] == "charge")
        del self.unbooked[place]
        clearing = AccountRef(
            AccountKind.PSP_CLEARING, settings.CURRENCY, place[1].removeprefix("ch_")
        )
        provider_money.put_aside(account=clearing, at=FAR)

    @precondition(lambda self: self.aside())
    @rule(data=st.data(), kind=st.sampled_from(RESOLUTIONS), who=WHO, amount=st.integers(1, 900))
    @event(EntryKind.SUSPENSE_RESOLVED, refused=(InvalidValue,))
    def find_out(self, data: st.DataObject, kind: ApprovalKind, who: int, amount: int) -> None:
        """Let two people say whose something is of which nobody knew; no wallet pays for what has gone."""
        item = self.pick(data, self.aside())
        self.explain(item, kind, amount=min(amount, abs(item.left_minor)), who=who)

    @rule(data=st.data(), month=st.sampled_from(FILED), comes_back=st.booleans())
    @event(EntryKind.TAX_REMITTANCE, EntryKind.REVERSAL, refused=(NothingToRemit,))
    def remit_tax(self, *, data: st.DataObject, month: str, comes_back: bool) -> None:
        """Pay a tax office something of what it is owed of a month; some transfers come back."""
        owed = [each for each in tax_remittances.periods(month=month) if each.open > 0]
        if not owed:
            return
        office = self.pick(data, owed)
        amount = self.money(data.draw(st.integers(1, office.open)))
        remitted = self.by_two(
            ApprovalKind.TAX_REMITTANCE,
            organization=None,
            subject_id=tax_remittances.subject_of(jurisdiction=office.jurisdiction, month=month),
            amount=amount,
            at=FARTHER,
        )
        if comes_back:
            self.by_two(
                ApprovalKind.REMITTANCE_REVERSAL,
                organization=None,
                subject_id=remitted,
                amount=amount,
                at=FARTHER,
            )

    @rule(who=WHO, is_owner=st.booleans())
    @event()
    def park(self, who: int, *, is_owner: bool) -> None:
        parked = factories.owner() if is_owner else self.tenants[who]
        parking.park(breaches={parked.pk: "its books do not add up"}, at=FAR)

    @precondition(lambda self: self.parked())
    @rule(data=st.data())
    @event()
    def unpark(self, data: st.DataObject) -> None:
        self.let_move(self.pick(data, self.parked()))

    @rule()
    @event()
    def close_month(self) -> None:
        self.months += 1
        invoices.run_due(at=factories.START + self.months * MONTH)

    def set_aside(self, amount: int) -> None:
        row = self.book("adjustment", "", amount, fee=0, at=FAR)
        provider_books.put_aside(transaction_id=row.pk, at=FAR)

    def explain(self, item: Any, kind: ApprovalKind, *, amount: int, who: int = 0) -> None:
        """Let two people resolve an item."""
        self.by_two(
            kind,
            organization=self.tenants[who] if kind == ApprovalKind.SUSPENSE_WALLET else None,
            subject_id=item.pk,
            amount=self.money(amount),
        )

    def aside(self) -> list[Any]:
        """Return what is in suspense, with what is left of it."""
        return self.read(suspense.open_items())

    def book_one(self, place: tuple[str, str]) -> None:
        amount, fee = self.unbooked.pop(place)
        category, source_id = place
        self.book(category, source_id, amount, fee=fee, at=FAR)

    def let_move(self, row: Parking) -> None:
        """Let two people unpark money."""
        self.by_two(
            ApprovalKind.UNPARK,
            organization=row.organization,
            subject_id=row.organization_id,
            amount=self.money(0),
        )

    def parked(self) -> list[Parking]:
        rows = Parking.objects.filter(ended_at__isnull=True)
        return self.read(rows.select_related("organization"))
