"""Taxes: rules and tenants' statuses by version, the terms of a sale, and what each entry moved of it."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.models.books import Entry
from billing.models.controls import Approval
from billing.states import TaxTreatment
from marketplace.core.limits import NAME_LENGTH_MAX
from marketplace.models import Organization
from scheduler.models import Reservation

BASIS_POINTS = 10_000
JURISDICTION_LENGTH_MAX = 6
# ISO 3166: a country, or a country and one of its parts.
JURISDICTION_FORM = r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$"
TAX_ID_LENGTH_MAX = 40


class TaxRule(models.Model):
    """What a jurisdiction asks of a sale, from an instant on: one version, never edited."""

    jurisdiction = models.CharField(
        max_length=JURISDICTION_LENGTH_MAX, help_text="DE, or a part of a country: US-CA"
    )
    version = models.PositiveIntegerField(db_comment="from 1 for each jurisdiction")
    name = models.CharField(max_length=NAME_LENGTH_MAX, help_text="as documents say it: VAT")
    rate_basis_points = models.PositiveIntegerField(help_text="of the net price; 1900 is 19 %")
    valid_from = models.DateTimeField()
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=100)

    class Meta:
        ordering: ClassVar = ["jurisdiction", "-version"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["jurisdiction", "version"], name="tax_rule_version_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(jurisdiction__regex=JURISDICTION_FORM), name="tax_rule_has_a_place"
            ),
            models.CheckConstraint(
                condition=Q(rate_basis_points__lte=BASIS_POINTS), name="tax_rule_is_a_share"
            ),
            models.CheckConstraint(
                condition=Q(valid_from__gte=F("created_at")), name="tax_rule_is_not_backdated"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.jurisdiction} version {self.version}"


class TaxStatus(models.Model):
    """How a tenant's purchases are taxed, from an instant on: one version, never edited."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="tax_statuses"
    )
    version = models.PositiveIntegerField(db_comment="from 1 for each organization")
    jurisdiction = models.CharField(
        max_length=JURISDICTION_LENGTH_MAX, help_text="DE, or a part of a country: US-CA"
    )
    treatment = models.CharField(max_length=20, choices=TaxTreatment)
    tax_id = models.CharField(
        max_length=TAX_ID_LENGTH_MAX, blank=True, help_text="needed for reverse charge"
    )
    valid_from = models.DateTimeField()
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=100)

    class Meta:
        verbose_name_plural = "tax statuses"
        ordering: ClassVar = ["organization", "-version"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "version"], name="tax_status_version_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(jurisdiction__regex=JURISDICTION_FORM), name="tax_status_has_a_place"
            ),
            models.CheckConstraint(
                condition=~Q(treatment=TaxTreatment.REVERSE_CHARGE) | ~Q(tax_id=""),
                name="tax_status_names_who_pays",
            ),
            models.CheckConstraint(
                condition=Q(valid_from__gte=F("created_at")), name="tax_status_is_not_backdated"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} version {self.version}"


class ReservationTax(models.Model):
    """The terms by which a reservation is taxed, as they were when it was bought: never read again.

    A reservation without them is not taxed, and stands in no report of taxes.
    """

    reservation = models.OneToOneField(
        Reservation, primary_key=True, on_delete=models.PROTECT, related_name="tax_terms"
    )
    jurisdiction = models.CharField(max_length=JURISDICTION_LENGTH_MAX)
    treatment = models.CharField(max_length=20, choices=TaxTreatment)
    rate_basis_points = models.PositiveIntegerField()
    name = models.CharField(max_length=NAME_LENGTH_MAX, blank=True)
    tax_id = models.CharField(max_length=TAX_ID_LENGTH_MAX, blank=True)
    frozen_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(rate_basis_points__lte=BASIS_POINTS), name="reservation_tax_is_a_share"
            ),
            models.CheckConstraint(
                condition=Q(treatment=TaxTreatment.STANDARD) | Q(rate_basis_points=0),
                name="reservation_tax_follows_its_treatment",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id}: {self.jurisdiction} {self.treatment}"


class TaxLine(models.Model):
    """What one entry charged and gave back of a reservation's net price, and of its tax.

    The tax of a line is the difference of two rounded sums, so that the lines of a reservation make the tax
    of what it kept. With `is_relief` it is no part of that, but what the tax office gives back because
    nobody paid; charged is what of it was withdrawn.
    """

    reservation = models.ForeignKey(ReservationTax, on_delete=models.PROTECT, related_name="lines")
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="tax_line")
    currency = models.CharField(max_length=3)
    net_charged_minor = models.BigIntegerField()
    net_refunded_minor = models.BigIntegerField()
    tax_charged_minor = models.BigIntegerField()
    tax_refunded_minor = models.BigIntegerField()
    is_relief = models.BooleanField(default=False, db_comment="of an invoice that was written off")
    at = models.DateTimeField(
        db_index=True, db_comment="when it was posted: the period in which it is filed"
    )

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(
                    net_charged_minor__gte=0,
                    net_refunded_minor__gte=0,
                    tax_charged_minor__gte=0,
                    tax_refunded_minor__gte=0,
                ),
                name="tax_line_is_not_negative",
            )
        ]

    def __str__(self) -> str:
        return f"{self.reservation_id}: line {self.pk}"


class TaxRemittance(models.Model):
    """What was transferred to a tax office of a month: append-only; reversed when its entry is."""

    approval = models.OneToOneField(
        Approval, primary_key=True, on_delete=models.PROTECT, related_name="tax_remittance"
    )
    entry = models.OneToOneField(Entry, on_delete=models.PROTECT, related_name="tax_remittance")
    jurisdiction = models.CharField(max_length=JURISDICTION_LENGTH_MAX)
    month = models.CharField(max_length=7, db_comment="YYYY-MM, of UTC, that is filed")
    currency = models.CharField(max_length=3)
    amount_minor = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-at", "-pk"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0), name="tax_remittance_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(jurisdiction__regex=JURISDICTION_FORM),
                name="tax_remittance_has_a_place",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["jurisdiction", "month"], name="tax_remittance_by_month")
        ]

    def __str__(self) -> str:
        return f"{self.jurisdiction} {self.month}"
