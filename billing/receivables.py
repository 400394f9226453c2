"""What tenants owe on invoices: paid, set off, or written off by two people.

What was written off is owed no more, and still a loss: what comes of it after all, by a payment, a refund or
a credit for the same sale, makes that loss smaller before any of it is the tenant's to spend.
"""

import datetime as dt

from django.db import transaction

from billing import accounts, bad_debts, ledger, parking, promotions, tax_relief
from billing.models import Account, Entry
from billing.states import AccountKind, EntryKind
from marketplace import events
from marketplace.core.errors import InvalidValue
from marketplace.core.money import Money
from marketplace.models import Organization
from marketplace.states import EventKind
from scheduler.models import Reservation
from scheduler.states import PaymentMethod

# What was paid this way goes back the way it came: see `billing.reservation_refunds`.
_SENT_BACK = (PaymentMethod.CARD, PaymentMethod.BANK_TRANSFER)


class NothingReceivable(InvalidValue):
    """The invoice is not open by that much: it was paid, credited or written off."""

    code = "nothing_receivable"
    title = "The invoice is not open by that much"


def lock(organization: Organization) -> Organization:
    """Let nobody else change what this organization owes until the caller's transaction ends."""
    return Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)


def account(*, organization: Organization, invoice_id: str, currency: str) -> ledger.AccountRef:
    """Return the name of the account of one invoice."""
    return accounts.of_object(
        kind=AccountKind.RECEIVABLE,
        object_id=invoice_id,
        currency=currency,
        organization=organization,
    )


def open_minor(*, organization: Organization, invoice_id: str, currency: str) -> int:
    """Return what is still owed on an invoice, in minor units."""
    owed = account(organization=organization, invoice_id=invoice_id, currency=currency)
    return ledger.kept_balance(account=owed)


@transaction.atomic
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

    What is paid beyond the invoice, and beyond what was given up of it, goes to the wallet.

    :raises ledger.EntryMismatch: when the payment was taken before for another tenant, invoice or amount.
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
    lock(organization)
    key = f"invpay:{payment_id}"
    taken = Entry.objects.filter(idempotency_key=key).first()
    if taken is not None:
        _require_same(taken, source=source, payees=(owed, purse), amount_minor=amount_minor)
        return
    covered = min(amount_minor, ledger.kept_balance(account=owed))
    ledger.post(
        idempotency_key=key,
        kind=EntryKind.PAYMENT,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.differences([(source, owed, covered), (source, purse, amount_minor - covered)]),
    )
    if not parking.is_parked(organizations=[organization]):
        _recover(purse, owed, amount=amount_minor - covered, at=at)
    _tell_if_paid(organization=organization, invoice_id=invoice_id, owed=owed, at=at)


