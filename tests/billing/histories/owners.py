"""Stories of owners: accounts, transfers, and what is taken back."""

from billing import onboarding, provider, releases, settlements, transfers
from billing.models import Payout, PayoutAccount, Transfer
from marketplace.models import Organization
from tests.billing import factories as books_factories
from tests.billing.histories.market import Market, owner_of
from tests.billing.histories.plot import Acts
from tests.scheduler import factories


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
    releases.release_due(at=settled.release_due_at)
    return Payout.objects.get(owner=owner)


def _sends(market: Market, payout: Payout) -> None:
    assert transfers.send(payout_id=payout.pk, at=market.at)
    transfer = Transfer.objects.get(payout=payout)
    provider.drive_subject(subject_id=transfer.pk, at=market.at)
    market.hears()
