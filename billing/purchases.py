"""What a purchase puts into the books, from wherever it is paid."""

import datetime as dt

from billing import accounts, ledger, tax, wallet_holds
from billing.models import WalletHold
from billing.states import AccountKind, EntryKind
from scheduler.models import Reservation

reservation_account = accounts.of_reservation


def post(
    *,
    reservation: Reservation,
    at: dt.datetime,
    source: ledger.AccountRef | None = None,
    held: WalletHold | None = None,
    promoted_minor: int = 0,
) -> None:
    """Move the price from its source to what is deferred, and open the reservation's GPU-second books.

    With the price goes its tax, by the terms that were frozen when the quote was accepted. Of a price that is
    paid in two parts it is the deposit that moves; the GPU-seconds are bought in full.

    The source is the tenant's wallet where none is named, into which a card's payment comes as well; that of
    an invoice is what is receivable. What was held for the order is spent first, but for what promotions
    have paid into the wallet for it.

    :raises ledger.InsufficientFunds: when the wallet does not cover the price.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    tenant, currency = reservation.organization, reservation.currency
    key = f"purchase:{reservation.id}"
    payer = source or accounts.wallet(organization=tenant, currency=currency)
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
    )
    opened, bought = (
        accounts.of_reservation(kind=kind, reservation=reservation)
        for kind in (AccountKind.U_OPEN, AccountKind.U_BOUGHT)
    )
    due_minor = reservation.total_minor - reservation.unpaid_minor
    part = tax.part_of(reservation=reservation, key=key, charged=due_minor)
    captured_minor = wallet_holds.captured_minor(
        held, of_minor=due_minor + part.charged - promoted_minor
    )
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.PURCHASE,
        subject_id=reservation.id,
        effective_at=at,
        legs=ledger.differences(
            [
                (payer, deferred, due_minor),
                *tax.rows(part, reservation=reservation, payer=payer, payee=payer),
                *wallet_holds.rows(held, payer=payer, captured_minor=captured_minor),
                (opened, bought, gpu_seconds_bought(reservation=reservation)),
            ]
        ),
    )
    tax.note(part, reservation=reservation, entry=entry, at=at)
    if held is not None:
        wallet_holds.resolve(held, bought_by=entry, captured_minor=captured_minor, at=at)


def post_balance(*, reservation: Reservation, net_minor: int, at: dt.datetime) -> None:
    """Move the rest of a price, of which the deposit was bought before, with what is left of its tax.

    :raises ledger.InsufficientFunds: when the wallet does not cover it.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    tenant, currency = reservation.organization, reservation.currency
    key = f"balance:{reservation.id}"
    payer = accounts.wallet(organization=tenant, currency=currency)
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
    )
    part = tax.part_of(reservation=reservation, key=key, charged=net_minor)
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.BALANCE,
        subject_id=reservation.id,
        effective_at=at,
        legs=ledger.differences(
            [
                (payer, deferred, net_minor),
                *tax.rows(part, reservation=reservation, payer=payer, payee=payer),
            ]
        ),
    )
    tax.note(part, reservation=reservation, entry=entry, at=at)


def capture_invoice(*, reservation: Reservation, invoice_id: str, at: dt.datetime) -> None:
    """Buy on account: the invoice is issued, and to be paid later."""
    source = accounts.of_object(
        kind=AccountKind.RECEIVABLE,
        object_id=invoice_id,
        currency=reservation.currency,
        organization=reservation.organization,
    )
    post(reservation=reservation, at=at, source=source)


def price_with_tax(*, reservation: Reservation) -> int:
    """Return what a reservation costs with its tax, in minor units: what the tenant is asked for."""
    return tax.gross_minor(
        net_minor=reservation.total_minor, terms=tax.terms_of(reservation=reservation)
    )


def due_now_with_tax(*, reservation: Reservation) -> int:
    """Return what confirms a reservation, with its tax: the whole price, or its deposit."""
    return tax.gross_minor(
        net_minor=reservation.total_minor - reservation.unpaid_minor,
        terms=tax.terms_of(reservation=reservation),
    )


def gpu_seconds_bought(*, reservation: Reservation) -> int:
    """Return the GPU-seconds that a reservation promises."""
    return reservation.gpus * reservation.window.seconds
