"""The shape of a month's bill as JSON."""

from typing import Any

from rest_framework import serializers

from marketplace.api.bill_documents import BillDocumentSerializer, UndeliveredSerializer
from marketplace.api.budgets import BudgetSerializer
from marketplace.api.fields import ChoiceField, InstantField, MoneySerializer
from scheduler.states import ReservationStatus


class MonthGpuSecondsSerializer(serializers.Serializer[Any]):
    """`opening + bought = delivered + undelivered + released + closing`, `delivered = busy + idle`."""

    promised = serializers.IntegerField(help_text="of the windows, the part within the month")
    opening = serializers.IntegerField(help_text="bought before and then still open")
    bought = serializers.IntegerField(help_text="in the month, for whenever")
    delivered = serializers.IntegerField()
    attached = serializers.IntegerField(
        allow_null=True, help_text="a process held memory; null where nothing measured it"
    )
    busy = serializers.IntegerField(
        allow_null=True, help_text="a kernel ran; null where nothing measured it"
    )
    undelivered = serializers.IntegerField(help_text="refunded")
    released = serializers.IntegerField(help_text="given back by the tenant")
    closing = serializers.IntegerField(help_text="open at the end of the month")
    undelivered_by_reason = UndeliveredSerializer(
        many=True, help_text="adds up to `undelivered`, the most first"
    )


class MonthFiguresSerializer(serializers.Serializer[Any]):
    """`opening + charged = earned + refunded + fees + closing`; credits are beyond the price.

    `billed = charged - refunded` and `effective = earned + fees`. All are without tax but `tax` itself and
    `billed_with_tax`.
    """

    gpu_seconds = MonthGpuSecondsSerializer()
    contracted = MoneySerializer(help_text="the locked price of what is promised in the month")
    opening = MoneySerializer(help_text="paid before and not yet used")
    charged = MoneySerializer()
    earned = MoneySerializer(help_text="for what was delivered")
    refunded = MoneySerializer()
    fees = MoneySerializer(help_text="kept of what was given back")
    closing = MoneySerializer(help_text="paid and not used by the end of the month")
    credits = MoneySerializer(help_text="to the wallet, beyond refunds, and what promotions paid")
    billed = MoneySerializer()
    effective = MoneySerializer()
    tax = MoneySerializer(help_text="charged in the month less what went back")
    billed_with_tax = MoneySerializer()
    list_cost = MoneySerializer(
        help_text="of what was billed, at the published price without surge"
    )
    cost_per_delivered_gpu_hour = serializers.CharField(
        allow_null=True, help_text="effective, by what was delivered"
    )
    cost_per_attached_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_busy_gpu_hour = serializers.CharField(allow_null=True)
    meter_coverage = serializers.CharField(
        allow_null=True, help_text="share of delivered GPU-seconds with readings"
    )
    energy_kwh = serializers.CharField(allow_null=True, help_text="null where nothing was measured")


class MonthRowSerializer(MonthFiguresSerializer):
    """One reservation in the month; without an id: what belongs to none, such as goodwill."""

    reservation_id = serializers.CharField(allow_null=True)
    name = serializers.CharField(allow_blank=True)
    project = serializers.CharField(allow_blank=True)
    tags = serializers.DictField(child=serializers.CharField())
    status = ChoiceField(choices=ReservationStatus.choices, allow_null=True)
    gpu_model = serializers.CharField(allow_null=True)
    region = serializers.CharField(allow_null=True)
    gpus = serializers.IntegerField(allow_null=True)
    starts_at = InstantField(allow_null=True)
    ends_at = InstantField(allow_null=True)
    simulated = serializers.BooleanField(help_text="for GPUs that do not exist")
    bought_by = serializers.CharField(
        allow_null=True, help_text="the API key or the user that bought"
    )
    bought_by_name = serializers.CharField(allow_null=True)
    lease_ids = serializers.ListField(
        child=serializers.CharField(),
        help_text="with time in the month; `/v1/leases/{id}/utilization` has their minutes",
    )


