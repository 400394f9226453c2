"""What a change of a reservation does to the books: in one transaction with the change itself.

The difference of the totals is charged to the wallet or owed on an invoice, or goes back less the fee; its
tax goes with it, and the tax of the fee stays where it was paid. Of the fee the owners of the GPUs get what
they get of any price: all but the market's share of it, divided by the price of what was given back of each.
"""

import datetime as dt

from django.conf import settings
from django.db import transaction

from billing import (
    accounts,
    budgets,
    credit,
    fee_shares,
    invoices,
    ledger,
    payment_methods,
    promotions,
    purchase_requests,
    receivables,
    tax,
    top_up_disputes,
    wallet_holds,
)
from billing.models import CreditTerms, FeeShare, WalletHold
from billing.payment_methods import PaymentMethodUnavailable
from billing.promised import Promise
from billing.purchase_requests import Order
from billing.states import AccountKind, EntryKind
from marketplace.core.money import Money, share_of, split_by_weights
from marketplace.models import Organization
from scheduler import cancellations, extensions, rebookings
from scheduler import changes as scheduled
from scheduler.models import Change, ChangeQuote
from scheduler.states import PaymentMethod

BASIS_POINTS = 10_000
_AT_ONCE = (PaymentMethod.WALLET, PaymentMethod.INVOICE)
Row = tuple[ledger.AccountRef, ledger.AccountRef, int]  # debited, credited, amount


@transaction.atomic
def cancel(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime, actor: str
) -> Change:
    """Leave on the terms of a quote, and give back what is to be given back: one transaction.

    What is still owed for it is owed no more, as far as that goes; the rest goes to the wallet.

    :raises DomainError: whatever refuses the cancellation; see `scheduler.cancellations.cancel`.
    """
    receivables.lock_refund(
        reservation=scheduled.locked(organization=organization, reservation_id=reservation_id)
    )
    change = cancellations.cancel(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        at=at,
        actor=actor,
    )
    post(change=change)
    _set_off(change)
    return change


@transaction.atomic
def extend(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    payment_method: str,
    at: dt.datetime,
    actor: str,
) -> Change:
    """Extend on the terms of a quote, and take what is added from the wallet or on account: one transaction.

    The old end stands if the payment fails.

    :raises PaymentMethodUnavailable: for `bank_transfer`; by card see `billing.added_hours`.
    :raises budgets.BudgetExceeded: when a hard budget does not cover what is added; likewise `ProjectFrozen`.
    :raises credit.CreditNotGranted: when nothing can be bought on account; likewise `CreditLimitExceeded`
        with the missing amount, and `InvoiceOverdue`.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover it.
    :raises DomainError: whatever refuses the extension; see `scheduler.extensions.extend`.
    """
    require_allowed(
        organization=organization, reservation_id=reservation_id, quote_id=quote_id, at=at
    )
    terms = _require_means(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        payment_method=payment_method,
        at=at,
    )
    change = extensions.extend(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        at=at,
        actor=actor,
    )
    _post_paid(change, terms=terms)
    return change


@transaction.atomic
def rebook(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    payment_method: str,
    at: dt.datetime,
    actor: str,
) -> Change:
    """Give a reservation the window of a quote; the difference is paid or goes back: one transaction.

    The old window stands if the payment fails.

    :raises PaymentMethodUnavailable: for `bank_transfer`; by card see `billing.added_hours`.
    :raises budgets.BudgetExceeded: when a hard budget does not cover what is added; likewise `ProjectFrozen`.
    :raises credit.CreditNotGranted: when nothing can be bought on account; likewise `CreditLimitExceeded`
        with the missing amount, and `InvoiceOverdue`.
    :raises ledger.InsufficientFunds: with the missing amount, when the wallet does not cover it.
    :raises DomainError: whatever refuses the change; see `scheduler.rebookings.rebook`.
    """
    require_allowed(
        organization=organization, reservation_id=reservation_id, quote_id=quote_id, at=at
    )
    terms = _require_means(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        payment_method=payment_method,
        at=at,
    )
    change = rebookings.rebook(
        organization=organization,
        reservation_id=reservation_id,
        quote_id=quote_id,
        at=at,
        actor=actor,
    )
    _post_paid(change, terms=terms)
    _set_off(change)
    return change


