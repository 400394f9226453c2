"""Where staff say who is taxed how: a new version at a time, through the verbs, which leave their trail."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone

from billing import tax, tax_rules
from billing.admin.shown import Shown, ShownInline
from billing.models import ReservationTax, TaxLine, TaxRule, TaxStatus
from marketplace.core.errors import DomainError


class _VersionForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """Try the verb while the form is checked, so that its refusal stands beside the field at fault."""

    verb: Callable[..., Model]

    class Meta:
        fields: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Django's signature
        super().__init__(*args, **kwargs)
        if "valid_from" in self.fields:
            self.fields["valid_from"].required = False
            self.fields["valid_from"].help_text = "empty: from now on; never before now"

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        try:
            with transaction.atomic():
                self.publish(actor="")
                transaction.set_rollback(True)
        except DomainError as refusal:
            field = (refusal.pointer or "").strip("/")
            self.add_error(field if field in self.fields else None, refusal.detail)
        return cleaned

    def _get_validation_exclusions(self) -> set[str]:
        """Leave the model's constraints to the verb and to PostgreSQL: half of the columns are the verb's."""
        return {field.name for field in self._meta.model._meta.fields}  # noqa: SLF001 - Django's name for it

    def publish(self, *, actor: str) -> Model:
        wish = {name: self.cleaned_data[name] for name in type(self).Meta.fields}
        return type(self).verb(**wish, at=timezone.now(), actor=actor)


class TaxRuleForm(_VersionForm):
    verb = staticmethod(tax_rules.publish_rule)

    class Meta:
        model = TaxRule
        fields = ("jurisdiction", "name", "rate_basis_points", "valid_from")


class TaxStatusForm(_VersionForm):
    verb = staticmethod(tax_rules.set_status)

    class Meta:
        model = TaxStatus
        fields = ("organization", "jurisdiction", "treatment", "tax_id", "valid_from")


class _Versions(Shown):
    """Versions as they were written; what is added is the next one."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return bool(request.user.has_perm(f"billing.add_{self.opts.model_name}"))

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let the form of a new version be filled in; one that was written stands."""
        return obj is None and self.has_add_permission(request)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        names = tuple(self.form.Meta.fields)
        return names if obj is None else (*names, "version", "created_at", "created_by")

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:  # noqa: ANN401, FBT001 - Django's signature
        made = form.publish(actor=f"admin:{request.user.get_username()}")
        obj.pk = made.pk


@admin.register(TaxRule)
class TaxRuleAdmin(_Versions):
    form = TaxRuleForm
    list_display = ["jurisdiction", "version", "name", "rate", "valid_from", "created_by"]
    list_filter = ["jurisdiction"]
    search_fields = ["jurisdiction", "name"]

    @admin.display(description="rate", ordering="rate_basis_points")
    def rate(self, rule: TaxRule) -> str:
        return f"{tax.percent(rule.rate_basis_points)} %"


@admin.register(TaxStatus)
class TaxStatusAdmin(_Versions):
    form = TaxStatusForm
    list_display = ["organization", "version", "jurisdiction", "treatment", "tax_id", "valid_from"]
    list_filter = ["jurisdiction", "treatment"]
    search_fields = ["organization__name", "organization__id", "tax_id"]
    list_select_related = ["organization"]
    autocomplete_fields = ["organization"]


class TaxLineInline(ShownInline):
    model = TaxLine
    verbose_name_plural = "What moved of it"
    fields = [
        "at",
        "entry",
        "net_charged_minor",
        "net_refunded_minor",
        "tax_charged_minor",
        "tax_refunded_minor",
        "is_relief",
    ]


@admin.register(ReservationTax)
class ReservationTaxAdmin(Shown):
    """The terms by which reservations were bought, and what moved of their tax."""

    list_display = ["reservation", "jurisdiction", "treatment", "rate", "tax_id", "frozen_at"]
    list_filter = ["jurisdiction", "treatment", "frozen_at"]
    search_fields = ["reservation__id", "reservation__organization__name", "tax_id"]
    list_select_related = ["reservation"]
    inlines = [TaxLineInline]

    @admin.display(description="rate", ordering="rate_basis_points")
    def rate(self, terms: ReservationTax) -> str:
        return f"{tax.percent(terms.rate_basis_points)} %"
