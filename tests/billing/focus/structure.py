"""What FOCUS asks of each column, as one line of facts each, and the rules that tie columns together.

A line is `name kind [values]`. Kinds: `s` text, `d` decimal, `n` decimal that is not negative, `r` decimal
from 0 to 1, `t` instant of UTC, `c` currency, `j` JSON object; with `?` it may be empty. Of 1.4 the facts are
those of the specification ratified on 2026-06-04; 1.2 asks the same of the columns that both have.
"""

import json
import re
from decimal import Decimal
from itertools import pairwise

Row = dict[str, str]

_CATEGORIES = "Usage|Purchase|Tax|Credit|Adjustment"
_COST_AND_USAGE = f"""
    BilledCost d; BillingAccountId s; BillingAccountName s?; BillingAccountType s; BillingCurrency c
    BillingPeriodEnd t; BillingPeriodStart t; CapacityReservationId s?
    CapacityReservationStatus s? Used|Unused; ChargeCategory s {_CATEGORIES}; ChargeClass s? Correction
    ChargeDescription s?; ChargeFrequency s One-Time|Recurring|Usage-Based; ChargePeriodEnd t
    ChargePeriodStart t; ConsumedQuantity d?; ConsumedUnit s?; ContractedCost d; ContractedUnitPrice n?
    EffectiveCost d; InvoiceId s?; InvoiceIssuerName s; ListCost d; ListUnitPrice n?
    PricingCategory s? Standard|Dynamic|Committed|Other; PricingQuantity d?; PricingUnit s?; RegionId s?
    RegionName s?; ResourceId s?; ResourceName s?; ResourceType s?; ServiceCategory s Compute
    ServiceName s; ServiceSubcategory s Virtual Machines; SkuId s?; SkuMeter s?; SkuPriceDetails j?
    SkuPriceId s?; SubAccountId s?; SubAccountName s?; SubAccountType s?; Tags j?
"""
COLUMNS = {
    ("1.4", "cost_and_usage"): f"""{_COST_AND_USAGE}
        ContractApplied j?; HostProviderName s?; InvoiceDetailId s?; ServiceProviderName s""",
    ("1.2", "cost_and_usage"): f"""{_COST_AND_USAGE}
        CommitmentDiscountCategory s? Spend|Usage; CommitmentDiscountId s?; CommitmentDiscountName s?
        CommitmentDiscountQuantity d?; CommitmentDiscountStatus s? Used|Unused; CommitmentDiscountType s?
        CommitmentDiscountUnit s?; PricingCurrency c; PricingCurrencyContractedUnitPrice n?
        PricingCurrencyEffectiveCost d; PricingCurrencyListUnitPrice n?; ProviderName s; PublisherName s""",
    ("1.4", "contract_commitment"): """
        BillingCurrency c?; ContractCommitmentApplicability j
        ContractCommitmentBenefitCategory s Discount|Entitlement|Availability|Other
        ContractCommitmentCategory s Spend|Usage; ContractCommitmentCost d?; ContractCommitmentCreated t
        ContractCommitmentDescription s?; ContractCommitmentDiscountPercentage r?
        ContractCommitmentDurationType s
        ContractCommitmentFulfillmentInterval s Hourly|Daily|Monthly|Annual|Full Period|Transactional
        ContractCommitmentId s; ContractCommitmentLastUpdated t
        ContractCommitmentLifecycleStatus s Proposed|Pending|Active|Exhausted|Expired|Canceled|Superseded
        ContractCommitmentModel s Continuous|Discontinuous
        ContractCommitmentOfferCategory s Negotiated|Public
        ContractCommitmentPaymentInterval s One-Time|Monthly|Quarterly|Semi-Annual|Annual|Custom
        ContractCommitmentPaymentModel s No Upfront|Partial Upfront|All Upfront
        ContractCommitmentPaymentUpfrontPercentage r
        ContractCommitmentPeriodEnd t; ContractCommitmentPeriodStart t; ContractCommitmentQuantity d?
        ContractCommitmentType s; ContractCommitmentUnit s?; ContractId s; ContractPeriodEnd t
        ContractPeriodStart t; InvoiceIssuerName s; ServiceProviderName s""",
    ("1.4", "invoice_detail"): f"""
        BilledCost d; BillingAccountId s; BillingCurrency c; BillingPeriodEnd t; BillingPeriodStart t
        ChargeCategory s {_CATEGORIES}; InvoiceDetailCreated t; InvoiceDetailDescription s?
        InvoiceDetailGrain j?; InvoiceDetailId s; InvoiceDetailLastUpdated t; InvoiceId s
        InvoiceIssueDate t?; InvoiceIssueStatus s Open|Issued|Voided; InvoiceIssuerName s
        PaymentDueDate t?; PaymentTerms s; PurchaseOrderNumber s?; ReferenceInvoiceId s""",
    ("1.4", "billing_period"): """
        BillingPeriodCreated t; BillingPeriodEnd t; BillingPeriodLastUpdated t; BillingPeriodStart t
        BillingPeriodStatus s Open|Closed; InvoiceIssuerName s""",
}
_DECIMAL = r"-?\d+\.\d+"
_FORMS = {
    "s": r".+",
    "d": _DECIMAL,
    "n": r"\d+\.\d+",
    "r": r"(0\.\d+|1\.0+)",
    "t": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "c": r"[A-Z]{3}",
    "j": r"\{.*\}",
}
_PRICED = (
    *("ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "PricingQuantity"),
    *("PricingUnit", "SkuId", "SkuPriceId"),
)


def breaches(rows: list[Row], *, version: str, dataset: str) -> list[str]:
    """Return what is wrong with the rows of a file, a sentence each."""
    facts = _facts(version, dataset)
    found = []
    for number, row in enumerate(rows):
        columns = {name for name in row if not name.startswith("x_")}
        found += [f"{number}: {name} is missing" for name in facts.keys() - columns]
        found += [f"{number}: {name} is unknown" for name in columns - facts.keys()]
        found += [
            f"{number}: {name} is {row[name]!r}"
            for name, (form, is_optional) in facts.items()
            if name in row and not (re.fullmatch(form, row[name]) if row[name] else is_optional)
        ]
        if found:
            continue
        rules = {
            "cost_and_usage": _charge,
            "contract_commitment": _commitment,
            "billing_period": _period,
        }.get(dataset)
        found += [f"{number}: {text}" for text in (rules(row) if rules else [])]
    return found + _of_all(rows, dataset=dataset)


def _facts(version: str, dataset: str) -> dict[str, tuple[str, bool]]:
    facts = {}
    for line in re.split(r";|\n", COLUMNS[version, dataset]):
        if line.strip():
            name, kind, *values = line.split(maxsplit=2)
            form = _FORMS[kind[0]] if not values else f"({values[0]})"
            facts[name] = (form, kind.endswith("?"))
    return facts


def _charge(row: Row) -> list[str]:
    """Return which of the rules that tie the columns of a charge together it breaks."""
    category, is_correction = row["ChargeCategory"], row["ChargeClass"] == "Correction"
    is_usage = category == "Usage"
    wrong = {
        "is over before it began": row["ChargePeriodStart"] >= row["ChargePeriodEnd"],
        "has a month that ends before it begins": row["BillingPeriodStart"]
        >= row["BillingPeriodEnd"],
        "has a price though it is tax or a credit": category in {"Tax", "Credit"}
        and any(row[name] for name in _PRICED),
        "lacks a price": category in {"Usage", "Purchase"}
        and not is_correction
        and not all(row[name] for name in _PRICED),
        "is a purchase by use": category == "Purchase" and row["ChargeFrequency"] != "One-Time",
        "is a purchase that is effective at once": category == "Purchase"
        and Decimal(row["EffectiveCost"]) != 0,
        "is a credit of two sizes": category == "Credit"
        and Decimal(row["EffectiveCost"]) != Decimal(row["BilledCost"]),
        "says used or unused of no usage": bool(row["CapacityReservationStatus"])
        != (is_usage and bool(row["CapacityReservationId"])),
        "consumes without being usage": bool(row["ConsumedQuantity"]) != is_usage,
        "consumes in no unit": bool(row["ConsumedQuantity"]) != bool(row["ConsumedUnit"]),
        "has a quantity in no unit": bool(row["PricingQuantity"]) != bool(row["PricingUnit"]),
        "has a meter of no product": bool(row["SkuMeter"]) != bool(row["SkuId"]),
        "details a price that it does not name": bool(row["SkuPriceDetails"])
        and not row["SkuPriceId"],
        "has a project of no name": len(
            {bool(row[f"SubAccount{part}"]) for part in ("Id", "Name", "Type")}
        )
        > 1,
        "taxes a reservation": category == "Tax" and bool(row["CapacityReservationId"]),
        "has a line of no invoice": bool(row.get("InvoiceDetailId")) and not row["InvoiceId"],
        "has another issuer than provider": row["InvoiceIssuerName"]
        != row.get("ServiceProviderName", row.get("ProviderName")),
        "uses a commitment wrongly": not _is_applied_soundly(row),
        "was not delivered for no reason, or delivered for one": bool(
            Decimal(row["x_UndeliveredGpuHours"] or 0)
        )
        != bool(row["x_UndeliveredReason"]),
        "has details that are not text to text": not all(
            isinstance(value, str) for value in json.loads(row["Tags"] or "{}").values()
        ),
    }
    wrong |= {f"has a {cost} that is no product": True for cost in _wrong_products(row)}
    return [text for text, is_so in wrong.items() if is_so]


def _wrong_products(row: Row) -> list[str]:
    if not row["PricingQuantity"] or row["ChargeClass"]:
        return []
    quantity = Decimal(row["PricingQuantity"])
    return [
        cost
        for cost, price in (
            ("ListCost", "ListUnitPrice"),
            ("ContractedCost", "ContractedUnitPrice"),
        )
        if Decimal(row[price]) * quantity != Decimal(row[cost])
    ]


def _is_applied_soundly(row: Row) -> bool:
    """Say whether what is applied to commitments has a contract, and a quantity or a cost, not both."""
    text = row.get("ContractApplied")
    if not text:
        return True
    elements = json.loads(text, parse_float=Decimal)["Elements"]
    keys = {
        "ContractId",
        "ContractCommitmentId",
        "ContractCommitmentAppliedQuantity",
        "ContractCommitmentAppliedUnit",
    }
    return all(
        element.keys() == keys
        and element["ContractCommitmentAppliedQuantity"] == Decimal(row["PricingQuantity"])
        for element in elements
    )


def _commitment(row: Row) -> list[str]:
    scope = json.loads(row["ContractCommitmentApplicability"])
    wrong = {
        "is over before it began": row["ContractCommitmentPeriodStart"]
        >= row["ContractCommitmentPeriodEnd"],
        "lies outside of its contract": row["ContractCommitmentPeriodStart"]
        < row["ContractPeriodStart"]
        or row["ContractCommitmentPeriodEnd"] > row["ContractPeriodEnd"],
        "commits to usage without a quantity": row["ContractCommitmentCategory"] == "Usage"
        and not (row["ContractCommitmentQuantity"] and row["ContractCommitmentUnit"]),
        "commits to a quantity and a cost": bool(
            row["ContractCommitmentQuantity"] and row["ContractCommitmentCost"]
        ),
        "is paid in parts that are the whole": (
            row["ContractCommitmentPaymentModel"] == "Partial Upfront"
        )
        != (Decimal(row["ContractCommitmentPaymentUpfrontPercentage"]) < 1),
        "is for nothing": scope.keys() != {"InclusionOperator", "Inclusions"},
        "changed before it was made": row["ContractCommitmentLastUpdated"]
        < row["ContractCommitmentCreated"],
    }
    return [text for text, is_so in wrong.items() if is_so]


def _period(row: Row) -> list[str]:
    names = ("BillingPeriodCreated", "BillingPeriodLastUpdated")
    ordered = [("BillingPeriodStart", "BillingPeriodEnd"), *pairwise(names)]
    return [f"{later} is before {first}" for first, later in ordered if row[first] > row[later]]


def _of_all(rows: list[Row], *, dataset: str) -> list[str]:
    """Return which rules a file breaks that no row can break alone."""
    key = {"contract_commitment": "ContractCommitmentId", "invoice_detail": "InvoiceDetailId"}
    if dataset in key:
        ids = [row[key[dataset]] for row in rows]
        return [] if len(ids) == len(set(ids)) else [f"{key[dataset]} is not unique"]
    if dataset != "cost_and_usage":
        return []
    products: dict[str, set[str]] = {}
    for row in rows:
        products.setdefault(row["SkuPriceId"], set()).add(row["SkuId"])
    return [f"{price} has {len(of)} products" for price, of in products.items() if len(of) > 1]
