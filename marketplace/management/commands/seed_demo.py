"""Fill a market with a demo owner, a demo tenant, an admin and the tokens of a small fleet, once."""

import argparse
import datetime as dt
import json
import secrets
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from agents import enrolment
from agents.models import EnrolmentToken
from billing import wallet
from marketplace import catalog, listings, organizations
from marketplace.core.errors import DomainError
from marketplace.core.money import Money, currency_exponent
from marketplace.listings import ListingFields
from marketplace.management.datadir import write_private
from marketplace.models import ApiKey, Listing, Organization, User
from marketplace.states import ListingMode, Scope, Tier

OWNER_NAME = "Meridian Compute"
TENANT_NAME = "Lumen Robotics"
ADMIN_NAME = "admin"
KEY_NAME = "demo"
ACTOR = "seed_demo"
OWNER_SCOPES = (Scope.MARKET_READ, Scope.OWNER_READ, Scope.OWNER_WRITE, Scope.BILLING_READ)
TENANT_SCOPES = (
    Scope.MARKET_READ,
    Scope.RESERVATIONS_READ,
    Scope.RESERVATIONS_WRITE,
    Scope.BILLING_READ,
    Scope.BILLING_WRITE,
)
DEPOSIT = 50_000  # whole units of the market's currency
TOKEN_DAYS = 30
# A machine whose directory was deleted enrols again; ten times is enough to try that.
TOKEN_NODES_MAX = 10
FLEET = (
    {"name": "meridian-01", "simulate": "h100x8", "region": "us-east", "fabric": "us-east-ib1"},
    {"name": "meridian-02", "simulate": "h100x8", "region": "us-east", "fabric": "us-east-ib1"},
    {"name": "meridian-03", "simulate": "a100x4", "region": "eu-west", "fabric": "eu-west-ib1"},
)


def demo_listings(*, at: dt.datetime) -> tuple[ListingFields, ...]:
    """Return the wishes of the demo's owner: one firm and steady, one that may be taken back."""
    return (
        ListingFields(
            name="H100, firm, us-east",
            gpu_model="h100-sxm-80gb",
            region="us-east",
            starts_at=at,
            floor_rate=Decimal("2.00"),
        ),
        ListingFields(
            name="A100 while idle, eu-west",
            gpu_model="a100-sxm-80gb",
            region="eu-west",
            starts_at=at,
            floor_rate=Decimal("0.90"),
            tier=Tier.RECLAIMABLE,
            reclaim_notice=dt.timedelta(hours=1),
            mode=ListingMode.WHEN_IDLE,
            idle_for=dt.timedelta(minutes=1),
            rolling=dt.timedelta(hours=24),
        ),
    )


class Command(BaseCommand):
    help = "Make the demo's owner, tenant, admin and fleet; what stands already is left as it is."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--write", required=True, type=Path, help="file for addresses and keys")
        parser.add_argument(
            "--fleet-write", type=Path, help="file for the fleet's tokens; default: beside --write"
        )
        parser.add_argument("--base-url", required=True, help="where the market answers")

    def handle(
        self, *, write: Path, base_url: str, fleet_write: Path | None = None, **_: object
    ) -> None:
        """Make what is missing and write both files, each readable by its owner alone.

        :raises CommandError: in production, or when something cannot be made.
        """
        if settings.IS_PRODUCTION:
            raise CommandError("the demo's people and play money are refused in production")
        at = timezone.now()
        fleet_write = fleet_write or write.with_name("fleet.json")
        known, known_fleet = _read(write, default={}), _read(fleet_write, default=[])
        try:
            with transaction.atomic():
                keys, fleet = _seed(known=known, known_fleet=known_fleet, at=at)
        except DomainError as refusal:
            raise CommandError(f"{refusal.code}: {refusal.detail}") from refusal
        for path, content in ((write, {"base_url": base_url} | keys), (fleet_write, fleet)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path=path, text=json.dumps(content, indent=2) + "\n")
        self.stdout.write(f"the demo's keys are in {write}, its fleet in {fleet_write}")