class SharedFiguresSerializer(MonthFiguresSerializer):
    """Some of the reservations, and their part of the whole."""

    share = serializers.CharField(
        allow_null=True, help_text="of the month's effective cost; null where there was none"
    )


class ProjectFiguresSerializer(SharedFiguresSerializer):
    """The reservations of one project; the empty name is of those without one."""

    project = serializers.CharField(allow_blank=True)


class TagFiguresSerializer(SharedFiguresSerializer):
    """The reservations that carry one value of a tag: one with two tags counts under both."""

    tag = serializers.CharField()
    value = serializers.CharField(allow_blank=True)


class BuyerFiguresSerializer(SharedFiguresSerializer):
    """What one user or API key bought; without one: what nobody bought, such as goodwill."""

    bought_by = serializers.CharField(allow_null=True)
    bought_by_name = serializers.CharField(allow_null=True)


class GroupFiguresSerializer(SharedFiguresSerializer):
    """The reservations with one value of what was asked for; null is what has none."""

    value = serializers.CharField(allow_null=True, allow_blank=True)
    name = serializers.CharField(help_text="the value in words: the name of a key")


class AllocationSerializer(serializers.Serializer[Any]):
    """The month divided as asked for: each reservation is in one group, so they add up to the total."""

    group_by = serializers.CharField()
    groups = GroupFiguresSerializer(many=True)


class TrendSerializer(serializers.Serializer[Any]):
    """What a GPU-hour cost in a month; null where there was none."""

    month = serializers.CharField()
    effective = MoneySerializer()
    cost_per_delivered_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_attached_gpu_hour = serializers.CharField(allow_null=True)
    cost_per_busy_gpu_hour = serializers.CharField(allow_null=True)


class AheadOfMonthSerializer(serializers.Serializer[Any]):
    """What is promised in one month to come."""

    month = serializers.CharField()
    reservations = serializers.IntegerField()
    gpu_seconds = serializers.IntegerField()
    contracted = MoneySerializer()


class AnnexSerializer(serializers.Serializer[Any]):
    """Where the evidence is: paths of this API."""

    focus = serializers.ListField(
        child=serializers.CharField(),
        help_text="the month as FOCUS files, each version and dataset",
    )
    utilization = serializers.CharField(
        help_text="the minutes of a lease, hour by hour; with a `lease_id` of a reservation"
    )


class AheadSerializer(serializers.Serializer[Any]):
    """What is promised after the month, or from now on where that is later."""

    since = InstantField()
    reservations = serializers.IntegerField()
    gpu_seconds = serializers.IntegerField()
    contracted = MoneySerializer()
    by_month = AheadOfMonthSerializer(
        many=True, help_text="by month of delivery; months without anything are left out"
    )


class MonthBillSerializer(serializers.Serializer[Any]):
    """A month of UTC: an hour is in the month in which it begins, a correction where it was made."""

    month = serializers.CharField()
    starts_at = InstantField()
    ends_at = InstantField()
    final = serializers.BooleanField(help_text="later evidence is in a later month")
    total = MonthFiguresSerializer()
    reservations = MonthRowSerializer(many=True)
    by_project = ProjectFiguresSerializer(many=True)
    by_tag = TagFiguresSerializer(many=True)
    by_buyer = BuyerFiguresSerializer(many=True)
    untagged = SharedFiguresSerializer(help_text="the reservations without any tag")
    allocation = AllocationSerializer(
        allow_null=True, help_text="divided by `group_by`; null where it was not given"
    )
    trend = TrendSerializer(many=True, help_text="this month and the two before, the oldest first")
    commitments_ahead = AheadSerializer()
    documents = BillDocumentSerializer(
        many=True, help_text="invoices and credit notes that the month issued, oldest first"
    )
    budgets = BudgetSerializer(
        many=True, help_text="as they are set now, in the periods in which the month begins"
    )
    annex = AnnexSerializer()
