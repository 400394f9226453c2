"""To whom a tenant's invoices are made out: the tenant says so, and what was issued before stays."""

import datetime as dt
from collections.abc import Mapping

from django.db import transaction

from billing.models import BillingProfile
from marketplace import audit
from marketplace.models import Organization


def of(*, organization: Organization) -> BillingProfile:
    """Return an organization's billing profile; one of its name alone, not stored, where it has none."""
    found = BillingProfile.objects.filter(organization=organization).first()
    return found or BillingProfile(organization=organization, legal_name=organization.name)


@transaction.atomic
def put(
    *, organization: Organization, fields: Mapping[str, str], at: dt.datetime, actor: str
) -> BillingProfile:
    """Replace the whole profile: what is not named is empty from now on. Later documents say it."""
    profile = BillingProfile(organization=organization, updated_at=at, **fields)
    BillingProfile.objects.update_or_create(
        organization=organization,
        defaults={
            field.attname: getattr(profile, field.attname)
            for field in BillingProfile._meta.fields  # noqa: SLF001 - Django's documented name for it
            if field.attname != "organization_id"
        },
    )
    audit.record(
        at=at,
        actor=actor,
        action="billing_profile.changed",
        object_id=organization.pk,
        organization=organization,
        detail={"country": profile.country, "legal_name": profile.legal_name},
    )
    return profile