@transaction.atomic
def pay_from_wallet(
    *, organization: Organization, invoice_id: str, payment_id: str, amount: Money, at: dt.datetime
) -> None:
    """Pay an invoice out of the wallet, as far as it is open, and then what was given up of it; once.

    :raises ledger.InsufficientFunds: when the wallet does not hold so much.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    parking.require_moving(organizations=[organization])
    owed = account(organization=organization, invoice_id=invoice_id, currency=amount.currency)
    lock(organization)
    key = f"invpay:{payment_id}"
    recovery_key = f"recovery:{payment_id}"
    if any(ledger.is_posted(idempotency_key=each) for each in (key, recovery_key)):
        return
    purse = accounts.wallet(organization=organization, currency=amount.currency)
    covered = min(amount.amount_minor, ledger.kept_balance(account=owed))
    if covered:
        ledger.post(
            idempotency_key=key,
            kind=EntryKind.PAYMENT,
            subject_id=invoice_id,
            effective_at=at,
            legs=ledger.transfer(debited=purse, credited=owed, amount=covered),
        )
    rest = min(amount.amount_minor - covered, ledger.locked_balance(account=purse))
    covered += _recover(purse, owed, amount=rest, at=at, key=recovery_key)
    if not covered:
        return
    _tell_if_paid(organization=organization, invoice_id=invoice_id, owed=owed, at=at)


@transaction.atomic
def offset(*, reservation: Reservation, at: dt.datetime) -> int:
    """Set what a reservation gives back against what is owed for it; return what was set off or paid out.

    Whoever owes gets no money before it has paid: the invoices come first, the oldest of them first, then
    what was given up of them, and only what was paid goes to the wallet, less what a promotion had paid. What
    the provider once took stays to be refunded the way it came.
    The caller has locked the reservation.
    """
    lock_refund(reservation=reservation)
    organization, currency = reservation.organization, reservation.currency
    payable = accounts.of_reservation(
        kind=AccountKind.REFUND_PAYABLE, reservation=reservation, currency=currency
    )
    waiting = ledger.kept_balance(account=payable)
    left = waiting - _settle_debts(payable, reservation=reservation, amount=waiting, at=at)
    if reservation.payment_method not in _SENT_BACK:
        purse = accounts.wallet(organization=organization, currency=currency)
        _set_off(payable, purse, amount=left, subject_id=reservation.id, at=at)
        promotions.take_back(reservation=reservation, refunded_minor=left, at=at)
        left = 0
    return waiting - left


def lock_refund(*, reservation: Reservation) -> None:
    """Lock all that giving back may move, in the order of `billing/README.md`.

    What the tenant owes, what promotions paid, and its wallet. To be called before anything of the
    reservation is posted, by who has locked it.
    """
    lock(reservation.organization)
    promotions.lock_spent(reservation)
    _lock_wallet(reservation)


def lock_for_credit(*, reservation: Reservation) -> bool:
    """Lock what a credit for a reservation may move: what its tenant owes, if anything, and the wallet.

    Say whether anything is owed, or was given up. To be called before anything of the reservation is posted:
    who waits for either lock must hold no other account.
    """
    is_owed = _is_owed(reservation)
    if is_owed:
        lock(reservation.organization)
    _lock_wallet(reservation)
    return is_owed


def _is_owed(reservation: Reservation) -> bool:
    invoices = reservation.credit_sales.values("invoice_id")
    receivable = Account.objects.filter(
        kind=AccountKind.RECEIVABLE, subject_id__in=invoices, balance__gt=0
    )
    written_off = Entry.objects.filter(kind=EntryKind.WRITE_OFF, subject_id__in=invoices)
    return receivable.exists() or written_off.exists()


def _lock_wallet(reservation: Reservation) -> None:
    purse = accounts.wallet(organization=reservation.organization, currency=reservation.currency)
    ledger.locked_balance(account=purse)


def set_credit_off(*, reservation: Reservation, amount_minor: int, at: dt.datetime) -> int:
    """Let a credit that was just posted to the wallet pay what is owed for the same reservation first.

    Then what was given up of it. Return how much of it did, in minor units. The price and its tax stay as
    they were invoiced, so there is no credit note: it is the tenant's claim, set against ours. The caller has
    locked the tenant.
    """
    purse = accounts.wallet(organization=reservation.organization, currency=reservation.currency)
    return _settle_debts(purse, reservation=reservation, amount=amount_minor, at=at)


def _settle_debts(
    source: ledger.AccountRef, *, reservation: Reservation, amount: int, at: dt.datetime
) -> int:
    """Set an amount against what is owed for a reservation, then what was given up; return how much."""
    debts = [
        account(
            organization=reservation.organization,
            invoice_id=sale.invoice_id,
            currency=reservation.currency,
        )
        for sale in (reservation.credit_sales.order_by("due_at", "pk") if amount else ())
    ]
    left = amount
    for owed in debts:
        covered = min(left, ledger.kept_balance(account=owed))
        _set_off(source, owed, amount=covered, subject_id=owed.subject_id, at=at)
        left -= covered
    for owed in debts:
        left -= _recover(source, owed, amount=left, at=at)
    return amount - left


def _require_same(
    taken: Entry,
    *,
    source: ledger.AccountRef,
    payees: tuple[ledger.AccountRef, ledger.AccountRef],
    amount_minor: int,
) -> None:
    """Refuse to take for a repetition what differs; how a payment was divided then, its entry alone knows.

    :raises ledger.EntryMismatch: when its tenant, its invoice or its amount is another one.
    """
    owed, purse = payees
    came, others = 0, set()
    for posting in taken.postings.select_related("account"):
        if (posting.account.code, posting.account.currency) == (source.code, source.currency):
            came += posting.amount
        else:
            others.add((posting.account.code, posting.account.organization_id))
    tenant = purse.organization
    assert tenant is not None, purse
    same_payees = {(owed.code, tenant.pk), (purse.code, tenant.pk)}
    if taken.subject_id != owed.subject_id or not others <= same_payees:
        raise ledger.EntryMismatch(
            f"This was recorded for {taken.subject_id} before; begin anew to record another payment."
        )
    if came != amount_minor:
        before = Money(came, source.currency)
        raise ledger.EntryMismatch(
            f"This was recorded as {before} before; begin anew to record another payment.",
            pointer="/amount_minor",
        )


def _tell_if_paid(
    *, organization: Organization, invoice_id: str, owed: ledger.AccountRef, at: dt.datetime
) -> None:
    """Tell a tenant, once, that nothing of an invoice is open any more."""
    if ledger.kept_balance(account=owed):
        return
    events.record(
        organization=organization,
        kind=EventKind.INVOICE_PAID,
        object_id=invoice_id,
        data={},
        at=at,
        key=f"{invoice_id}:paid",
    )


def _set_off(
    debited: ledger.AccountRef,
    credited: ledger.AccountRef,
    *,
    amount: int,
    subject_id: str,
    at: dt.datetime,
) -> None:
    """Post one part of an offset; the lock on the organization makes its number its own."""
    if not amount:
        return
    number = Entry.objects.filter(kind=EntryKind.OFFSET, subject_id=subject_id).count() + 1
    ledger.post(
        idempotency_key=f"offset:{subject_id}:{number}",
        kind=EntryKind.OFFSET,
        subject_id=subject_id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=credited, amount=amount),
    )


def _recover(
    source: ledger.AccountRef,
    owed: ledger.AccountRef,
    *,
    amount: int,
    at: dt.datetime,
    key: str = "",
) -> int:
    """Take an amount for what was given up of an invoice, as far as that goes; return how much.

    What a tax office gave up of it is owed again. The caller has locked the organization, and names the key
    where it may come again.
    """
    covered = min(amount, bad_debts.given_up_minor(owed=owed)) if amount else 0
    if not covered:
        return 0
    invoice_id = owed.subject_id
    number = Entry.objects.filter(kind=EntryKind.RECOVERY, subject_id=invoice_id).count() + 1
    entry = ledger.post(
        idempotency_key=key or f"recovery:{invoice_id}:{number}",
        kind=EntryKind.RECOVERY,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.transfer(
            debited=source,
            credited=accounts.shared(kind=AccountKind.BAD_DEBT, currency=owed.currency),
            amount=covered,
        ),
    )
    tax_relief.withdraw_recovered(owed=owed, cause=entry, at=at)
    return covered


@transaction.atomic
def write_off(
    *,
    organization: Organization,
    invoice_id: str,
    amount_minor: int,
    currency: str,
    decision_id: str,
    at: dt.datetime,
) -> None:
    """Give up an amount of an invoice; once per decision, which takes two people: see `billing.approvals`.

    Where a tax office gives relief for it, the tax in it is owed no more: see `billing.tax_relief`.

    :raises NothingReceivable: when the invoice is not open by so much.
    """
    owed = account(organization=organization, invoice_id=invoice_id, currency=currency)
    lock(organization)
    key = f"writeoff:{decision_id}"
    if ledger.is_posted(idempotency_key=key):
        return
    still_owed = ledger.kept_balance(account=owed)
    if not 0 < amount_minor <= still_owed:
        raise NothingReceivable(f"{invoice_id} is open by {still_owed} minor units.")
    relief = tax_relief.of_write_off(owed=owed, amount_minor=amount_minor)
    cost = accounts.shared(kind=AccountKind.BAD_DEBT, currency=currency)
    entry = ledger.post(
        idempotency_key=key,
        kind=EntryKind.WRITE_OFF,
        subject_id=invoice_id,
        effective_at=at,
        legs=ledger.differences(
            [(cost, owed, amount_minor - relief.tax_minor), *tax_relief.rows(relief, owed=owed)]
        ),
    )
    tax_relief.note(relief, entry=entry, at=at)
