"""What the provider booked on our balance, fetched one by one and matched with what we know of it.

Each booking is fetched once. Some make an entry here: a charge clears the payment it belongs to and brings
the provider's fee, a refund that came back clears the refund, and what moved between the provider and our own
bank account, or into what it holds back, is our own money. Others only confirm an entry that was made when we
learnt of their object. What matches nothing stays unmatched, and the reconciliation lists it; a person may
put it aside, and two resolve it then: see `billing.suspense`.
"""

import datetime as dt
from collections.abc import Callable

import structlog
from django.db import transaction

from billing import accounts, ledger, provider, provider_money, runs, watermarks
from billing import stripe_gateway as gateway
from billing.models import (
    BalanceTransaction,
    CardRefund,
    Dispute,
    Entry,
    Intent,
    Payment,
    TopUpDispute,
)
from billing.provider_states import IntentKind, IntentStatus, PaymentStatus
from billing.provider_values import GatewayError, ProviderTransaction
from billing.states import AccountKind, EntryKind
from marketplace.core.errors import StateConflict
from marketplace.core.money import Money

log = structlog.get_logger(__name__)

WATERMARK = "balance_transactions"
OVERLAP_SECONDS = 3600  # a booking may appear in the list after later ones
BEGINS_SECONDS = 7 * 86_400  # how far back the first look goes
ROWS_PER_RUN_MAX = 500  # some seconds of work; the next tick takes the rest
# The balance of which `available` and `pending` tell. What is booked on another one of the provider's, such
# as what it holds back, is booked on this one too, with the other sign.
PAYMENTS_BALANCE = "payments"
# What brings money that can be used later only.
_PENDING_FIRST = ("charge", "topup")

Movement = tuple[ledger.AccountRef, ledger.AccountRef, int]  # debited, credited, of either sign


def fetch(*, at: dt.datetime) -> int:
    """Fetch what was booked since the last time, and match it; return how many bookings are new."""
    if not provider.is_connected():
        return 0
    try:
        count = watermarks.read(
            name=WATERMARK,
            overlap_seconds=OVERLAP_SECONDS,
            begins_seconds=BEGINS_SECONDS,
            list_between=gateway.transactions_between,
            store=_store,
            at=at,
        )
    except GatewayError as error:
        log.warning("the provider's bookings could not be listed", error=str(error))
        return 0
    match_all(at=at)
    make_available(at=at)
    return count


def match_all(*, at: dt.datetime) -> int:
    """Match the bookings whose objects are known by now; return how many were.

    One that cannot be matched is logged and left; it keeps no other one waiting.
    """
    waiting = BalanceTransaction.objects.filter(
        matched_at__isnull=True, category__in=_MATCHERS
    ).order_by("created_at", "pk")
    ids = list(waiting.values_list("pk", flat=True)[:ROWS_PER_RUN_MAX])
    return runs.one_by_one(ids, lambda pk: _match(transaction_id=pk, at=at), name="match_bookings")


def make_available(*, at: dt.datetime) -> int:
    """Move what was brought to what can be used, once the provider lets it be; return how many.

    One that cannot be moved is logged and left. What was put aside went to what can be used at once.
    """
    due = (
        BalanceTransaction.objects.filter(
            category__in=_PENDING_FIRST,
            matched_at__isnull=False,
            made_available_at__isnull=True,
            available_at__lte=at,
        )
        .exclude(subject_id="")
        .order_by("available_at", "pk")
    )
    ids = list(due.values_list("pk", flat=True)[:ROWS_PER_RUN_MAX])
    return runs.one_by_one(
        ids, lambda pk: _make_available(transaction_id=pk, at=at), name="make_available"
    )


@transaction.atomic
def put_aside(*, transaction_id: str, at: dt.datetime) -> Entry | None:
    """Book what matches nothing as nobody's yet, in or out of suspense; None where it moved nothing.

    :raises StateConflict: when it is matched.
    """
    row = BalanceTransaction.objects.select_for_update(no_key=True).get(pk=transaction_id)
    if row.matched_at is not None:
        raise StateConflict(f"{transaction_id} is matched")
    available = _shared(AccountKind.STRIPE_AVAILABLE, row)
    suspense = _shared(AccountKind.SUSPENSE, row)
    entry = _post(
        row,
        (available, suspense, row.amount_minor - row.fee_minor),
        kind=EntryKind.SUSPENSE,
        subject_id=row.pk,
        at=at,
    )
    _matched(row, subject_id="", entry=entry, at=at)
    return entry


