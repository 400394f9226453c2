"""What a purchase puts into the books, from wherever it is paid."""

import datetime as dt

from billing import accounts, ledger, parking
from billing.states import AccountKind, EntryKind
from scheduler.models import Reservation

reservation_account = accounts.of_reservation


def post(
    *, reservation: Reservation, at: dt.datetime, source: ledger.AccountRef | None = None
) -> None:
    """Move the price from its source to what is deferred, and open the reservation's GPU-second books.

    The source is the tenant's wallet where none is named; a card's payment comes from the clearing account
    of its object, an invoice's from what is receivable, a held price from its hold.

    :raises ledger.InsufficientFunds: when the wallet does not cover the price.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    tenant, currency = reservation.organization, reservation.currency
    parking.require_moving(organization=tenant)
    ledger.post(
        idempotency_key=f"purchase:{reservation.id}",
        kind=EntryKind.PURCHASE,
        subject_id=reservation.id,
        effective_at=at,
        legs=[
            *ledger.transfer(
                debited=source or accounts.wallet(organization=tenant, currency=currency),
                credited=accounts.of_reservation(
                    kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
                ),
                amount=reservation.total_minor,
            ),
            *ledger.transfer(
                debited=accounts.of_reservation(kind=AccountKind.U_OPEN, reservation=reservation),
                credited=accounts.of_reservation(
                    kind=AccountKind.U_BOUGHT, reservation=reservation
                ),
                amount=gpu_seconds_bought(reservation=reservation),
            ),
        ],
    )


def hold(*, reservation: Reservation, at: dt.datetime) -> None:
    """Take the price out of the wallet before the purchase, so that nothing else spends it meanwhile.

    :raises ledger.InsufficientFunds: when the wallet does not cover the price.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    tenant, currency = reservation.organization, reservation.currency
    parking.require_moving(organization=tenant)
    ledger.post(
        idempotency_key=f"hold:{reservation.id}",
        kind=EntryKind.HOLD,
        subject_id=reservation.id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.wallet(organization=tenant, currency=currency),
            credited=_hold_of(reservation),
            amount=reservation.total_minor,
        ),
    )


def void_hold(*, reservation: Reservation, at: dt.datetime) -> None:
    """Give a held price back to the wallet: the purchase did not come about."""
    ledger.post(
        idempotency_key=f"void:{reservation.id}",
        kind=EntryKind.VOID,
        subject_id=reservation.id,
        effective_at=at,
        legs=ledger.transfer(
            debited=_hold_of(reservation),
            credited=accounts.wallet(
                organization=reservation.organization, currency=reservation.currency
            ),
            amount=reservation.total_minor,
        ),
    )


def capture_hold(*, reservation: Reservation, at: dt.datetime) -> None:
    """Buy with the price that is held. A hold is captured or voided: the guard lets nobody do both."""
    post(reservation=reservation, at=at, source=_hold_of(reservation))


def capture_payment(*, reservation: Reservation, object_id: str, at: dt.datetime) -> None:
    """Buy with a payment that the provider has taken: `object_id` names it there."""
    source = accounts.of_object(
        kind=AccountKind.PSP_CLEARING, object_id=object_id, currency=reservation.currency
    )
    post(reservation=reservation, at=at, source=source)


def capture_invoice(*, reservation: Reservation, invoice_id: str, at: dt.datetime) -> None:
    """Buy on account: the invoice is issued, and to be paid later."""
    source = accounts.of_object(
        kind=AccountKind.RECEIVABLE,
        object_id=invoice_id,
        currency=reservation.currency,
        organization=reservation.organization,
    )
    post(reservation=reservation, at=at, source=source)


def gpu_seconds_bought(*, reservation: Reservation) -> int:
    """Return the GPU-seconds that a reservation promises."""
    return reservation.gpus * reservation.window.seconds


def _hold_of(reservation: Reservation) -> ledger.AccountRef:
    return accounts.of_reservation(
        kind=AccountKind.HOLD, reservation=reservation, currency=reservation.currency
    )
