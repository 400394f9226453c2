"""Companies and their API keys: who may knock, and what a key opens."""

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence

from django.db import IntegrityError, connection, transaction

from marketplace import audit
from marketplace.core.errors import DomainError, InvalidValue, StateConflict
from marketplace.core.text import check_name
from marketplace.models import ApiKey, Organization
from marketplace.states import Scope

SECRET_PREFIX = "hr_live_"  # noqa: S105 - how every secret begins, not a secret
SECRET_BYTES = 32  # 256 random bits: 43 characters of base64url
_SECRET_FORM = re.compile(r"hr_live_[A-Za-z0-9_-]{43}", flags=re.ASCII)
_KEY_FIELDS = [field.attname for field in ApiKey._meta.concrete_fields]  # noqa: SLF001 - Django's own name for it
_ORGANIZATION_FIELDS = [field.attname for field in Organization._meta.concrete_fields]  # noqa: SLF001
# As text: every request asks this, and Django takes longer to write it than PostgreSQL to answer.
_USABLE_KEY = (
    f"SELECT {', '.join(f'k.{name}' for name in _KEY_FIELDS)},"  # noqa: S608 - names of our own columns
    f" {', '.join(f'o.{name}' for name in _ORGANIZATION_FIELDS)}"
    " FROM marketplace_apikey k JOIN marketplace_organization o ON o.id = k.organization_id"
    " WHERE k.secret_sha256 = %s AND k.revoked_at IS NULL"
    " AND (k.expires_at IS NULL OR k.expires_at > %s)"
)
# "hr_live_" and six characters: enough to recognise, far too few to guess.
_SHOWN_PREFIX_LENGTH = 14


class OrganizationNameTaken(DomainError):
    """Another organization bears this name."""

    code = "organization_name_taken"
    title = "The name is taken"


class InvalidApiKey(DomainError):
    """The key is malformed, unknown, revoked or expired: the answers are the same."""

    code = "invalid_api_key"
    title = "The API key is not valid"


class ScopeMissing(DomainError):
    """The key is valid but may not do this."""

    code = "scope_missing"
    title = "The API key lacks a scope"


@transaction.atomic
def create_organization(
    *, name: str, is_owner: bool, is_tenant: bool, at: dt.datetime
) -> Organization:
    """Register a company.

    :raises InvalidValue: when the name is empty or too long, or the company neither sells nor buys.
    :raises OrganizationNameTaken: when another organization bears the name.
    """
    check_name(name, pointer="/name")
    if not is_owner and not is_tenant:
        raise InvalidValue("an organization must be an owner, a tenant, or both")
    try:
        with transaction.atomic():
            organization = Organization.objects.create(
                name=name, is_owner=is_owner, is_tenant=is_tenant, created_at=at
            )
    except IntegrityError as error:
        if "organization_name_is_unique" not in str(error):
            raise
        raise OrganizationNameTaken(
            f"there is an organization named {name!r}", pointer="/name"
        ) from None
    audit.record(
        at=at,
        actor="market",
        action="organization.created",
        object_id=organization.id,
        organization=organization,
        detail={"name": name, "is_owner": is_owner, "is_tenant": is_tenant},
    )
    return organization


@transaction.atomic
def issue_api_key(
    *,
    organization: Organization,
    name: str,
    scopes: Sequence[Scope],
    at: dt.datetime,
    expires_at: dt.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return it with its secret, which is kept nowhere and cannot be shown again.

    :raises InvalidValue: when the name does not fit, a scope is unknown or missing, or the expiry has passed.
    """
    check_name(name, pointer="/name")
    unknown = sorted(set(map(str, scopes)) - set(Scope.values))
    if unknown or not scopes:
        raise InvalidValue(f"scopes must be of {', '.join(Scope.values)}", pointer="/scopes")
    if expires_at is not None and expires_at <= at:
        raise InvalidValue("expires_at has passed", pointer="/expires_at")
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    api_key = ApiKey.objects.create(
        organization=organization,
        name=name,
        prefix=secret[:_SHOWN_PREFIX_LENGTH],
        secret_sha256=_digest(secret),
        scopes=sorted({Scope(scope).value for scope in scopes}),
        created_at=at,
        expires_at=expires_at,
    )
    audit.record(
        at=at,
        actor="market",
        action="api_key.issued",
        object_id=api_key.id,
        organization=organization,
        detail={"name": name, "scopes": api_key.scopes},
    )
    return api_key, secret


@transaction.atomic
def revoke_api_key(*, api_key: ApiKey, at: dt.datetime, actor: str) -> ApiKey:
    """End a key's life; the next call with it is refused.

    :raises StateConflict: when the key was revoked before.
    """
    if not ApiKey.objects.filter(pk=api_key.pk, revoked_at__isnull=True).update(revoked_at=at):
        raise StateConflict(f"{api_key.id} is revoked already")
    audit.record(
        at=at,
        actor=actor,
        action="api_key.revoked",
        object_id=api_key.id,
        organization=api_key.organization,
        detail={"name": api_key.name},
    )
    api_key.refresh_from_db()
    return api_key


def authenticate(*, secret: str, at: dt.datetime) -> ApiKey:
    """Return the usable key that a secret belongs to, with its organization.

    The lookup is by the hash of the secret: how long it takes tells nothing about the secrets we keep.

    :raises InvalidApiKey: when the secret is malformed, unknown, revoked or expired.
    """
    if _SECRET_FORM.fullmatch(secret):
        with connection.cursor() as cursor:
            cursor.execute(_USABLE_KEY, [_digest(secret), at])
            row = cursor.fetchone()
        if row is not None:
            split = len(_KEY_FIELDS)
            api_key = ApiKey.from_db(connection.alias, _KEY_FIELDS, row[:split])
            api_key.organization = Organization.from_db(
                connection.alias, _ORGANIZATION_FIELDS, row[split:]
            )
            return api_key
    raise InvalidApiKey("the key is unknown, revoked or expired")


def require_scope(*, api_key: ApiKey, scope: Scope) -> None:
    """Refuse a key that lacks a scope.

    :raises ScopeMissing: when the key does not carry `scope`.
    """
    if scope.value not in api_key.scopes:
        raise ScopeMissing(
            f"this needs a key with the scope {scope.value}", extra={"scope": scope.value}
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
