"""What all charges of one kind and one reservation have in common: the cells that no amount changes."""

import datetime as dt
import json
from decimal import Decimal

from django.conf import settings

from billing.budgets import NO_LABELS, Labels
from billing.focus import numbers
from billing.focus.columns import EVERY_CHARGE_COLUMN
from billing.focus.facts import Deal, Fact, Payer

Row = dict[str, str]

_DAY = dt.timedelta(days=1)
UNIT = "GPU-Hours"
RESERVATION_SKU_METER = "GPU Reservation"
FEE_SKU = "fee.cancellation"
_SERVICE = {
    "ServiceCategory": "Compute",
    "ServiceName": "GPU Capacity Reservations",
    "ServiceSubcategory": "Virtual Machines",
}
_NOTHING: Row = dict.fromkeys(EVERY_CHARGE_COLUMN, "")


def as_text(text: str) -> str:
    """Return what a tenant wrote so that a spreadsheet does not take it for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def resource_name(*, deal_region: str, account_id: str, kind: str, object_id: str) -> str:
    """Return the fully qualified name of a lease or a reservation: unique for ever, in every file."""
    return f"crn:headroom:{deal_region}:{account_id}:{kind}/{object_id}"


class Frames:
    """The common cells of the charges of one reservation and its labels, or of an account without one."""

    def __init__(
        self, *, payer: Payer, deal: Deal | None, currency: str, labels: Labels = NO_LABELS
    ) -> None:
        self.payer = payer
        self.deal = deal
        self.currency = currency
        self.list_price, self.locked_price = _prices(deal)
        account = _of_account(payer=payer, currency=currency)
        self.tax: Row = {**account, **_of_project(deal, labels), "ChargeCategory": "Tax"}
        about = {**self.tax, **_of_reservation(deal, payer=payer)}
        self.credit: Row = {**about, "ChargeCategory": "Credit"}
        self.adjustment: Row = {**about, "ChargeCategory": "Adjustment"}
        priced = {**about, **_of_sku(deal)}
        self.purchase: Row = {**priced, "ChargeCategory": "Purchase"}
        self.usage: Row = {
            **priced,
            "ChargeCategory": "Usage",
            "ChargeFrequency": "Usage-Based",
            "ConsumedUnit": UNIT,
        }
        self.fee: Row = {
            **about,
            "ChargeCategory": "Usage",
            "CapacityReservationStatus": "Unused",
            "PricingCategory": "Standard",
            "PricingUnit": "Units",
            "ConsumedQuantity": "0.0",
            "ConsumedUnit": "Units",
            "SkuId": FEE_SKU,
            "SkuPriceId": FEE_SKU,
            "SkuMeter": "Cancellation",
        }


def _prices(deal: Deal | None) -> tuple[int, int]:
    """Return the price before any surge, and the locked one, in micros per GPU-hour."""
    if deal is None:
        return 0, 0
    locked = _micros(deal.rate)
    return (locked if deal.base_rate is None else _micros(deal.base_rate)), locked


def _micros(rate: Decimal) -> int:
    return int(rate.scaleb(numbers.PRICE_PLACES))


def _of_account(*, payer: Payer, currency: str) -> Row:
    return {
        **_NOTHING,
        **_SERVICE,
        "BillingAccountId": payer.account_id,
        "BillingAccountName": as_text(payer.account_name),
        "BillingAccountType": "Organization",
        "BillingCurrency": currency.upper(),
        "BillingPeriodStart": numbers.instant(payer.starts_at),
        "BillingPeriodEnd": numbers.instant(payer.ends_at),
        "ChargeFrequency": "One-Time",
        # One name: where the issuer is another than the provider, a reader expects nothing to be billed.
        "HostProviderName": settings.HOST_PROVIDER_NAME or payer.issuer_name,
        "InvoiceIssuerName": payer.issuer_name,
        "ProviderName": payer.issuer_name,
        "PublisherName": payer.issuer_name,
        "ServiceProviderName": payer.issuer_name,
    }


def _of_project(deal: Deal | None, labels: Labels) -> Row:
    if deal is None:
        return {}
    project = as_text(labels.project)
    return {
        "SubAccountId": project,
        "SubAccountName": project,
        "SubAccountType": "Project" if project else "",
        "Tags": json.dumps(dict(labels.tags), sort_keys=True, ensure_ascii=False),
        "x_ReservationId": deal.reservation_id,
        "x_QuoteId": deal.quote_id,
        "x_Simulated": "true" if deal.simulated else "false",
    }


def _of_reservation(deal: Deal | None, *, payer: Payer) -> Row:
    if deal is None:
        return {}
    resource = resource_name(
        deal_region=deal.region,
        account_id=payer.account_id,
        kind="reservation",
        object_id=deal.reservation_id,
    )
    return {
        "CapacityReservationId": resource,
        "RegionId": deal.region,
        "RegionName": deal.region,
        "ResourceId": resource,
        "ResourceName": as_text(deal.name),
        "ResourceType": "GPU Capacity Reservation",
        "x_GpuModel": deal.gpu_model,
        "x_Tier": deal.tier,
        "x_SurgeMultiplier": deal.multiplier,
    }


def _of_sku(deal: Deal | None) -> Row:
    """Return the product and its place in the price list: neither tells the surge, the day or the tenant."""
    if deal is None:
        return {}
    return {
        "PricingCategory": "Dynamic" if deal.is_dynamic else "Standard",
        "PricingUnit": UNIT,
        "SkuId": f"gpu.{deal.gpu_model}",
        "SkuMeter": RESERVATION_SKU_METER,
        "SkuPriceId": f"gpu.{deal.gpu_model}.{deal.region}.{deal.tier}",
        "SkuPriceDetails": json.dumps(
            {
                "GpuCount": 1,
                "InstanceSeries": deal.gpu_model_name,
                "x_PricingTerm": "upfront",
                "x_Tier": deal.tier,
            }
        ),
    }


def period_of(fact: Fact, *, frames: Frames) -> Row:
    """Return the time that a charge is for; the day of the entry where it is for none."""
    starts_at, ends_at = fact.starts_at, fact.ends_at
    if starts_at is None or ends_at is None:
        if frames.deal is not None:
            starts_at, ends_at = frames.deal.starts_at, frames.deal.ends_at
        else:
            starts_at = fact.effective_at.replace(hour=0, minute=0, second=0, microsecond=0)
            ends_at = starts_at + _DAY
    return {
        "ChargePeriodStart": numbers.instant(starts_at),
        "ChargePeriodEnd": numbers.instant(ends_at),
    }
