"""How an answer shows what a settlement rests on: receipts, readings and outages."""

from typing import Any

from rest_framework import serializers

from marketplace.api.fields import InstantField


class ReceiptSerializer(serializers.Serializer[Any]):
    """What the node signed."""

    kind = serializers.CharField(help_text="`handover` or `return`")
    id = serializers.CharField()
    at = InstantField()
    clean = serializers.BooleanField(help_text="the GPUs were as they should be")


class OutageSerializer(serializers.Serializer[Any]):
    """An outage within the lease."""

    gpu_uuid = serializers.CharField()
    starts_at = InstantField()
    ends_at = InstantField()
    health = serializers.CharField()
    cause = serializers.CharField()
    reason = serializers.CharField(allow_blank=True)
    refunded = serializers.BooleanField(help_text="its time counts as not delivered")


class EvidenceSerializer(serializers.Serializer[Any]):
    """What a lease's settlement rests on, as its last correction found it."""

    settlement_id = serializers.CharField()
    settled_at = InstantField()
    corrected_at = InstantField(allow_null=True, help_text="null: nothing was found later")
    corrections = serializers.IntegerField()
    handed_over_at = InstantField(allow_null=True)
    returned_at = InstantField(allow_null=True)
    receipts = ReceiptSerializer(many=True)
    gpu_seconds_bought = serializers.IntegerField()
    gpu_seconds_delivered = serializers.IntegerField()
    gpu_seconds_metered = serializers.IntegerField(help_text="of the delivered, with readings")
    coverage = serializers.CharField(
        allow_null=True, help_text="metered by delivered; null where nothing was delivered"
    )
    outage_count = serializers.IntegerField()
    outages = OutageSerializer(many=True, help_text="the first 500")