def _make_available(*, transaction_id: str, at: dt.datetime) -> bool:
    row = (
        BalanceTransaction.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(pk=transaction_id, made_available_at__isnull=True)
        .first()
    )
    if row is None:
        return False
    net = Money(row.amount_minor - row.fee_minor, row.currency)
    provider_money.make_available(transaction_id=row.pk, amount=net, at=at)
    row.made_available_at = at
    row.save(update_fields=["made_available_at"])
    return True


def _store(row: ProviderTransaction) -> bool:
    if row.balance != PAYMENTS_BALANCE:
        return False
    _, is_new = BalanceTransaction.objects.get_or_create(
        pk=row.id,
        defaults={
            "category": row.category[:60],
            "source_id": row.source_id,
            "amount_minor": row.amount_minor,
            "fee_minor": row.fee_minor,
            "currency": row.currency,
            "available_at": row.available_at,
            "created_at": row.created_at,
        },
    )
    return is_new


def _match(*, transaction_id: str, at: dt.datetime) -> bool:
    row = (
        BalanceTransaction.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(pk=transaction_id, matched_at__isnull=True)
        .first()
    )
    matcher = None if row is None else _MATCHERS.get(row.category)
    return row is not None and matcher is not None and matcher(row, at)


def _match_charge(row: BalanceTransaction, at: dt.datetime) -> bool:
    payment = Payment.objects.filter(
        charge_id=row.source_id, status=PaymentStatus.SUCCEEDED
    ).first()
    if payment is None:
        return False
    entry = provider_money.match(
        object_id=payment.pk,
        transaction_id=row.pk,
        amount=Money(row.amount_minor, row.currency),
        fee_minor=row.fee_minor,
        at=at,
    )
    return _matched(row, subject_id=payment.pk, entry=entry, at=at)


def _match_refund(row: BalanceTransaction, at: dt.datetime) -> bool:
    subject_id = _refund_of(row.source_id)
    if subject_id is None:
        return False
    if _is_of_reservation(subject_id):
        # It was booked when it was settled; all but what the provider takes for it, or gives back.
        entry = _post(
            row,
            _fee_of(row),
            kind=EntryKind.BALANCE_TRANSACTION,
            subject_id=subject_id,
            at=at,
        )
        return _matched(row, subject_id=subject_id, entry=entry, at=at)
    available = _shared(AccountKind.STRIPE_AVAILABLE, row)
    entry = _post(
        row,
        (_clearing(subject_id, row), available, -row.amount_minor),
        _fee_of(row),
        kind=EntryKind.REFUND_SETTLED,
        subject_id=subject_id,
        at=at,
    )
    return _matched(row, subject_id=subject_id, entry=entry, at=at)


def _match_failed_refund(row: BalanceTransaction, at: dt.datetime) -> bool:
    subject_id = _refund_of(row.source_id)
    if subject_id is None:
        return False
    if _is_of_reservation(subject_id):
        # It was booked when it failed: out of what we have there if it had been settled, else out of its way.
        entry = _post(
            row,
            _fee_of(row),
            kind=EntryKind.BALANCE_TRANSACTION,
            subject_id=subject_id,
            at=at,
        )
        return _matched(row, subject_id=subject_id, entry=entry, at=at)
    available = _shared(AccountKind.STRIPE_AVAILABLE, row)
    entry = _post(
        row,
        (available, _clearing(subject_id, row), row.amount_minor),
        _fee_of(row),
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=subject_id,
        at=at,
    )
    return _matched(row, subject_id=subject_id, entry=entry, at=at)


