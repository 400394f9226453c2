"""Where staff see what each tax office is owed of a month, and ask to remit it; somebody else decides."""

import datetime as dt
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing import tax_remittances, tax_reports
from billing.admin.asking import REASON_LENGTH_MAX, REQUEST_PERMISSION, ask
from billing.admin.shown import MINOR_UNITS_HELP, Shown, amount_text, link_to, money, page
from billing.models import Approval, TaxRemittance
from billing.states import ApprovalKind, ApprovalStatus
from billing.tax_remittances import Period
from marketplace.core.errors import DomainError
from marketplace.core.money import Money

SEE_PERMISSION = "billing.view_taxremittance"


class MonthForm(forms.Form):
    month = forms.RegexField(
        r"^\d{4}-\d{2}$", label="Month", widget=UnfoldAdminTextInputWidget, strip=True
    )


class RemitForm(forms.Form):
    """What is to be transferred to one of the offices that are owed something of the month."""

    office = forms.ChoiceField(label="Tax office", widget=UnfoldAdminSelectWidget)
    amount_minor = forms.IntegerField(
        min_value=1,
        label="Amount in minor units",
        help_text=f"at most what is open: {MINOR_UNITS_HELP}",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    reason = forms.CharField(
        max_length=REASON_LENGTH_MAX,
        label="Filing",
        help_text="under which number it was filed, and from which account it is paid",
        widget=UnfoldAdminTextareaWidget,
    )

    def __init__(self, *args: Any, periods: list[Period], **kwargs: Any) -> None:  # noqa: ANN401 - Django's signature
        super().__init__(*args, **kwargs)
        self.fields["office"].choices = [  # type: ignore[attr-defined] # of a choice field
            (
                f"{each.jurisdiction}:{each.currency}",
                f"{each.jurisdiction}, {_written(each.open, each)}",
            )
            for each in periods
            if each.open > 0
        ]


class ReasonForm(forms.Form):
    reason = forms.CharField(max_length=REASON_LENGTH_MAX, widget=UnfoldAdminTextareaWidget)


@admin.register(TaxRemittance)
class TaxRemittanceAdmin(Shown):
    list_display = [
        *("tax_office", "month", money("amount_minor"), "at", "asked_by", "decided_by"),
        "came_back",
    ]
    readonly_fields = ["asked_by", "decided_by", "came_back"]
    list_filter = ["jurisdiction", "month"]
    search_fields = ["approval__id", "entry__id"]
    list_select_related = ["approval", "entry__reversed_by"]

    @admin.display(description="tax office", ordering="jurisdiction")
    def tax_office(self, remittance: TaxRemittance) -> str:
        return remittance.jurisdiction

    @admin.display(description="asked by")
    def asked_by(self, remittance: TaxRemittance) -> str:
        return remittance.approval.requested_by

    @admin.display(description="decided by")
    def decided_by(self, remittance: TaxRemittance) -> str:
        return remittance.approval.decided_by

    @admin.display(description="came back")
    def came_back(self, remittance: TaxRemittance) -> str:
        """Lead to the entry that took it back, if the bank returned it."""
        back = getattr(remittance.entry, "reversed_by", None)
        if back is None:
            return "no"
        return link_to(back.pk, words=f"yes, {back.effective_at:%Y-%m-%d}")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("offices/", view(offices_view), name="billing_tax_offices"),
            path("<str:remittance_id>/back/", view(back_view), name="billing_tax_back"),
            *super().get_urls(),
        ]


def offices_view(request: HttpRequest) -> HttpResponse:
    """Show what each tax office is owed of a month; ask to remit what is open of it."""
    if not request.user.has_perm(SEE_PERMISSION):
        raise PermissionDenied
    at = timezone.now()
    month, periods, refused = request.GET.get("month") or _last_month(at), [], ""
    try:
        periods = tax_reports.offices(month=month, at=at)
    except DomainError as refusal:
        refused = refusal.detail
    may_ask = request.user.has_perm(REQUEST_PERMISSION)
    is_open = any(each.open > 0 for each in periods)
    form = RemitForm(request.POST or None, periods=periods) if may_ask and is_open else None
    if request.method == "POST":
        if form is None:
            raise PermissionDenied
        if form.is_valid() and (answer := _ask(request, form, month=month, at=at)):
            return answer
    return page(
        request,
        "admin/billing/taxremittance/offices.html",
        title=f"Tax offices, {month}" if not refused else "Tax offices",
        month=month,
        month_form=MonthForm(initial={"month": month}),
        refused=refused,
        rows=[(each, *_amounts(each), *_waiting(each)) for each in periods],
        form=form,
        buttons=[("ask", "Ask to remit")],
    )


def back_view(request: HttpRequest, remittance_id: str) -> HttpResponse:
    """Ask to take a remittance back whose transfer was returned by the bank."""
    if not request.user.has_perm(REQUEST_PERMISSION):
        raise PermissionDenied
    remittance = get_object_or_404(TaxRemittance, pk=remittance_id)
    amount = Money(remittance.amount_minor, remittance.currency)
    form = ReasonForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        answer = ask(
            request,
            form,
            kind=ApprovalKind.REMITTANCE_REVERSAL,
            organization=None,
            subject_id=remittance.pk,
            amount=amount,
            at=timezone.now(),
        )
        if answer is not None:
            return answer
    return page(
        request,
        "admin/billing/form.html",
        title=f"Take back the remittance to {remittance.jurisdiction}",
        form=form,
        intro=f"{amount} of {remittance.month} came back from the bank: the month will be owed again.",
        buttons=[("ask", "Ask to take it back")],
    )


def _ask(
    request: HttpRequest, form: RemitForm, *, month: str, at: dt.datetime
) -> HttpResponse | None:
    """Ask for what the form says; None where it is refused, and the form says why."""
    jurisdiction, _, currency = form.cleaned_data["office"].partition(":")
    return ask(
        request,
        form,
        kind=ApprovalKind.TAX_REMITTANCE,
        organization=None,
        subject_id=tax_remittances.subject_of(jurisdiction=jurisdiction, month=month),
        amount=Money(form.cleaned_data["amount_minor"], currency),
        at=at,
    )


def _waiting(period: Period) -> tuple[Approval | None, str]:
    """Return the request that waits for its decision, and how much it asks for."""
    subject = tax_remittances.subject_of(jurisdiction=period.jurisdiction, month=period.month)
    found = Approval.objects.filter(
        kind=ApprovalKind.TAX_REMITTANCE,
        subject_id=subject,
        currency=period.currency,
        status=ApprovalStatus.REQUESTED,
    ).first()
    return found, _written(found.amount_minor, period) if found else ""


def _amounts(period: Period) -> tuple[str, str, str]:
    due, remitted, left = (
        _written(minor, period) for minor in (period.due, period.remitted, period.open)
    )
    return due, remitted, left


def _written(minor: int, period: Period) -> str:
    return amount_text(minor=minor, currency=period.currency)


def _last_month(at: dt.datetime) -> str:
    """Return the month before an instant's: the one that is filed next."""
    return f"{at.astimezone(dt.UTC).replace(day=1) - dt.timedelta(days=1):%Y-%m}"
