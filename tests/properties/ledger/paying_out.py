"""What owners get, and what is taken back of it: releases, transfers, reversals."""

import datetime as dt

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from billing import fee_shares, owner_debts, releases, reserves, settlements, transfers
from billing.models import Payout, Reversal, Transfer
from billing.provider_states import IntentKind, ReversalStatus, TransferStatus
from billing.states import ApprovalKind, EntryKind, PayoutStatus
from tests.billing import factories
from tests.properties.ledger.changing import RECOVERED
from tests.properties.ledger.events import event
from tests.properties.ledger.model import DAY, FAR, FARTHER, Absent
from tests.properties.ledger.refunding import Refunding

TRANSFERRED = (EntryKind.TRANSFER, EntryKind.TRANSFER_PAID, EntryKind.TRANSFER_FAILED)
RELEASED = (
    EntryKind.RELEASE,
    EntryKind.RESERVE_RELEASE,
    EntryKind.CORRECTION_RELEASE,
    # What was sold twice is shared with who left it, which may owe for it or have had it of a promotion.
    EntryKind.RESALE,
    EntryKind.OFFSET,
    *RECOVERED,
    EntryKind.PROMOTION_RETURNED,
    EntryKind.PROMOTION_EXPIRY,
)
# What is settled at `FAR` waits for the last look at its evidence.
REVIEWED = FAR + dt.timedelta(seconds=settlements.REVIEWS_AFTER_SECONDS[-1])
ASKED_AGAIN = dt.timedelta(seconds=owner_debts.ASK_AGAIN_SECONDS) + DAY


class PayingOut(Refunding):
    """The rules of money for owners."""

    @rule(is_late=st.booleans())
    @event(*RELEASED)
    def release(self, *, is_late: bool) -> None:
        """Make payable what is due; late enough, also what was kept back."""
        at = FARTHER if is_late else REVIEWED
        releases.release_due(at=at)
        fee_shares.release_due(at=at)

    @precondition(lambda self: self.payable())
    @rule(data=st.data(), fate=st.sampled_from(("paid", "paid", "failed", "open")))
    @event(*TRANSFERRED)
    def pay_out(self, data: st.DataObject, fate: str) -> None:
        payout = self.pick(data, self.payable())
        if transfers.send(payout_id=payout.pk, at=FAR) and fate != "open":
            row = Transfer.objects.get(payout=payout, status=TransferStatus.SENDING)
            self.hear_of_transfer(row, is_paid=fate == "paid")

    @precondition(lambda self: self.sending())
    @rule(is_paid=st.booleans())
    @event(EntryKind.TRANSFER_PAID, EntryKind.TRANSFER_FAILED)
    def hear_of_a_transfer(self, *, is_paid: bool) -> None:
        self.hear_of_transfer(self.sending()[0], is_paid=is_paid)

    @precondition(lambda self: self.owed_by_owner())
    @rule()
    @event()
    def take_back(self) -> None:
        """Ask for what an owner owes and netting did not bring: out of what it was sent."""
        self.collected += 1
        owner_debts.collect_due(at=FARTHER + self.collected * ASKED_AGAIN)

    @precondition(lambda self: self.owed_by_owner())
    @rule(data=st.data())
    @event(EntryKind.OWNER_WRITE_OFF)
    def give_up_a_debt(self, data: st.DataObject) -> None:
        """Let two people give up something of what an owner owes."""
        owed = self.owed_by_owner()
        if not owed:
            raise Absent
        owner = factories.owner()
        self.by_two(
            ApprovalKind.WRITE_OFF,
            organization=owner,
            subject_id=owner.pk,
            amount=self.money(data.draw(st.integers(1, owed))),
        )

    @precondition(lambda self: self.asked_back())
    @rule(data=st.data(), is_there=st.booleans())
    @event(EntryKind.TRANSFER_REVERSAL)
    def hear_of_a_reversal(self, data: st.DataObject, *, is_there: bool) -> None:
        self.hear_of_reversal(self.pick(data, self.asked_back()), is_there=is_there)

    def hear_of_transfer(self, row: Transfer, *, is_paid: bool) -> None:
        intent = self.call(IntentKind.TRANSFER, row.pk, at=FAR)
        if intent is None:
            return
        if is_paid:
            made = self.transfer_made(f"tr_{row.pk}", amount=row.amount_minor)
            self.answer(intent, made, at=FAR)
            self.will_book("transfer", made.id, -row.amount_minor)
        else:
            self.refuse(intent, code="balance_insufficient", at=FAR)

    def hear_of_reversal(self, row: Reversal, *, is_there: bool) -> None:
        intent = self.call(IntentKind.REVERSAL, row.pk, at=FARTHER)
        if intent is None:
            return
        if is_there:
            made = self.transfer_made(f"trr_{row.pk}", amount=row.amount_minor)
            self.answer(intent, made, at=FARTHER)
            self.will_book("transfer_reversal", made.id, row.amount_minor)
        else:
            self.refuse(intent, code="balance_insufficient", at=FARTHER)

    def owed_by_owner(self) -> int:
        return reserves.owed(owner=factories.owner(), currency=settings.CURRENCY)

    def payable(self) -> list[Payout]:
        waiting = (PayoutStatus.DUE, PayoutStatus.FAILED)
        return self.read(Payout.objects.filter(status__in=waiting))

    def sending(self) -> list[Transfer]:
        return self.read(Transfer.objects.filter(status=TransferStatus.SENDING))

    def asked_back(self) -> list[Reversal]:
        asked = Reversal.objects.filter(status=ReversalStatus.ASKED)
        return self.read(asked.select_related("transfer"))
