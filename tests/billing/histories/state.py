"""What is true in the end, without the ids, the instants and the order of learning it."""

from collections.abc import Iterable
from typing import Any

from django.db.models import Case, F, Sum, When

from billing import books, provider_books, reconcile
from billing.models import (
    Account,
    BalanceTransaction,
    CardRefund,
    CreditSale,
    Deposit,
    Dispute,
    Intent,
    Payer,
    Payment,
    Payout,
    PayoutAccount,
    Refund,
    Reversal,
    TopUpDispute,
    Transfer,
)
from billing.provider_states import IntentStatus
from scheduler.models import Allocation, Change, ExtensionHold, Reservation
from tests.billing.histories.market import Market


def final_state(market: Market) -> dict[str, list[Any]]:
    """Return all of it, each row by the name of the organization that it belongs to.

    An hour later everything is old enough to be compared with what the provider says: the differences are
    part of the state, and so is every invariant that is broken.
    """
    market.passes(hours=1)
    provider_books.fetch(at=market.at)
    signed = Case(
        When(postings__side=F("normal_side"), then=F("postings__amount")),
        default=-F("postings__amount"),
    )
    balances = Account.objects.annotate(sum=Sum(signed)).exclude(sum=0)
    return {
        "accounts": _rows(balances.values_list("kind", "currency", "organization__name", "sum")),
        "payments": _rows(
            Payment.objects.values_list(
                "organization__name",
                "purpose",
                "means",
                "status",
                "amount_minor",
                "received_minor",
                "refunded_minor",
            )
        ),
        "card refunds": _rows(
            CardRefund.objects.values_list(
                "payment__organization__name", "status", "amount_minor", "reason"
            )
        ),
        "refunds": _rows(
            Refund.objects.values_list(
                "reservation__organization__name", "status", "amount_minor", "payment__purpose"
            )
        ),
        "disputes": _rows(
            Dispute.objects.values_list(
                "reservation__organization__name",
                "status",
                "amount_minor",
                "fee_minor",
                "set_off_minor",
            )
        ),
        "top-up disputes": _rows(
            TopUpDispute.objects.values_list(
                "payment__organization__name", "status", "amount_minor", "fee_minor"
            )
        ),
        "payers": _rows(
            (name, bool(card), cash)
            for name, card, cash in Payer.objects.values_list(
                "organization__name", "saved_card_id", "cash_minor"
            )
        ),
        "payout accounts": _rows(
            (name, bool(made), receives, str(missing))
            for name, made, receives, missing in PayoutAccount.objects.values_list(
                "owner__name", "provider_id", "receives", "missing"
            )
        ),
        "payouts": _rows(Payout.objects.values_list("owner__name", "status", "amount_minor")),
        "transfers": _rows(
            Transfer.objects.values_list("owner__name", "status", "amount_minor", "reversed_minor")
        ),
        "reversals": _rows(
            Reversal.objects.values_list("transfer__owner__name", "status", "amount_minor")
        ),
        "reservations": _rows(
            Reservation.objects.values_list(
                "organization__name",
                "status",
                "starts_at",
                "ends_at",
                "total_minor",
                "unpaid_minor",
                "is_payment_held",
            )
        ),
        "allocations": _rows(
            Allocation.objects.filter(live=True).values_list(
                "reservation__organization__name", "period"
            )
        ),
        "deposits": _rows(Deposit.objects.values_list("reservation__organization__name", "status")),
        "changes": _rows(
            Change.objects.values_list(
                "reservation__organization__name", "kind", "charged_minor", "refunded_minor"
            )
        ),
        "extensions": _rows(
            (name, made_at is not None, dropped_at is not None)
            for name, made_at, dropped_at in ExtensionHold.objects.values_list(
                "reservation__organization__name", "made_at", "dropped_at"
            )
        ),
        "sales on account": _rows(
            CreditSale.objects.values_list("organization__name", "amount_minor")
        ),
        "calls without outcome": _rows(
            Intent.objects.exclude(
                status__in=(IntentStatus.DONE, IntentStatus.REFUSED)
            ).values_list("organization__name", "kind", "status")
        ),
        "bookings": _rows(
            (category, amount, fee, matched_at is not None)
            for category, amount, fee, matched_at in BalanceTransaction.objects.values_list(
                "category", "amount_minor", "fee_minor", "matched_at"
            )
        ),
        "differences": [(row.kind, row.detail) for row in reconcile.run(at=market.at)],
        "breaches": [
            (check.name, str(check)) for check in books.check(at=market.at).checks if not check.ok
        ],
    }


def _rows(values: Iterable[tuple[Any, ...]]) -> list[Any]:
    return sorted(values, key=repr)
