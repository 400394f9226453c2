"""Markets of which the provider's books are compared with ours."""

import stripe

from billing import ledger, reconcile
from billing.models import Difference, Transfer
from tests.billing.card_market import World
from tests.billing.owner_market import OwnerWorld


class Market(World):
    """A market whose every booking at the provider is one of its own."""

    def __init__(self, stand_in, clock):
        super().__init__(stand_in, clock)
        for row in stand_in.world.all("balance_transaction"):
            del stand_in.world.objects[row["id"]]  # the endowment of other tests

    def client(self):
        return stripe.StripeClient("sk_test_x", base_addresses={"api": self.stand_in.base_url})

    def shared(self, kind):
        return ledger.balance(account=ledger.AccountRef(kind, "usd"))

    def differences(self, **passed):
        return [(d.kind, d.object_id) for d in reconcile.run(at=self.clock(**passed))]


class Owners(OwnerWorld):
    """An owner with a payout, of whose transfer the two sides tell."""

    def __init__(self, stand_in, clock):
        clock(days=60)
        super().__init__(stand_in, clock)
        self.onboard()
        self.earn()
        self.turn()
        self.transfer = Transfer.objects.get()
        self.object = stand_in.world.get(self.transfer.provider_id, "transfer")

    def kinds(self, **passed):
        return {d.kind: d.object_id for d in reconcile.run(at=self.clock(**passed))}


def adopt(kind, at):
    return reconcile.adopt(difference=Difference.objects.get(kind=kind), at=at, actor="cfo")
