"""What tenants owe on invoices: paid, voided, or written off by two people."""

import datetime as dt

from billing import accounts, ledger, tax
from billing.states import AccountKind, EntryKind
from marketplace.core.errors import InvalidValue
from marketplace.models import Organization
from scheduler.models import Reservation


class NothingReceivable(InvalidValue):
    """The invoice is not open by that much: it was paid, credited or written off."""

    code = "nothing_receivable"
    title = "The invoice is not open by that much"


def account(*, organization: Organization, invoice_id: str, currency: str) -> ledger.AccountRef:
    """Return the name of the account of one invoice."""
    return accounts.of_object(
        kind=AccountKind.RECEIVABLE,
        object_id=invoice_id,
        currency=currency,
        organization=organization,
    )


def pay(
    *,
    organization: Organization,
    invoice_id: str,
    payment_id: str,
    amount_minor: int,
    currency: str,
    at: dt.datetime,
    is_by_bank: bool = False,
) -> None:
    """Take a payment for an invoice: by bank transfer, or through the provider; once per payment.

    What is paid beyond the invoice goes to the wallet.
    """
    owed = account(organization=organization, invoice_id=invoice_id, currency=currency)
    source = (
        accounts.shared(kind=AccountKind.BANK, currency=currency)
        if is_by_bank
        else accounts.of_object(
            kind=AccountKind.PSP_CLEARING, object_id=payment_id, currency=currency
        )
    )
    purse = accounts.wallet(organization=organization, currency=currency)
    _lock(organization)
    key = f"invpay:{payment_id}"
    if ledger.is_posted(idempotency_key=key):
        return
    covered = min(amount_minor, max(ledger.balance(account=owed), 0))
    ledger.post(
        idempotency_key=key,
        kind=EntryKind.PAYMENT,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.differences([(source, owed, covered), (source, purse, amount_minor - covered)]),
    )


def void(*, reservation: Reservation, invoice_id: str, at: dt.datetime) -> None:
    """Take back the invoice of a reservation that never started: nobody owes it any more."""
    currency = reservation.currency
    deferred = accounts.of_reservation(
        kind=AccountKind.DEFERRED, reservation=reservation, currency=currency
    )
    still_open = accounts.of_reservation(kind=AccountKind.U_OPEN, reservation=reservation)
    released = accounts.of_reservation(kind=AccountKind.U_RELEASED, reservation=reservation)
    owed = account(organization=reservation.organization, invoice_id=invoice_id, currency=currency)
    key = f"void:{invoice_id}"
    rest = ledger.kept_balance(account=deferred)
    part = tax.part_of(reservation=reservation, key=key, refunded=rest)
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.INVOICE_VOID,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.differences(
            [
                (deferred, owed, rest),
                *tax.rows(part, reservation=reservation, payer=owed, payee=owed),
                (released, still_open, ledger.kept_balance(account=still_open)),
            ]
        ),
    )
    tax.note(part, reservation=reservation, entry=entry, at=at)


def write_off(
    *,
    organization: Organization,
    invoice_id: str,
    amount_minor: int,
    currency: str,
    at: dt.datetime,
) -> None:
    """Give up an amount of an invoice; two people decide that, see `billing.approvals`.

    :raises NothingReceivable: when the invoice is not open by so much.
    """
    owed = account(organization=organization, invoice_id=invoice_id, currency=currency)
    _lock(organization)
    key = f"writeoff:{invoice_id}"
    if ledger.is_posted(idempotency_key=key):
        return
    still_owed = ledger.balance(account=owed)
    if not 0 < amount_minor <= still_owed:
        raise NothingReceivable(f"{invoice_id} is open by {still_owed} minor units.")
    ledger.post(
        idempotency_key=key,
        kind=EntryKind.WRITE_OFF,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=accounts.shared(kind=AccountKind.BAD_DEBT, currency=currency),
            credited=owed,
            amount=amount_minor,
        ),
    )


def _lock(organization: Organization) -> None:
    """Let nobody else change what this organization owes meanwhile: receivables have no guard."""
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
