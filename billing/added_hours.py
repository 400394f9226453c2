"""Pay for what a change adds by card: it is kept until the money is there, or its time is up.

The old window stands until then, and for good where the payment fails. Money that comes too late takes what
was kept again at the promised price, or goes back: exactly that payment.
"""

import datetime as dt
from collections.abc import Callable

from django.db import transaction

from billing import changes, payment_methods, payments, provider, wallet_holds
from billing.models import WalletHold
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from marketplace.models import Organization
from scheduler import changes as scheduled
from scheduler import extensions, held_moves
from scheduler.models import Change, ChangeQuote, ExtensionHold
from scheduler.states import PaymentMethod


@transaction.atomic
def extend(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    with_saved_card: bool,
    saves_card: bool,
    at: dt.datetime,
    actor: str,
) -> Change | ExtensionHold:
    """Keep the hours of a quote and ask for their payment; hours that cost nothing are added at once.

    The payment is asked for by `provider.drive_payment` when this transaction is over.

    :raises PaymentMethodUnavailable: when no provider is connected.
    :raises budgets.BudgetExceeded: when a hard budget does not cover what is added; likewise `ProjectFrozen`.
    :raises payments.NoSavedCard: when the saved card is to pay and there is none.
    :raises InvalidValue: when the amount is less than the provider takes.
    :raises DomainError: whatever refuses the extension; see `scheduler.extensions.hold`.
    """
    return _keep(
        hold=extensions.hold,
        at_once=changes.extend,
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        wishes=_by_card(with_saved_card=with_saved_card, saves_card=saves_card),
        at=at,
        actor=actor,
    )


@transaction.atomic
def rebook(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    with_saved_card: bool,
    saves_card: bool,
    at: dt.datetime,
    actor: str,
) -> Change | ExtensionHold:
    """Keep the window of a quote and ask for what it adds; one that costs nothing more is taken at once.

    The payment is asked for by `provider.drive_payment` when this transaction is over.

    :raises PaymentMethodUnavailable: when no provider is connected.
    :raises budgets.BudgetExceeded: when a hard budget does not cover what is added; likewise `ProjectFrozen`.
    :raises payments.NoSavedCard: when the saved card is to pay and there is none.
    :raises InvalidValue: when the amount is less than the provider takes.
    :raises DomainError: whatever refuses the move; see `scheduler.held_moves.hold`.
    """
    return _keep(
        hold=held_moves.hold,
        at_once=changes.rebook,
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        wishes=_by_card(with_saved_card=with_saved_card, saves_card=saves_card),
        at=at,
        actor=actor,
    )


def _keep(
    *,
    hold: Callable[..., ExtensionHold],
    at_once: Callable[..., Change],
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    wishes: Wishes,
    at: dt.datetime,
    actor: str,
) -> Change | ExtensionHold:
    payment_methods.require_provider(PaymentMethod.CARD, is_connected=provider.is_connected())
    if _costs_nothing(organization=organization, reservation_id=reservation_id, quote_id=quote_id):
        return at_once(
            organization=organization,
            reservation_id=reservation_id,
            quote_id=quote_id,
            payment_method=PaymentMethod.WALLET,
            at=at,
            actor=actor,
        )
    changes.require_allowed(
        organization=organization, reservation_id=reservation_id, quote_id=quote_id, at=at
    )
    # What was held of the wallet goes back before GPUs are taken: money is locked first.
    scheduled.locked(organization=organization, reservation_id=reservation_id)
    if (of_wallet := _held_of_wallet(organization, quote_id=quote_id)) is not None:
        wallet_holds.void(of_wallet, at=at)
    held = hold(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        at=at,
        actor=actor,
    )
    payments.open_for_added_hours(held=held, wishes=wishes, at=at)
    return held


def _by_card(*, with_saved_card: bool, saves_card: bool) -> Wishes:
    return Wishes(means=PaymentMeans.CARD, with_saved_card=with_saved_card, saves_card=saves_card)


def _held_of_wallet(organization: Organization, *, quote_id: str) -> WalletHold | None:
    known = ChangeQuote.objects.visible_to(organization)
    if "\x00" in quote_id or not known.filter(pk=quote_id).exists():
        return None
    return wallet_holds.open_of(quote_id=quote_id)


def _costs_nothing(*, organization: Organization, reservation_id: str, quote_id: str) -> bool:
    if "\x00" in quote_id or "\x00" in reservation_id:
        return False
    known = ChangeQuote.objects.visible_to(organization)
    return known.filter(pk=quote_id, reservation=reservation_id, charge_minor=0).exists()
