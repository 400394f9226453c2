"""Who sells and who buys, as a document keeps them: names and addresses of the day on which it was issued."""

from django.conf import settings

from billing.models import BillingProfile
from marketplace.models import Organization

ADDRESS_FIELDS = ("street", "postal_code", "city", "region", "country")


def seller() -> dict[str, str]:
    """Return the seller as the settings name it."""
    return dict(settings.SELLER)


def buyer_of(*, organization: Organization) -> dict[str, str]:
    """Return the buyer as its billing profile says; its name alone where it has none."""
    profile = _profile(organization)
    if profile is None:
        return {
            "organization_id": organization.pk,
            "name": organization.name,
            **dict.fromkeys((*ADDRESS_FIELDS, "tax_id", "email"), ""),
        }
    return {
        "organization_id": organization.pk,
        "name": profile.legal_name,
        **{name: getattr(profile, name) for name in ADDRESS_FIELDS},
        "tax_id": profile.tax_id,
        "email": profile.email,
    }


def purchase_order_number_of(*, organization: Organization) -> str:
    """Return the number that the buyer wants on its invoices; empty where it named none."""
    profile = _profile(organization)
    return "" if profile is None else profile.purchase_order_number


def _profile(organization: Organization) -> BillingProfile | None:
    return BillingProfile.objects.filter(organization=organization).first()
