"""An owner whose leases were settled and paid out: what tests of money that goes out share."""

import datetime as dt
from typing import Any

from billing import ledger, onboarding, releases, settlements, transfers
from billing import provider as doors
from billing.models import Payout, Settlement
from billing.states import AccountKind, EntryKind
from scheduler.models import Lease
from tests.billing import factories
from tests.fakes.stripe import balance as standin_balance

MUCH_LATER = factories.START + dt.timedelta(days=60)


def settled(**lease_fields: Any) -> Settlement:
    """Return the settlement of a lease that brought its owner 400."""
    reservation = factories.reservation(buyer=factories.tenant(funds_minor=471))
    lease: Lease = factories.lease(of=reservation, **lease_fields)
    assert lease.closed_at is not None
    row = settlements.settle(lease_id=lease.id, at=lease.closed_at + dt.timedelta(hours=1))
    assert row is not None
    return row


def released_settlement() -> Settlement:
    """Return the settlement of a lease of which the owner's part is payable."""
    row = settled()
    releases.release_due(at=MUCH_LATER)
    return row


class OwnerWorld:
    """An owner with a payout that is due, and a provider that has money."""

    def __init__(self, stand_in, clock):
        self.stand_in = stand_in
        self.clock = clock
        self.payout = None
        self.fund(100_000)

    def fund(self, amount):
        standin_balance.move(
            self.stand_in.world,
            source={"id": "tu_1"},
            kind="topup",
            category="topup",
            amount=amount,
            currency="usd",
        )

    def earn(self):
        released_settlement()
        self.payout = Payout.objects.order_by("pk").last()
        return self.payout

    def onboard(self, owner=None, *, finished=True):
        account = onboarding.ask(
            owner=owner or factories.owner(),
            email="owner@example.com",
            country="DE",
            at=self.clock(),
            actor="key_1",
        )
        doors.drive_due(at=self.clock())
        account.refresh_from_db()
        if finished:
            self.stand_in.control("/_control/capability", {"id": account.provider_id})
            onboarding.read(account=account, at=self.clock())
            account.refresh_from_db()
        return account

    def turn(self, **passed):
        at = self.clock(**passed)
        transfers.send_due(at=at)
        doors.drive_due(at=at)
        if self.payout is not None:
            self.payout.refresh_from_db()

    def sent(self):
        return [row["amount"] for row in self.stand_in.world.all("transfer")]

    def owing(self, amount):
        """Let the owner owe us, as a lost dispute would."""
        self.onboard()
        payout = self.earn()
        self.turn()
        ledger.post(
            idempotency_key="owed",
            kind=EntryKind.DISPUTE_LOST,
            subject_id=payout.owner_id,
            effective_at=self.clock(),
            legs=ledger.transfer(
                debited=self.owed(payout),
                credited=ledger.AccountRef(AccountKind.DISPUTE_LOSSES, "usd"),
                amount=amount,
            ),
        )
        return payout

    def owed(self, payout):
        return ledger.AccountRef(AccountKind.OWNER_CLAWBACK, "usd", payout.owner_id, payout.owner)

    def ask(self, payout, amount):
        """Ask for an amount to be taken back of what an owner was sent; nothing is called yet."""
        return transfers.take_back(
            owner=payout.owner, currency="usd", amount_minor=amount, at=self.clock()
        )

    def take_back(self, payout, amount):
        asked = self.ask(payout, amount)
        doors.drive_due(at=self.clock())
        return asked
