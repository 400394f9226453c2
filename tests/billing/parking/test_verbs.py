"""While an organization's money is parked none of it moves, by any verb; what happened outside is told."""

import pytest

from billing import ledger, parking
from billing.states import FACTS, AccountKind, EntryKind
from marketplace.models import Organization
from tests.billing import factories
from tests.billing.parking.verbs import AT, OWNERS, TENANTS, buyer, moves, of_owner, of_tenant, park

pytestmark = pytest.mark.django_db


class TestVerbs:
    @pytest.mark.parametrize("name", TENANTS)
    def test_move_no_money_of_a_parked_tenant(self, name):
        tenant, verb = of_tenant(name)
        park(tenant)
        assert not moves(verb)
        parking.end(organization=tenant, at=AT, actor="two people")
        assert moves(verb)

    @pytest.mark.parametrize("name", OWNERS)
    def test_move_no_money_of_a_parked_owner(self, name):
        owner, verb = of_owner(name)
        park(owner)
        assert not moves(verb)
        parking.end(organization=owner, at=AT, actor="two people")
        assert moves(verb)


class TestEntries:
    @pytest.mark.parametrize("kind", EntryKind)
    def test_of_parked_money_only_tell_what_has_happened(self, kind):
        tenant, other = buyer(), factories.tenant(name="another")
        park(tenant)

        def post(organization: Organization) -> bool:
            account = ledger.AccountRef(AccountKind.WALLET, "usd", organization.pk, organization)
            return moves(
                lambda: ledger.post(
                    idempotency_key=f"{kind}:{organization.pk}",
                    kind=kind,
                    subject_id=organization.pk,
                    effective_at=AT,
                    legs=ledger.transfer(
                        debited=ledger.AccountRef(AccountKind.BANK, "usd"),
                        credited=account,
                        amount=1,
                    ),
                )
            )

        assert post(tenant) == (kind in FACTS)
        assert post(other)