def post(
    *,
    change: Change,
    payer: ledger.AccountRef | None = None,
    held: WalletHold | None = None,
    spends_promotions: bool = True,
) -> None:
    """Write a change into the books of its reservation; nothing where nothing was paid.

    What is added is charged to the tenant's wallet where no other payer is named: first to what was held of
    it for the order, but for what promotions pay. They pay nothing of what a card has paid for.

    :raises ledger.InsufficientFunds: when the wallet does not cover what is added.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    reservation = change.reservation
    fee_for_owners = _fee_for_owners(change)
    key = f"change:{change.id}"
    part = tax.part_of(
        reservation=reservation,
        key=key,
        charged=change.charged_minor,
        refunded=change.refunded_minor,
    )
    charged, promoted_minor = change.charged_minor + part.charged, 0
    by_promotions = spends_promotions and payer is None
    if by_promotions and change.charged_minor and reservation.payment_method in _AT_ONCE:
        promoted_minor = promotions.spend(
            reservation=reservation, amount_minor=charged, key=change.id, at=change.at
        )
    captured_minor = wallet_holds.captured_minor(held, of_minor=charged - promoted_minor)
    payer = payer or accounts.wallet(
        organization=reservation.organization, currency=change.currency
    )
    money = _money(change, payer=payer, fee_for_market=change.fee_minor - fee_for_owners, part=part)
    from_hold = wallet_holds.rows(held, payer=payer, captured_minor=captured_minor)
    legs = ledger.differences([*money, *from_hold, *_seconds(change)])
    if legs:
        entry = ledger.post(
            idempotency_key=key,
            kind=EntryKind.CHANGE,
            subject_id=change.id,
            effective_at=change.at,
            legs=legs,
        )
        tax.note(part, reservation=reservation, entry=entry, at=change.at)
        if held is not None:
            wallet_holds.resolve(held, bought_by=entry, captured_minor=captured_minor, at=change.at)
    if fee_for_owners:
        _share_out(change, amount=fee_for_owners)


def require_allowed(
    *, organization: Organization, reservation_id: str, quote_id: str, at: dt.datetime
) -> None:
    """Refuse what budgets and limits do not allow; a quote that cannot be used is refused where it is."""
    if "\x00" in quote_id or "\x00" in reservation_id:
        return
    quotes = ChangeQuote.objects.visible_to(organization).select_related("reservation")
    quote = quotes.filter(
        pk=quote_id, reservation=reservation_id, used_at__isnull=True, expires_at__gt=at
    ).first()
    promise = Promise.after(quote) if quote is not None else None
    if quote is not None and promise is not None:
        budgets.require(
            organization=organization,
            project=quote.reservation.project,
            promise=promise,
            at=at,
            instead_of=quote.reservation,
        )
        purchase_requests.require(order=Order.of_change(quote))


def _require_means(
    *,
    organization: Organization,
    reservation_id: str,
    quote_id: str,
    payment_method: str,
    at: dt.datetime,
) -> CreditTerms | None:
    """Refuse ways to pay that need an answer from outside; return the terms of what is added on account.

    What is changed is changed at once, or not. Locks the reservation, and then the money that moves: what is
    held for the order, what its tenant may owe, its promotions and its wallet, before GPUs.
    """
    method = payment_methods.named(payment_method)
    if method not in _AT_ONCE:
        raise PaymentMethodUnavailable(
            f"What is added to a reservation is paid from the wallet or on account, not by "
            f"{method}.",
            pointer="/payment_method",
        )
    reservation = scheduled.locked(organization=organization, reservation_id=reservation_id)
    usable = ChangeQuote.objects.filter(
        reservation=reservation, used_at__isnull=True, expires_at__gt=at
    )
    promised = usable.filter(pk=quote_id).first() if "\x00" not in quote_id else None
    if promised is None:
        return None  # the scheduler refuses it
    if not promised.charge_minor:
        receivables.lock_refund(reservation=reservation)
        return None
    gross_minor = tax.gross_minor(
        net_minor=promised.charge_minor, terms=tax.terms_of(reservation=reservation)
    )
    held = wallet_holds.open_of(quote_id=promised.pk)
    if method == PaymentMethod.INVOICE:
        terms = credit.require(
            organization=organization, amount=Money(gross_minor, promised.currency), at=at
        )
        if held is not None:
            wallet_holds.void(held, at=at)
        return terms
    top_up_disputes.square(organization=organization, at=at)
    given = promotions.lock_minor(organization=organization, currency=promised.currency, at=at)
    ledger.require_funds(
        account=accounts.wallet(organization=organization, currency=promised.currency),
        amount=max(gross_minor - given - (held.amount_minor if held else 0), 0),
    )
    return None


def _post_paid(change: Change, *, terms: CreditTerms | None) -> None:
    """Write a change into the books, what it adds charged to the wallet, or owed where there are terms."""
    if not change.charged_minor:
        post(change=change)
        return
    if terms is None:
        post(change=change, held=wallet_holds.open_of(quote_id=change.quote_id))
        return
    reservation = change.reservation
    invoice = invoices.issue_for_change(
        change=change, due_at=credit.due_at(terms=terms, at=change.at), at=change.at
    )
    owed = receivables.account(
        organization=reservation.organization, invoice_id=invoice.id, currency=change.currency
    )
    post(change=change, payer=owed)
    credit.note_sale(
        terms=terms, reservation=reservation, change=change, invoice=invoice, at=change.at
    )


def _set_off(change: Change) -> None:
    """Let what a change gives back be owed no more, in the same transaction."""
    reservation = change.reservation
    waits = accounts.refunds_of(reservation=reservation).kind == AccountKind.REFUND_PAYABLE
    if change.refunded_minor and waits and reservation.payment_method in _AT_ONCE:
        receivables.offset(reservation=change.reservation, at=change.at)


def _money(
    change: Change, *, payer: ledger.AccountRef, fee_for_market: int, part: tax.TaxPart
) -> list[Row]:
    """Return what moves between the tenant, what is deferred and the market's part of the fee.

    The owners' parts stay deferred here and leave by entries of their own: a large reservation may have
    more owners than an entry has room for.
    """
    reservation, currency = change.reservation, change.currency
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
    )
    fees = accounts.shared(kind=AccountKind.CANCELLATION_FEE, currency=currency)
    back = accounts.refunds_of(reservation=reservation)
    return [
        (payer, deferred, change.charged_minor),
        (deferred, back, change.refunded_minor),
        (deferred, fees, fee_for_market),
        *tax.rows(part, reservation=reservation, payer=payer, payee=back),
    ]


def _seconds(change: Change) -> list[Row]:
    """Return what is bought anew, and what is given back, of the reservation's GPU-seconds."""
    opened, bought, given_back = (
        accounts.of_reservation(kind=kind, reservation=change.reservation)
        for kind in (AccountKind.U_OPEN, AccountKind.U_BOUGHT, AccountKind.U_RELEASED)
    )
    return [
        (opened, bought, change.gpu_seconds_added),
        (given_back, opened, change.gpu_seconds_released),
    ]


