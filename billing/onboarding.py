"""Owners as receivers at the payment provider: asked for, onboarded on its own pages, changed with care.

The first account is used as soon as the provider lets it receive. Another one takes a second person and then
days of cooling off, in which the owner is told and the old one stays in use.
"""

import datetime as dt
import re

from django.conf import settings
from django.db import IntegrityError, transaction

from billing import intents
from billing import stripe_gateway as gateway
from billing.ledger import violated_constraint
from billing.models import PayoutAccount
from billing.provider_states import IntentKind
from billing.provider_values import GatewayError, ProviderAccount
from marketplace import audit, events
from marketplace.core.errors import DomainError, InvalidValue, NotFound, StateConflict
from marketplace.models import Organization
from marketplace.states import EventKind

SEEN_FRESH_SECONDS = 900  # what the provider said of an account is good for this long
ACCOUNTS_PER_RUN_MAX = 50
EMAIL_LENGTH_MAX = 254
_EMAIL_FORM = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
FIRST = "rule:first_account"  # who approves an owner's first account


class OnboardingUnavailable(DomainError):
    """The provider does not answer at the moment; nothing was changed."""

    code = "onboarding_unavailable"
    title = "The payment provider does not answer"


class NotAnotherPerson(DomainError):
    """Whoever asked for an account cannot approve it."""

    code = "payout_account_needs_second_person"
    title = "A second person has to approve this"


@transaction.atomic
def ask(
    *, owner: Organization, email: str, country: str, at: dt.datetime, actor: str
) -> PayoutAccount:
    """Ask for an account to which an owner's money goes: its first, or one that shall replace it.

    :raises InvalidValue: when the organization sells nothing, or the address or country makes no sense.
    :raises StateConflict: while another one waits to be approved.
    """
    if not owner.is_owner:
        raise InvalidValue("only an organization that sells is paid")
    if len(email) > EMAIL_LENGTH_MAX or not _EMAIL_FORM.fullmatch(email):
        raise InvalidValue("is no address", pointer="/email")
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise InvalidValue("two capital letters as in ISO 3166-1", pointer="/country")
    is_first = not PayoutAccount.objects.filter(owner=owner, retired_at__isnull=True).exists()
    account = PayoutAccount(
        owner=owner,
        requested_by=actor,
        requested_at=at,
        approved_by=FIRST if is_first else "",
        usable_at=at if is_first else None,
    )
    try:
        with transaction.atomic():
            account.save(force_insert=True)
    except IntegrityError as error:
        if violated_constraint(error) != "payout_account_is_asked_for_once":
            raise
        raise StateConflict("another account waits to be approved") from error
    intents.write(
        kind=IntentKind.ACCOUNT,
        subject_id=account.pk,
        organization=owner,
        params={
            "name": owner.name,
            "email": email,
            "country": country,
            "metadata": {"owner": owner.pk, "payout_account": account.pk},
        },
        at=at,
    )
    _trail(account, action="payout_account.requested", at=at, actor=actor)
    if not is_first:
        _tell(account, occasion="requested", at=at)
    return account


@transaction.atomic
def approve(*, account_id: str, at: dt.datetime, actor: str) -> PayoutAccount:
    """Let a changed account be used once it has cooled off.

    :raises NotAnotherPerson: when the same person asked for it.
    :raises StateConflict: when it was approved or withdrawn before.
    """
    account = PayoutAccount.objects.select_related("owner").get(pk=account_id)
    if account.requested_by == actor:
        raise NotAnotherPerson(f"{actor} asked for this account")
    usable_at = at + dt.timedelta(seconds=settings.PAYOUT_ACCOUNT_COOL_OFF_SECONDS)
    changed = PayoutAccount.objects.filter(
        pk=account_id, approved_by="", usable_at__isnull=True, retired_at__isnull=True
    ).update(approved_by=actor, usable_at=usable_at)
    if not changed:
        raise StateConflict(f"{account_id} was decided before")
    account.approved_by, account.usable_at = actor, usable_at
    _trail(account, action="payout_account.approved", at=at, actor=actor)
    _tell(account, occasion="approved", at=at)
    return account