def _read(path: Path, *, default: Any) -> Any:  # noqa: ANN401 - JSON
    """Return what a former run wrote; a missing or damaged file counts as none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return content if isinstance(content, type(default)) else default


def _seed(
    *, known: dict[str, Any], known_fleet: list[Any], at: dt.datetime
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Make what is missing; return the content of both files."""
    catalog.seed_gpu_models()
    owner = _organization(name=OWNER_NAME, sells=True, at=at)
    tenant = _organization(name=TENANT_NAME, sells=False, at=at)
    keys = {
        "admin": _admin(known=known.get("admin")),
        "owner": _api_key(organization=owner, scopes=OWNER_SCOPES, known=known.get("owner"), at=at),
        "tenant": _api_key(
            organization=tenant, scopes=TENANT_SCOPES, known=known.get("tenant"), at=at
        ),
    }
    wallet.record_deposit(
        organization=tenant,
        amount=Money(DEPOSIT * 10 ** currency_exponent(settings.CURRENCY), settings.CURRENCY),
        idempotency_key="seed_demo",
        at=at,
        actor=ACTOR,
    )
    for fields in demo_listings(at=at):
        if not Listing.objects.filter(organization=owner, name=fields.name).exists():
            listing = listings.create(organization=owner, fields=fields, at=at, actor=ACTOR)
            listings.publish(listing=listing, at=at, actor=ACTOR)
    return keys, _fleet(owner=owner, known_fleet=known_fleet, at=at)


def _organization(*, name: str, sells: bool, at: dt.datetime) -> Organization:
    found = Organization.objects.filter(name=name).first()
    return found or organizations.create_organization(
        name=name, is_owner=sells, is_tenant=not sells, at=at
    )


def _admin(*, known: object) -> dict[str, str]:
    """Return the admin's name and password: the known one if it still opens, a new one otherwise."""
    user = User.objects.filter(username=ADMIN_NAME).first()
    if user is None:
        user = User(username=ADMIN_NAME, is_staff=True, is_superuser=True)
    password = known.get("password") if isinstance(known, dict) else None
    if not isinstance(password, str) or not user.check_password(password):
        password = secrets.token_urlsafe(15)
        user.set_password(password)
        user.save()
    return {"username": ADMIN_NAME, "password": password}


def _api_key(
    *, organization: Organization, scopes: tuple[Scope, ...], known: object, at: dt.datetime
) -> dict[str, str]:
    """Return the known key if it still opens. Otherwise issue one and revoke those whose secret is lost."""
    secret = known.get("api_key") if isinstance(known, dict) else None
    if isinstance(secret, str):
        try:
            found = organizations.authenticate(secret=secret, at=at)
        except organizations.InvalidApiKey:
            found = None
        if found is not None and found.organization == organization:
            return {"api_key": secret}
    for lost in ApiKey.objects.visible_to(organization).usable(at=at).filter(name=KEY_NAME):
        organizations.revoke_api_key(api_key=lost, at=at, actor=ACTOR)
    _, secret = organizations.issue_api_key(
        organization=organization, name=KEY_NAME, scopes=scopes, at=at
    )
    return {"api_key": secret}


def _fleet(*, owner: Organization, known_fleet: list[Any], at: dt.datetime) -> list[dict[str, str]]:
    """Return the fleet with a token for each machine: the known one while it stands, else a new one."""
    known = {m.get("name"): m for m in known_fleet if isinstance(m, dict)}
    standing = set(
        EnrolmentToken.objects.filter(
            organization=owner, revoked_at=None, expires_at__gt=at
        ).values_list("id", flat=True)
    )
    fleet = []
    for machine in FLEET:
        former = known.get(machine["name"], {})
        if former.get("token_id") in standing and isinstance(former.get("token"), str):
            fleet.append(machine | {"token": former["token"], "token_id": former["token_id"]})
            continue
        token, secret = enrolment.create_token(
            organization=owner,
            region=machine["region"],
            fabric=machine["fabric"],
            labels={"fleet": "demo"},
            nodes_max=TOKEN_NODES_MAX,
            expires_at=at + dt.timedelta(days=TOKEN_DAYS),
            at=at,
        )
        fleet.append(machine | {"token": secret, "token_id": token.id})
    return fleet
