"""The columns of each file, in the order in which they stand in it: the FOCUS names, then ours with `x_`.

Of 1.4 there are four datasets, of 1.2 the one that it has. A column of FOCUS that is optional for a market
without that feature is left out of 1.4. In 1.2 the official validator asks for some of them all the same:
those of commitment discounts stand there empty, those of a pricing currency repeat the billing currency's.
"""

from django.db.models import TextChoices


class Version(TextChoices):
    V1_4 = "1.4"
    V1_2 = "1.2"


class Dataset(TextChoices):
    COST_AND_USAGE = "cost_and_usage"
    CONTRACT_COMMITMENT = "contract_commitment"
    INVOICE_DETAIL = "invoice_detail"
    BILLING_PERIOD = "billing_period"


# A line of an invoice has its tax with it; here both are rows, and each needs an id.
TAX_SUFFIX = ".tax"
_OWN = (
    "x_ReservationId",
    "x_LeaseId",
    "x_QuoteId",
    "x_LedgerEntryId",
    "x_EventType",
    "x_GpuModel",
    "x_Tier",
    "x_SurgeMultiplier",
    "x_BoughtGpuHours",
    "x_ReleasedGpuHours",
    "x_DeliveredGpuHours",
    "x_UndeliveredGpuHours",
    "x_UndeliveredReason",
    "x_AttachedGpuHours",
    "x_BusyGpuHours",
    "x_EnergyKilowattHours",
    "x_MeterCoverageRatio",
    "x_Simulated",
)
_SHARED = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
_COST_AND_USAGE_1_4 = (
    *_SHARED,
    "ContractApplied",
    "HostProviderName",
    "InvoiceDetailId",
    "ServiceProviderName",
)
_COST_AND_USAGE_1_2 = (
    *_SHARED,
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "ProviderName",
    "PublisherName",
)
_CONTRACT_COMMITMENT = (
    "BillingCurrency",
    "ContractCommitmentApplicability",
    "ContractCommitmentBenefitCategory",
    "ContractCommitmentCategory",
    "ContractCommitmentCost",
    "ContractCommitmentCreated",
    "ContractCommitmentDescription",
    "ContractCommitmentDiscountPercentage",
    "ContractCommitmentDurationType",
    "ContractCommitmentFulfillmentInterval",
    "ContractCommitmentId",
    "ContractCommitmentLastUpdated",
    "ContractCommitmentLifecycleStatus",
    "ContractCommitmentModel",
    "ContractCommitmentOfferCategory",
    "ContractCommitmentPaymentInterval",
    "ContractCommitmentPaymentModel",
    "ContractCommitmentPaymentUpfrontPercentage",
    "ContractCommitmentPeriodEnd",
    "ContractCommitmentPeriodStart",
    "ContractCommitmentQuantity",
    "ContractCommitmentType",
    "ContractCommitmentUnit",
    "ContractId",
    "ContractPeriodEnd",
    "ContractPeriodStart",
    "InvoiceIssuerName",
    "ServiceProviderName",
    "x_PriceMinor",
    "x_ReservationStatus",
)
_BILLING_PERIOD = (
    "BillingPeriodCreated",
    "BillingPeriodEnd",
    "BillingPeriodLastUpdated",
    "BillingPeriodStart",
    "BillingPeriodStatus",
    "InvoiceIssuerName",
)
_INVOICE_DETAIL = (
    "BilledCost",
    "BillingAccountId",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "InvoiceDetailCreated",
    "InvoiceDetailDescription",
    "InvoiceDetailGrain",
    "InvoiceDetailId",
    "InvoiceDetailLastUpdated",
    "InvoiceId",
    "InvoiceIssueDate",
    "InvoiceIssueStatus",
    "InvoiceIssuerName",
    "PaymentDueDate",
    "PaymentTerms",
    "PurchaseOrderNumber",
    "ReferenceInvoiceId",
    "x_LedgerEntryKey",
    "x_ReservationId",
)
# What is priced in the currency in which it is billed has the same cell twice.
SAME_AS = {
    "PricingCurrency": "BillingCurrency",
    "PricingCurrencyContractedUnitPrice": "ContractedUnitPrice",
    "PricingCurrencyEffectiveCost": "EffectiveCost",
    "PricingCurrencyListUnitPrice": "ListUnitPrice",
}
COLUMNS: dict[tuple[Version, Dataset], tuple[str, ...]] = {
    (Version.V1_4, Dataset.COST_AND_USAGE): (*sorted(_COST_AND_USAGE_1_4), *_OWN),
    (Version.V1_2, Dataset.COST_AND_USAGE): (*sorted(_COST_AND_USAGE_1_2), *_OWN),
    (Version.V1_4, Dataset.CONTRACT_COMMITMENT): _CONTRACT_COMMITMENT,
    (Version.V1_4, Dataset.INVOICE_DETAIL): _INVOICE_DETAIL,
    (Version.V1_4, Dataset.BILLING_PERIOD): _BILLING_PERIOD,
}
# What a row of any version of Cost and Usage may say.
EVERY_CHARGE_COLUMN = (
    *sorted({*_COST_AND_USAGE_1_4, *_COST_AND_USAGE_1_2} - set(SAME_AS)),
    *_OWN,
)


def file_name(*, version: Version, dataset: Dataset, month: str) -> str:
    """Return under which name a file is handed out: it tells what is in it."""
    return f"focus-{version.value}-{dataset.value}-{month}.csv"


# By how their names end: the types that FOCUS gives its columns, and ours likewise.
_TYPES_BY_ENDING = {
    "decimal": (
        *("Cost", "UnitPrice", "Quantity", "Percentage", "GpuHours", "KilowattHours"),
        *("Ratio", "SurgeMultiplier"),
    ),
    "datetime": ("PeriodStart", "PeriodEnd", "Created", "LastUpdated", "IssueDate", "DueDate"),
    "json": ("Tags", "SkuPriceDetails", "ContractApplied", "Applicability", "DetailGrain"),
    "integer": ("PriceMinor",),
}


def data_type(column: str) -> str:
    """Return what the cells of a column are: `string`, `decimal`, `integer`, `datetime` or `json`."""
    for name, endings in _TYPES_BY_ENDING.items():
        if column.endswith(endings):
            return name
    return "string"