@transaction.atomic
def withdraw(*, account_id: str, at: dt.datetime, actor: str) -> None:
    """Drop an account that is not in use yet: refused, or not the owner's wish after all.

    :raises StateConflict: when it is in use.
    """
    account = PayoutAccount.objects.select_related("owner").get(pk=account_id)
    is_used = account.usable_at is not None and account.usable_at <= at
    changed = (
        0
        if is_used
        else PayoutAccount.objects.filter(pk=account_id, retired_at__isnull=True).update(
            retired_at=at
        )
    )
    if not changed:
        raise StateConflict(f"{account_id} is in use, or gone")
    _trail(account, action="payout_account.withdrawn", at=at, actor=actor)
    _tell(account, occasion="withdrawn", at=at)


def current(*, owner: Organization, at: dt.datetime) -> PayoutAccount | None:
    """Return the account to which an owner's money goes now: the newest that may be used."""
    usable = PayoutAccount.objects.filter(owner=owner, usable_at__lte=at, retired_at__isnull=True)
    return usable.order_by("-usable_at", "-pk").first()


def latest(*, owner: Organization) -> PayoutAccount:
    """Return the account that an owner asked for last.

    :raises NotFound: when it never did.
    """
    found = PayoutAccount.objects.filter(owner=owner, retired_at__isnull=True).first()
    if found is None:
        raise NotFound("no account to which money could be sent")
    return found


def link(*, account: PayoutAccount) -> str | None:
    """Return the address of the provider's own form, which lives for minutes; None before it knows the owner.

    Calls the provider: no transaction may be open.

    :raises OnboardingUnavailable: when the provider does not answer.
    """
    if not account.provider_id:
        return None
    home = f"{settings.BASE_URL}/v1/docs"
    try:
        return gateway.account_link(
            account_id=account.provider_id, refresh_url=home, return_url=home
        )
    except GatewayError as error:
        raise OnboardingUnavailable("try again in a moment") from error


def read_due(*, at: dt.datetime) -> int:
    """Ask the provider which accounts may receive; return how many were read. No transaction may be open."""
    stale = at - dt.timedelta(seconds=SEEN_FRESH_SECONDS)
    known = PayoutAccount.objects.filter(retired_at__isnull=True).exclude(provider_id="")
    waiting = known.exclude(seen_at__gt=stale).order_by("seen_at")[:ACCOUNTS_PER_RUN_MAX]
    return sum(read(account=account, at=at) for account in waiting)


def read(*, account: PayoutAccount, at: dt.datetime) -> bool:
    """Ask the provider about one account; say whether it answered."""
    try:
        made = gateway.read_account(account_id=account.provider_id)
    except GatewayError:
        return False
    seen(account_id=account.pk, made=made, at=at)
    return True


def seen(*, account_id: str, made: ProviderAccount, at: dt.datetime) -> None:
    """Remember what the provider says of an account."""
    PayoutAccount.objects.filter(pk=account_id).update(
        provider_id=made.id, receives=made.receives, missing=made.missing, seen_at=at
    )


def _trail(account: PayoutAccount, *, action: str, at: dt.datetime, actor: str) -> None:
    audit.record(
        at=at,
        actor=actor,
        action=action,
        object_id=account.pk,
        organization=account.owner,
        detail={"usable_at": account.usable_at and account.usable_at.isoformat()},
    )


def _tell(account: PayoutAccount, *, occasion: str, at: dt.datetime) -> None:
    """Tell the owner of every step: whoever did not ask for it has until the end of the cool-off."""
    events.record(
        organization=account.owner,
        kind=EventKind.PAYOUT_ACCOUNT_CHANGED,
        object_id=account.pk,
        data={
            "step": occasion,
            "usable_at": account.usable_at and account.usable_at.isoformat(),
        },
        at=at,
        key=f"{account.pk}:{occasion}",
    )
