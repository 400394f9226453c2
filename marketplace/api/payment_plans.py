"""In which parts a price can be paid, as quotes and reservations show it."""

from collections.abc import Iterator, Mapping
from typing import Any

from rest_framework import serializers

from billing.deposits import Parts
from billing.models import Deposit
from billing.provider_states import DepositStatus
from marketplace.api.fields import ChoiceField, InstantField, MoneyField, MoneySerializer
from marketplace.core.money import Money

PAYMENT_PLANS = FULL, DEPOSIT = ("full", "deposit")


class PaymentPlanSerializer(serializers.Serializer[Any]):
    """One way to divide a price, with tax: what is paid now, and what when."""

    plan = ChoiceField(choices=[(plan, plan) for plan in PAYMENT_PLANS])
    due_now = MoneySerializer(help_text="with tax")
    balance = MoneySerializer(allow_null=True, help_text="with tax")
    balance_due_at = InstantField(allow_null=True, help_text="the saved card is charged then")


class DepositSerializer(serializers.Serializer[Deposit]):
    """The two parts in which a reservation is paid, and how far that has come."""

    status = ChoiceField(
        choices=DepositStatus.choices,
        help_text="asked: the balance was asked for, and is to be paid by `return_by`; ended: given up",
    )
    deposit = MoneyField(minor="gross_minor", help_text="with tax")
    balance = MoneyField(minor="balance_gross_minor", help_text="with tax")
    balance_due_at = InstantField(
        help_text="the saved card is charged then; it can be paid earlier"
    )
    return_by = InstantField(
        allow_null=True,
        help_text="a balance that could not be charged is paid by then, or the reservation is given up and "
        "the deposit kept",
    )


def plans_of(*, price: Money, parts: Parts | None) -> Iterator[Mapping[str, object]]:
    """Yield the ways in which a price with tax can be divided."""
    yield {"plan": FULL, "due_now": price, "balance": None, "balance_due_at": None}
    if parts is not None:
        yield {
            "plan": DEPOSIT,
            "due_now": Money(parts.gross_minor, price.currency),
            "balance": Money(parts.balance_gross_minor, price.currency),
            "balance_due_at": parts.balance_due_at,
        }
