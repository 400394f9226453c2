"""Who may knock, and what a key opens."""

import hashlib
import re
from typing import Any

import pytest

from marketplace import organizations
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import ApiKey, AuditEvent, Organization
from marketplace.organizations import InvalidApiKey, OrganizationNameTaken, ScopeMissing
from marketplace.states import Scope
from tests.marketplace.factories import NOON, a_tenant, an_owner, hours

pytestmark = pytest.mark.django_db


def a_key(**changes: Any) -> tuple[ApiKey, str]:
    wish: dict[str, Any] = {
        "organization": a_tenant(),
        "name": "build server",
        "scopes": [Scope.MARKET_READ],
        "at": NOON,
    }
    return organizations.issue_api_key(**(wish | changes))


class TestCreateOrganization:
    def test_refuses_a_name_that_another_organization_bears(self) -> None:
        an_owner(name="Meridian")
        with pytest.raises(OrganizationNameTaken) as caught:
            a_tenant(name="Meridian")
        assert caught.value.pointer == "/name"
        assert Organization.objects.count() == 1

    @pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\x00b", "two\nlines", "\ud800"])
    def test_refuses_a_name_that_cannot_be_shown_or_stored(self, name: str) -> None:
        with pytest.raises(InvalidValue):
            an_owner(name=name)

    def test_refuses_a_company_that_neither_sells_nor_buys(self) -> None:
        with pytest.raises(InvalidValue):
            organizations.create_organization(name="Idle", is_owner=False, is_tenant=False, at=NOON)


class TestIssueApiKey:
    def test_keeps_the_hash_alone(self) -> None:
        api_key, secret = a_key()
        assert re.fullmatch(r"hr_live_[A-Za-z0-9_-]{43}", secret)
        stored = ApiKey.objects.values().get()
        assert stored["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
        assert not any(secret in str(value) for value in stored.values())
        assert secret.startswith(api_key.prefix)

    def test_leaves_no_secret_in_the_trail(self) -> None:
        _, secret = a_key()
        assert not any(secret in str(event) for event in AuditEvent.objects.values())

    def test_makes_another_secret_each_time(self) -> None:
        owner = an_owner()
        assert a_key(organization=owner)[1] != a_key(organization=owner)[1]

    @pytest.mark.parametrize("scopes", [[], ["everything"], [Scope.MARKET_READ, "root"]])
    def test_refuses_scopes_that_do_not_exist(self, scopes: list[str]) -> None:
        with pytest.raises(InvalidValue) as caught:
            a_key(scopes=scopes)
        assert caught.value.pointer == "/scopes"

    def test_refuses_a_key_that_would_be_born_dead(self) -> None:
        with pytest.raises(InvalidValue):
            a_key(expires_at=NOON)


class TestAuthenticate:
    def test_knows_a_key_by_its_secret(self) -> None:
        api_key, secret = a_key()
        assert organizations.authenticate(secret=secret, at=NOON) == api_key

    @pytest.mark.parametrize(
        "secret", ["", "hr_live_", "hr_live_" + "a" * 43, "x" * 51, "hr_live_\x00" + "a" * 42]
    )
    def test_refuses_what_is_no_secret_of_ours(self, secret: str) -> None:
        a_key()
        with pytest.raises(InvalidApiKey):
            organizations.authenticate(secret=secret, at=NOON)

    def test_refuses_the_stored_hash_as_a_secret(self) -> None:
        api_key, _ = a_key()
        with pytest.raises(InvalidApiKey):
            organizations.authenticate(secret=api_key.secret_sha256, at=NOON)

    def test_refuses_a_key_from_the_instant_of_its_expiry(self) -> None:
        _, secret = a_key(expires_at=NOON + hours(1))
        organizations.authenticate(secret=secret, at=NOON)
        with pytest.raises(InvalidApiKey):
            organizations.authenticate(secret=secret, at=NOON + hours(1))

    def test_refuses_a_revoked_key_with_the_words_for_an_unknown_one(self) -> None:
        api_key, secret = a_key()
        organizations.revoke_api_key(api_key=api_key, at=NOON, actor="admin")
        with pytest.raises(InvalidApiKey) as revoked:
            organizations.authenticate(secret=secret, at=NOON)
        with pytest.raises(InvalidApiKey) as unknown:
            organizations.authenticate(secret="hr_live_" + "a" * 43, at=NOON)
        assert revoked.value.detail == unknown.value.detail


class TestRevokeApiKey:
    def test_leaves_the_first_instant_when_called_again(self) -> None:
        api_key, _ = a_key()
        organizations.revoke_api_key(api_key=api_key, at=NOON, actor="admin")
        with pytest.raises(StateConflict):
            organizations.revoke_api_key(api_key=api_key, at=NOON + hours(1), actor="admin")
        api_key.refresh_from_db()
        assert api_key.revoked_at == NOON

    def test_leaves_other_keys_alone(self) -> None:
        api_key, _ = a_key()
        _, other_secret = a_key(organization=an_owner())
        organizations.revoke_api_key(api_key=api_key, at=NOON, actor="admin")
        organizations.authenticate(secret=other_secret, at=NOON)


class TestRequireScope:
    def test_refuses_a_key_without_the_scope_and_names_it(self) -> None:
        api_key, _ = a_key(scopes=[Scope.MARKET_READ])
        organizations.require_scope(api_key=api_key, scope=Scope.MARKET_READ)
        with pytest.raises(ScopeMissing) as caught:
            organizations.require_scope(api_key=api_key, scope=Scope.OWNER_WRITE)
        assert caught.value.extra == {"scope": "owner:write"}