def _match_intent(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Confirm a transfer or its reversal: it was booked when its call had its outcome."""
    intent = Intent.objects.filter(
        kind__in=(IntentKind.TRANSFER, IntentKind.REVERSAL),
        object_id=row.source_id,
        status=IntentStatus.DONE,
    ).first()
    return intent is not None and _matched(row, subject_id=intent.subject_id, entry=None, at=at)


def _match_dispute(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Confirm what a dispute took or gave back: it was booked when we learnt of it."""
    is_known = (
        TopUpDispute.objects.filter(pk=row.source_id).exists()
        or Dispute.objects.filter(pk=row.source_id).exists()
    )
    return is_known and _matched(row, subject_id=row.source_id, entry=None, at=at)


def _match_bank(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Book what went from the provider to our own bank account or back, with what that cost."""
    return _match_own(row, at, other=AccountKind.BANK)


def _match_held_back(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Book what the provider holds back of our money, or lets go: ours, and not to be used."""
    return _match_own(row, at, other=AccountKind.STRIPE_RESERVED)


def _match_own(row: BalanceTransaction, at: dt.datetime, *, other: AccountKind) -> bool:
    entry = _post(
        row,
        (_shared(AccountKind.STRIPE_AVAILABLE, row), _shared(other, row), row.amount_minor),
        _fee_of(row),
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=row.pk,
        at=at,
    )
    return _matched(row, subject_id=row.source_id or row.pk, entry=entry, at=at)


def _match_top_up(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Book what we sent to the provider from our own bank account: it can be used once it is available."""
    bank, pending, fees = (
        _shared(kind, row)
        for kind in (AccountKind.BANK, AccountKind.STRIPE_PENDING, AccountKind.PSP_FEES)
    )
    entry = _post(
        row,
        (pending, bank, row.amount_minor - row.fee_minor),
        (fees, bank, row.fee_minor),
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=row.pk,
        at=at,
    )
    return _matched(row, subject_id=row.source_id or row.pk, entry=entry, at=at)


def _match_fee(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Book what the provider, a card network or a tax office takes for its services, or gives back."""
    fees, available = (
        _shared(kind, row) for kind in (AccountKind.PSP_FEES, AccountKind.STRIPE_AVAILABLE)
    )
    entry = _post(
        row,
        (fees, available, row.fee_minor - row.amount_minor),
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=row.pk,
        at=at,
    )
    return _matched(row, subject_id=row.pk, entry=entry, at=at)


def _is_of_reservation(refund_id: str) -> bool:
    """Say whether a refund is a reservation's: its arrows book what the provider does with it."""
    return not CardRefund.objects.filter(pk=refund_id).exists()


def _refund_of(object_id: str) -> str | None:
    refund = CardRefund.objects.filter(provider_id=object_id).values_list("pk", flat=True).first()
    if refund is not None:
        return refund
    asked = Intent.objects.filter(
        kind=IntentKind.REFUND, object_id=object_id, status=IntentStatus.DONE
    )
    return asked.values_list("subject_id", flat=True).first()


def _fee_of(row: BalanceTransaction) -> Movement:
    """Return what the provider takes for a booking, or gives back of that, beside its amount."""
    return (
        _shared(AccountKind.PSP_FEES, row),
        _shared(AccountKind.STRIPE_AVAILABLE, row),
        row.fee_minor,
    )


def _post(
    row: BalanceTransaction, *moved: Movement, kind: EntryKind, subject_id: str, at: dt.datetime
) -> Entry | None:
    """Post what a booking moved; None where that is nothing."""
    legs = ledger.differences(moved)
    if not legs:
        return None
    return ledger.post(
        idempotency_key=f"bt:{row.pk}",
        kind=kind,
        subject_id=subject_id,
        effective_at=at,
        legs=legs,
    )


def _matched(
    row: BalanceTransaction, *, subject_id: str, entry: Entry | None, at: dt.datetime
) -> bool:
    row.subject_id, row.entry, row.matched_at = subject_id, entry, at
    row.save(update_fields=["subject_id", "entry", "matched_at"])
    return True


def _shared(kind: AccountKind, row: BalanceTransaction) -> ledger.AccountRef:
    return accounts.shared(kind=kind, currency=row.currency)


def _clearing(object_id: str, row: BalanceTransaction) -> ledger.AccountRef:
    return accounts.of_object(
        kind=AccountKind.PSP_CLEARING, object_id=object_id, currency=row.currency
    )


# By the provider's reporting category, which is what it asks accountants to go by
# (docs.stripe.com/reports/reporting-categories). An `other_adjustment` explains nothing: a person does.
_MATCHERS: dict[str, Callable[[BalanceTransaction, dt.datetime], bool]] = {
    "charge": _match_charge,
    "refund": _match_refund,
    "refund_failure": _match_failed_refund,
    "transfer": _match_intent,
    "transfer_reversal": _match_intent,
    "dispute": _match_dispute,
    "dispute_reversal": _match_dispute,
    "payout": _match_bank,
    "payout_reversal": _match_bank,
    "topup": _match_top_up,
    "topup_reversal": _match_bank,
    "risk_reserved_funds": _match_held_back,
    "connect_reserved_funds": _match_held_back,
    "fee": _match_fee,
    "network_cost": _match_fee,
    "tax": _match_fee,
}
