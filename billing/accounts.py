"""The names of accounts: which of them belong to whom or to what, in one place.

An account comes into being with its first posting; a name costs nothing.
"""

from billing.ledger import AccountRef
from billing.models import Entry
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.models import Organization
from scheduler.models import Reservation
from scheduler.states import PaymentMethod


def shared(*, kind: AccountKind, currency: str) -> AccountRef:
    """Return the name of an account of the market's own."""
    return AccountRef(kind, currency)


def of_object(
    *,
    kind: AccountKind,
    object_id: str,
    currency: str,
    organization: Organization | None = None,
) -> AccountRef:
    """Return the name of the account of one object: of the provider, a dispute, an invoice, a grant."""
    return AccountRef(kind, currency, object_id, organization)


def tax_payable(*, jurisdiction: str, currency: str) -> AccountRef:
    """Return the name of what was collected for the tax office of a jurisdiction."""
    return AccountRef(AccountKind.TAX_PAYABLE, currency, jurisdiction)


def wallet(*, organization: Organization, currency: str) -> AccountRef:
    """Return the name of an organization's prepaid money."""
    return AccountRef(AccountKind.WALLET, currency, organization.id, organization)


def of_reservation(
    *, kind: AccountKind, reservation: Reservation, currency: str = GPU_SECONDS
) -> AccountRef:
    """Return the name of an account that belongs to one reservation."""
    return AccountRef(kind, currency, reservation.id, reservation.organization)


def refunds_of(*, reservation: Reservation) -> AccountRef:
    """Return where money of a reservation goes back to: the wallet it came from, or what is to be refunded.

    What was paid by card waits in `refund_payable` until it is sent the way it came. What was bought on
    account, a later extension too, waits there until it is set off against what is owed for it; and what a
    promotion paid for, until it is known which part of it is the promotion's.
    """
    is_prepaid = reservation.payment_method == PaymentMethod.WALLET
    if is_prepaid and not reservation.credit_sales.exists() and not _is_promoted(reservation):
        return wallet(organization=reservation.organization, currency=reservation.currency)
    return of_reservation(
        kind=AccountKind.REFUND_PAYABLE, reservation=reservation, currency=reservation.currency
    )


def _is_promoted(reservation: Reservation) -> bool:
    spent = Entry.objects.filter(kind=EntryKind.PROMOTION_SPENT, subject_id=reservation.id)
    return spent.exists()


def owner_accrued(*, lease_id: str, owner: Organization, currency: str) -> AccountRef:
    """Return the name of the account of what a lease earned for its owner and is not yet payable."""
    return AccountRef(AccountKind.OWNER_ACCRUED, currency, lease_id, owner)


def of_owner(*, kind: AccountKind, owner: Organization, currency: str) -> AccountRef:
    """Return the name of an owner's account: payable, reserve or clawback."""
    return AccountRef(kind, currency, owner.id, owner)
