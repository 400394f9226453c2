"""What the provider booked on our balance, fetched one by one and matched with what we know of it.

Each booking is fetched once. Some make an entry here: a charge clears the payment it belongs to and brings
the provider's fee, a refund that came back clears the refund. Others only confirm an entry that was made when
we learnt of their object. What matches nothing stays unmatched, and the reconciliation lists it.
"""

import datetime as dt
from collections.abc import Callable

import structlog
from django.db import transaction

from billing import accounts, ledger, provider, provider_money, watermarks
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
    """Match the bookings whose objects are known by now; return how many were."""
    waiting = BalanceTransaction.objects.filter(matched_at__isnull=True).order_by(
        "created_at", "pk"
    )
    ids = list(waiting.values_list("pk", flat=True)[:ROWS_PER_RUN_MAX])
    return sum(_match(transaction_id=pk, at=at) for pk in ids)


def make_available(*, at: dt.datetime) -> int:
    """Move what charges brought to what can be used, once the provider lets it be; return how many."""
    due = BalanceTransaction.objects.filter(
        category="charge",
        matched_at__isnull=False,
        made_available_at__isnull=True,
        available_at__lte=at,
    )
    count = 0
    for pk in due.order_by("available_at").values_list("pk", flat=True)[:ROWS_PER_RUN_MAX]:
        with transaction.atomic():
            row = BalanceTransaction.objects.select_for_update(no_key=True).get(pk=pk)
            if row.made_available_at is not None:
                continue
            net = Money(row.amount_minor - row.fee_minor, row.currency)
            provider_money.make_available(transaction_id=row.pk, amount=net, at=at)
            row.made_available_at = at
            row.save(update_fields=["made_available_at"])
            count += 1
    return count


@transaction.atomic
def put_aside(*, transaction_id: str, at: dt.datetime) -> Entry:
    """Book what matches nothing as nobody's yet: in or out of suspense.

    :raises StateConflict: when it is matched.
    """
    row = BalanceTransaction.objects.select_for_update(no_key=True).get(pk=transaction_id)
    if row.matched_at is not None:
        raise StateConflict(f"{transaction_id} is matched")
    net = row.amount_minor - row.fee_minor
    available = _shared(AccountKind.STRIPE_AVAILABLE, row)
    suspense = _shared(AccountKind.SUSPENSE, row)
    entry = _post(
        row,
        kind=EntryKind.SUSPENSE,
        subject_id=row.pk,
        debited=available if net > 0 else suspense,
        credited=suspense if net > 0 else available,
        amount=abs(net),
        at=at,
    )
    _matched(row, subject_id="", entry=entry, at=at)
    return entry


def _store(row: ProviderTransaction) -> bool:
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


@transaction.atomic
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
    if _is_booked_by_its_moves(subject_id):
        return _matched(row, subject_id=subject_id, entry=None, at=at)
    entry = _post(
        row,
        kind=EntryKind.REFUND_SETTLED,
        subject_id=subject_id,
        debited=_clearing(subject_id, row),
        credited=_shared(AccountKind.STRIPE_AVAILABLE, row),
        amount=-row.amount_minor,
        at=at,
    )
    return _matched(row, subject_id=subject_id, entry=entry, at=at)


def _match_failed_refund(row: BalanceTransaction, at: dt.datetime) -> bool:
    subject_id = _refund_of(row.source_id)
    if subject_id is None:
        return False
    if _is_booked_by_its_moves(subject_id):
        return _matched(row, subject_id=subject_id, entry=None, at=at)
    entry = _post(
        row,
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=subject_id,
        debited=_shared(AccountKind.STRIPE_AVAILABLE, row),
        credited=_clearing(subject_id, row),
        amount=row.amount_minor,
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


def _match_payout(row: BalanceTransaction, at: dt.datetime) -> bool:
    """Book what the provider sent to our own bank account, or could not."""
    bank, available = (
        _shared(kind, row) for kind in (AccountKind.BANK, AccountKind.STRIPE_AVAILABLE)
    )
    is_sent = row.amount_minor < 0
    entry = _post(
        row,
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=row.pk,
        debited=bank if is_sent else available,
        credited=available if is_sent else bank,
        amount=abs(row.amount_minor),
        at=at,
    )
    return _matched(row, subject_id=row.source_id, entry=entry, at=at)


def _match_fee(row: BalanceTransaction, at: dt.datetime) -> bool:
    cost = row.fee_minor - row.amount_minor
    fees, available = (
        _shared(kind, row) for kind in (AccountKind.PSP_FEES, AccountKind.STRIPE_AVAILABLE)
    )
    entry = _post(
        row,
        kind=EntryKind.BALANCE_TRANSACTION,
        subject_id=row.pk,
        debited=fees if cost > 0 else available,
        credited=available if cost > 0 else fees,
        amount=abs(cost),
        at=at,
    )
    return _matched(row, subject_id=row.pk, entry=entry, at=at)


def _refund_of(object_id: str) -> str | None:
    refund = CardRefund.objects.filter(provider_id=object_id).values_list("pk", flat=True).first()
    if refund is not None:
        return refund
    asked = Intent.objects.filter(
        kind=IntentKind.REFUND, object_id=object_id, status=IntentStatus.DONE
    )
    return asked.values_list("subject_id", flat=True).first()


def _is_booked_by_its_moves(refund_id: str) -> bool:
    """Say whether a refund is a reservation's: what it takes and brings back is booked by its arrows."""
    return not CardRefund.objects.filter(pk=refund_id).exists()


def _post(
    row: BalanceTransaction,
    *,
    kind: EntryKind,
    subject_id: str,
    debited: ledger.AccountRef,
    credited: ledger.AccountRef,
    amount: int,
    at: dt.datetime,
) -> Entry:
    return ledger.post(
        idempotency_key=f"bt:{row.pk}",
        kind=kind,
        subject_id=subject_id,
        effective_at=at,
        legs=ledger.transfer(debited=debited, credited=credited, amount=amount),
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


# By the provider's reporting category, which is what it asks accountants to go by.
_MATCHERS: dict[str, Callable[[BalanceTransaction, dt.datetime], bool]] = {
    "charge": _match_charge,
    "refund": _match_refund,
    "refund_failure": _match_failed_refund,
    "transfer": _match_intent,
    "transfer_reversal": _match_intent,
    "dispute": _match_dispute,
    "dispute_reversal": _match_dispute,
    "payout": _match_payout,
    "payout_reversal": _match_payout,
    "fee": _match_fee,
}
