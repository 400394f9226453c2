"""Who pays which tax: rules of jurisdictions and statuses of tenants, one version after another.

Neither holds for the past: what was sold keeps the terms by which it was sold.
"""

import datetime as dt
import re

from django.db import IntegrityError, transaction
from django.db.models import Max

from billing.models import TaxRule, TaxStatus
from billing.models.tax import BASIS_POINTS, JURISDICTION_FORM, TAX_ID_LENGTH_MAX
from billing.states import TaxTreatment
from marketplace import audit
from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.core.text import check_name, check_text
from marketplace.core.windows import format_instant
from marketplace.models import Organization


class NoTaxRule(InvalidValue):
    """The jurisdiction has no rule: a tenant that is taxed there would pay nothing, by mistake."""

    code = "no_tax_rule"
    title = "No tax rule is known for this place"


@transaction.atomic
def publish_rule(
    *,
    jurisdiction: str,
    name: str,
    rate_basis_points: int,
    valid_from: dt.datetime | None = None,
    at: dt.datetime,
    actor: str,
) -> TaxRule:
    """Write the next version of a jurisdiction's rule, in force from `valid_from` on, or from now.

    Of two versions the one that begins later holds; of two that begin together, the higher one.

    :raises InvalidValue: when the place, the name, the rate or the instant makes no sense.
    :raises StateConflict: when somebody else wrote a version meanwhile.
    """
    _check_jurisdiction(jurisdiction)
    check_name(name, pointer="/name")
    if not 0 <= rate_basis_points <= BASIS_POINTS:
        raise InvalidValue(f"must be 0 to {BASIS_POINTS}", pointer="/rate_basis_points")
    starts_at = _start(valid_from, at=at)
    earlier = TaxRule.objects.filter(jurisdiction=jurisdiction)
    try:
        with transaction.atomic():
            rule = TaxRule.objects.create(
                jurisdiction=jurisdiction,
                version=(earlier.aggregate(newest=Max("version"))["newest"] or 0) + 1,
                name=name,
                rate_basis_points=rate_basis_points,
                valid_from=starts_at,
                created_at=at,
                created_by=actor[: audit.ACTOR_LENGTH_MAX],
            )
    except IntegrityError as error:
        raise StateConflict("another version was published meanwhile") from error
    audit.record(
        at=at,
        actor=actor,
        action="tax_rule.published",
        object_id=f"{jurisdiction}:{rule.version}",
        organization=None,
        detail={
            "name": name,
            "rate_basis_points": rate_basis_points,
            "valid_from": format_instant(starts_at),
        },
    )
    return rule


@transaction.atomic
def set_status(
    *,
    organization: Organization,
    jurisdiction: str,
    treatment: str,
    tax_id: str = "",
    valid_from: dt.datetime | None = None,
    at: dt.datetime,
    actor: str,
) -> TaxStatus:
    """Write how a tenant's purchases are taxed from `valid_from` on, or from now.

    :raises InvalidValue: when the place, the treatment, the tax id or the instant makes no sense.
    :raises NoTaxRule: when the tenant is to be taxed where no rule is in force by then.
    :raises StateConflict: when somebody else wrote a version meanwhile.
    """
    if not organization.is_tenant:
        raise InvalidValue("only an organization that buys pays tax here", pointer="/organization")
    _check_jurisdiction(jurisdiction)
    check_text(tax_id, length_max=TAX_ID_LENGTH_MAX, pointer="/tax_id")
    if treatment not in TaxTreatment.values:
        raise InvalidValue(f"must be one of {', '.join(TaxTreatment.values)}", pointer="/treatment")
    if treatment == TaxTreatment.REVERSE_CHARGE and not tax_id.strip():
        raise InvalidValue("reverse charge needs the tenant's tax id", pointer="/tax_id")
    starts_at = _start(valid_from, at=at)
    if (
        treatment == TaxTreatment.STANDARD
        and rule_at(jurisdiction=jurisdiction, at=starts_at) is None
    ):
        raise NoTaxRule(f"Publish a rule for {jurisdiction} first.", pointer="/jurisdiction")
    earlier = TaxStatus.objects.filter(organization=organization)
    try:
        with transaction.atomic():
            status = TaxStatus.objects.create(
                organization=organization,
                version=(earlier.aggregate(newest=Max("version"))["newest"] or 0) + 1,
                jurisdiction=jurisdiction,
                treatment=treatment,
                tax_id=tax_id.strip(),
                valid_from=starts_at,
                created_at=at,
                created_by=actor[: audit.ACTOR_LENGTH_MAX],
            )
    except IntegrityError as error:
        raise StateConflict("another version was written meanwhile") from error
    audit.record(
        at=at,
        actor=actor,
        action="tax_status.set",
        object_id=f"{organization.id}:{status.version}",
        organization=organization,
        detail={
            "jurisdiction": jurisdiction,
            "treatment": str(treatment),
            "tax_id": status.tax_id,
            "valid_from": format_instant(starts_at),
        },
    )
    return status


def rule_at(*, jurisdiction: str, at: dt.datetime) -> TaxRule | None:
    """Return the rule of a jurisdiction that is in force at an instant; None where there is none."""
    known = TaxRule.objects.filter(jurisdiction=jurisdiction, valid_from__lte=at)
    return known.order_by("-valid_from", "-version").first()


def status_at(*, organization: Organization, at: dt.datetime) -> TaxStatus | None:
    """Return a tenant's status at an instant; None for one that nobody has given one."""
    # As text: every purchase asks this, and Django takes longer to write it than PostgreSQL to answer.
    found = TaxStatus.objects.raw(
        "SELECT * FROM billing_taxstatus WHERE organization_id = %s AND valid_from <= %s"
        " ORDER BY valid_from DESC, version DESC LIMIT 1",
        [organization.pk, at],
    )
    return next(iter(found), None)


def _start(valid_from: dt.datetime | None, *, at: dt.datetime) -> dt.datetime:
    if valid_from is not None and valid_from < at:
        raise InvalidValue("what was sold keeps its terms: not before now", pointer="/valid_from")
    return valid_from or at


def _check_jurisdiction(jurisdiction: str) -> None:
    if not re.fullmatch(JURISDICTION_FORM, jurisdiction, flags=re.ASCII):
        raise InvalidValue(
            "must be a country of ISO 3166, or one with its part: DE, US-CA",
            pointer="/jurisdiction",
        )
