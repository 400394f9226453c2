"""The accounts that belong to one reservation, and what its purchase puts into them."""

import datetime as dt

from billing import ledger, wallet
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from scheduler.models import Reservation


def post(*, reservation: Reservation, at: dt.datetime) -> None:
    """Move the price from the wallet to what is deferred, and open the reservation's GPU-second books.

    :raises ledger.InsufficientFunds: when the wallet does not cover the price.
    """
    tenant, currency = reservation.organization, reservation.currency
    ledger.post(
        idempotency_key=f"purchase:{reservation.id}",
        kind=EntryKind.PURCHASE,
        subject_id=reservation.id,
        effective_at=at,
        legs=[
            *ledger.transfer(
                debited=wallet.account(organization=tenant, currency=currency),
                credited=reservation_account(
                    kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
                ),
                amount=reservation.total_minor,
            ),
            *ledger.transfer(
                debited=reservation_account(kind=AccountKind.U_OPEN, reservation=reservation),
                credited=reservation_account(kind=AccountKind.U_BOUGHT, reservation=reservation),
                amount=gpu_seconds_bought(reservation=reservation),
            ),
        ],
    )


def reservation_account(
    *, kind: AccountKind, reservation: Reservation, currency: str = GPU_SECONDS
) -> ledger.AccountRef:
    """Return the name of an account that belongs to one reservation."""
    return ledger.AccountRef(kind, currency, reservation.id, reservation.organization)


def gpu_seconds_bought(*, reservation: Reservation) -> int:
    """Return the GPU-seconds that a reservation promises."""
    return reservation.gpus * reservation.window.seconds
