"""What an answer says of the quote of a change, and of a change."""

import datetime as dt
from dataclasses import dataclass
from typing import Any, ClassVar

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing import tax
from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    MoneyField,
    MoneySerializer,
    PriceBreakdownField,
    RateField,
    SecondsAsDurationField,
)
from marketplace.api.payments import CardPaymentSerializer
from marketplace.api.views import find
from marketplace.core.money import Money
from scheduler import cancellations
from scheduler.models import Change, ChangeQuote, ExtensionHold, ExtensionHoldQuerySet
from scheduler.states import ChangeKind, ExtensionLimit

CHANGE_STATUSES = MADE, PENDING, DROPPED = ("made", "payment_pending", "dropped")
WAIVERS = (cancellations.NOT_PAID, cancellations.NOT_DELIVERED, cancellations.RECLAIMED)


class LadderStepSerializer(serializers.Serializer[Any]):
    """With at least this notice before the start, this part of what goes back is kept."""

    notice = SecondsAsDurationField()
    fee_basis_points = serializers.IntegerField()


class ChangeQuoteSerializer(serializers.Serializer[ChangeQuote]):
    """What a change will cost or bring, promised until `expires_at` for the reservation as it is.

    `total_after = total_before + charge - refund - fee`. `starts_at` and `ends_at` are null where nothing is
    left of the window.
    """

    id = serializers.CharField()
    kind = ChoiceField(choices=ChangeKind.choices)
    reservation_id = serializers.CharField()
    from_starts_at = InstantField()
    from_ends_at = InstantField()
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    longest_ends_at = InstantField(
        allow_null=True, help_text="of an extension: how far it could have gone"
    )
    longest_limited_by = serializers.SerializerMethodField()
    added_rate = RateField(
        allow_null=True, help_text="per GPU-hour, the mean of what is added; locked"
    )
    price_breakdown = serializers.ListField(
        child=PriceBreakdownField(), help_text="of each part that is added"
    )
    total_before = MoneyField(minor="from_total_minor", help_text="zero before the payment")
    total_after = MoneyField(minor="total_minor")
    unpaid = MoneyField(
        minor="unpaid_minor",
        help_text="of the price, a balance that is not paid: the fee is a share of it too, and takes no "
        "more than was paid",
    )
    charge = MoneyField(minor="charge_minor", help_text="to be paid for what is added")
    refund = MoneyField(
        minor="refund_minor", help_text="owed no more, or goes back to where it was paid from"
    )
    fee = MoneyField(minor="fee_minor", help_text="kept of what is given back")
    charge_tax = serializers.SerializerMethodField(help_text="paid with the charge")
    refund_tax = serializers.SerializerMethodField(help_text="goes back with the refund")
    fee_basis_points = serializers.IntegerField(help_text="of what is given back")
    fee_waived_because = serializers.SerializerMethodField()
    notice = SecondsAsDurationField(
        source="notice_seconds", help_text="until the first start that was bought"
    )
    rule_version = serializers.IntegerField(source="rule.version")
    ladder = serializers.SerializerMethodField()
    created_at = InstantField()
    expires_at = InstantField()

    @extend_schema_field(ChoiceField(choices=[(w, w) for w in WAIVERS], allow_null=True))
    def get_fee_waived_because(self, quote: ChangeQuote) -> str | None:
        return quote.fee_waived_because or None

    @extend_schema_field(ChoiceField(choices=ExtensionLimit.choices, allow_null=True))
    def get_longest_limited_by(self, quote: ChangeQuote) -> str | None:
        return quote.longest_limited_by or None

    @extend_schema_field(MoneySerializer)
    def get_charge_tax(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        part = tax.preview(reservation=quote.reservation, charged=quote.charge_minor)
        return MoneySerializer(Money(part.charged, quote.currency)).data

    @extend_schema_field(MoneySerializer)
    def get_refund_tax(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        part = tax.preview(reservation=quote.reservation, refunded=quote.refund_minor)
        return MoneySerializer(Money(part.refunded, quote.currency)).data

    @extend_schema_field(LadderStepSerializer(many=True))
    def get_ladder(self, quote: ChangeQuote) -> Any:  # noqa: ANN401 - plain values to render
        steps = [{"notice": n, "fee_basis_points": fee} for n, fee in quote.rule.ladder]
        return LadderStepSerializer(steps, many=True).data


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A change that waits for its payment, or was dropped without it, in the shape of one that was made."""

    hold: ExtensionHold

    refunded_minor: ClassVar = 0
    fee_minor: ClassVar = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the hold, or else its quote says
        return getattr(self.hold if name in {"id", "reservation_id"} else self.hold.quote, name)

    @property
    def quote_id(self) -> str:
        return self.hold.quote_id

    @property
    def charged_minor(self) -> int:
        return self.hold.quote.charge_minor

    @property
    def at(self) -> dt.datetime:
        return self.hold.created_at


class ChangeSerializer(serializers.Serializer[Any]):
    """A change that was made, or one that waits for its payment by card."""

    status = serializers.SerializerMethodField(
        help_text="dropped: what was kept was given back, because it was not paid for"
    )
    payment = serializers.SerializerMethodField(help_text="of a change that is not made yet")
    id = serializers.CharField()
    kind = ChoiceField(choices=ChangeKind.choices)
    reservation_id = serializers.CharField()
    quote_id = serializers.CharField()
    from_starts_at = InstantField()
    from_ends_at = InstantField()
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    charged = MoneyField(minor="charged_minor")
    refunded = MoneyField(minor="refunded_minor")
    fee = MoneyField(minor="fee_minor")
    invoice_id = serializers.SerializerMethodField(
        help_text="by which it is owed, where it was bought on account"
    )
    at = InstantField()

    @extend_schema_field(ChoiceField(choices=[(s, s) for s in CHANGE_STATUSES]))
    def get_status(self, change: Change | PendingChange) -> str:
        if isinstance(change, Change):
            return MADE
        return PENDING if change.hold.dropped_at is None else DROPPED

    @extend_schema_field(CardPaymentSerializer(allow_null=True))
    def get_payment(self, change: Change | PendingChange) -> object:
        if isinstance(change, Change):
            return None
        asked = list(change.hold.payments.all())
        return CardPaymentSerializer(asked[0]).data if asked else None

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_invoice_id(self, change: Change | PendingChange) -> str | None:
        if not isinstance(change, Change):
            return None
        sale = getattr(change, "credit_sale", None)
        return sale.invoice_id if sale else None


def of_order(
    *,
    holds: ExtensionHoldQuerySet,
    changes: QuerySet[Change],
    order_id: str,
) -> Any:  # noqa: ANN401 - plain values to render
    """Return how an order of a change stands: made, or as it waits for its payment.

    :raises NotFound: when there is none of this id among those that the caller may see.
    """
    made = changes.filter(pk=order_id).first()
    if made is not None:
        return ChangeSerializer(made).data
    waiting = holds.select_related("quote").prefetch_related("payments")
    return ChangeSerializer(PendingChange(find(waiting, order_id))).data
