"""The demo's people and fleet: made once, and the same ever after."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from agents.models import EnrolmentToken
from billing import wallet
from billing.models import Entry
from marketplace import organizations
from marketplace.models import ApiKey, AuditEvent, Listing, Organization, User
from marketplace.states import ListingStatus, Scope
from tests.marketplace.factories import NOON

pytestmark = pytest.mark.django_db


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "demo.json"


def seed(path: Path, *, base_url: str = "http://127.0.0.1:8000") -> tuple[Any, Any]:
    call_command("seed_demo", write=path, base_url=base_url, verbosity=0)
    return json.loads(path.read_text()), json.loads(path.with_name("fleet.json").read_text())


def counts() -> list[int]:
    models = (Organization, ApiKey, Listing, EnrolmentToken, Entry, User, AuditEvent)
    return [model.objects.count() for model in models]


class TestSeedDemo:
    def test_makes_what_the_story_needs(self, path: Path) -> None:
        keys, fleet = seed(path)
        owner = organizations.authenticate(secret=keys["owner"]["api_key"], at=NOON)
        tenant = organizations.authenticate(secret=keys["tenant"]["api_key"], at=NOON)
        assert Scope.OWNER_WRITE in owner.scopes
        assert Scope.OWNER_WRITE not in tenant.scopes
        assert Scope.RESERVATIONS_WRITE in tenant.scopes
        assert wallet.balance(organization=tenant.organization).amount_minor == 5_000_000
        assert set(Listing.objects.values_list("status", flat=True)) == {ListingStatus.PUBLISHED}
        assert User.objects.get(username="admin").check_password(keys["admin"]["password"])
        assert [(m["name"], m["simulate"], m["region"]) for m in fleet] == [
            ("meridian-01", "h100x8", "us-east"),
            ("meridian-02", "h100x8", "us-east"),
            ("meridian-03", "a100x4", "eu-west"),
        ]

    def test_writes_files_that_their_owner_alone_can_read(self, path: Path) -> None:
        seed(path)
        for file in (path, path.with_name("fleet.json")):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_changes_nothing_the_second_time_but_the_address(self, path: Path) -> None:
        first = seed(path)
        before = counts()
        second = seed(path, base_url="http://127.0.0.1:9000")
        assert counts() == before
        assert second[0] == first[0] | {"base_url": "http://127.0.0.1:9000"}
        assert second[1] == first[1]

    def test_issues_new_keys_when_the_old_ones_are_lost_and_ends_the_old_ones(
        self, path: Path
    ) -> None:
        lost, _ = seed(path)
        path.unlink()
        keys, _ = seed(path)
        assert keys["owner"] != lost["owner"]
        organizations.authenticate(secret=keys["owner"]["api_key"], at=NOON)
        with pytest.raises(organizations.InvalidApiKey):
            organizations.authenticate(secret=lost["owner"]["api_key"], at=NOON)

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"owner": 7, "tenant": {"api_key": 8}}'])
    def test_repairs_a_damaged_file(self, path: Path, damage: str) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(damage)
        keys, _ = seed(path)
        organizations.authenticate(secret=keys["tenant"]["api_key"], at=NOON)

    def test_does_not_take_a_key_of_somebody_else_for_its_own(self, path: Path) -> None:
        keys, _ = seed(path)
        path.write_text(json.dumps(keys | {"owner": keys["tenant"]}))
        mended, _ = seed(path)
        owner = organizations.authenticate(secret=mended["owner"]["api_key"], at=NOON)
        assert owner.organization.is_owner

    def test_refuses_production(self, path: Path, settings: Any) -> None:
        settings.IS_PRODUCTION = True
        with pytest.raises(CommandError):
            seed(path)
        assert not path.exists()