def _fee_for_owners(change: Change) -> int:
    for_market = share_of(
        total_minor=change.fee_minor,
        part=change.reservation.fee_basis_points,
        whole=BASIS_POINTS,
    )
    return change.fee_minor - for_market


def _share_out(change: Change, *, amount: int) -> None:
    """Give each owner its part of the fee, by the price of what it had kept for the tenant."""
    worth_by_owner = sorted(change.given_back_by_owner.items())
    owners = Organization.objects.in_bulk([owner_id for owner_id, _ in worth_by_owner])
    parts = split_by_weights(total_minor=amount, weights=[worth for _, worth in worth_by_owner])
    reservation = change.reservation
    for (owner_id, _), part in zip(worth_by_owner, parts, strict=True):
        if not part:
            continue
        owner = owners[owner_id]
        share = FeeShare(
            change=change,
            owner=owner,
            amount_minor=part,
            currency=change.currency,
            created_at=change.at,
            resale_basis_points=settings.RESALE_SHARE_BASIS_POINTS,
            release_due_at=change.at + dt.timedelta(seconds=settings.PAYOUT_DELAY_SECONDS),
        )
        share.entry = ledger.post(
            idempotency_key=f"fee_share:{change.id}:{owner.id}",
            kind=EntryKind.FEE_SHARE,
            subject_id=share.id,
            effective_at=change.at,
            legs=ledger.transfer(
                debited=accounts.of_reservation(
                    kind=AccountKind.DEFERRED, reservation=reservation, currency=change.currency
                ),
                credited=fee_shares.accrued(
                    share_id=share.id, owner=owner, currency=change.currency
                ),
                amount=part,
            ),
        )
        share.save(force_insert=True)
