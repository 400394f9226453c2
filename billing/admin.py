"""The books as operators see them: everything searchable, nothing editable; deposits through their verb."""

import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, F, Model, OuterRef, QuerySet, Subquery, Sum, When
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing import (
    approvals,
    books,
    budget_admin,  # noqa: F401 - registers its own classes
    invoice_admin,  # noqa: F401 - registers its own classes
    invoice_payments,
    onboarding,
    receivables,
    tax_admin,  # noqa: F401 - registers its own classes
    tax_remittance_admin,  # noqa: F401 - registers its own classes
    wallet,
)
from billing.models import (
    NET_DAYS,
    Account,
    Approval,
    ApprovalTransition,
    BooksRun,
    Correction,
    CreditSale,
    CreditTerms,
    Difference,
    Dispute,
    DisputeTransition,
    DunningCase,
    DunningTransition,
    EarnedHour,
    Entry,
    InboxEvent,
    Intent,
    Parking,
    Payment,
    Payout,
    PayoutAccount,
    PayoutTransition,
    Posting,
    Refund,
    RefundTransition,
    Reserve,
    Settlement,
)
from billing.states import GPU_SECONDS, MARKETS_OWN, ApprovalKind
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.core.read_only import ReadOnly
from marketplace.models import Organization

DEPOSIT_PERMISSION = "billing.add_entry"
BOOKS_PERMISSION = "billing.view_entry"
REQUEST_PERMISSION = "billing.add_approval"
DECIDE_PERMISSION = "billing.change_approval"


def amount_text(*, minor: int, currency: str) -> str:
    """Return an amount as people write it; GPU-seconds are no money."""
    if currency == GPU_SECONDS:
        return f"{minor:,} GPU-s"
    return str(Money(minor, currency))


class PostingInline(ReadOnly, TabularInline):  # type: ignore[misc] # unfold has no types
    model = Posting
    fields = ["account", "side", "amount"]
    extra = 0


class PayoutTransitionInline(ReadOnly, TabularInline):  # type: ignore[misc] # unfold has no types
    model = PayoutTransition
    fields = ["from_status", "to_status", "actor", "at"]
    extra = 0


class DepositForm(forms.Form):
    """Money that arrived on the bank account. The key makes a form that is sent twice count once."""

    organization = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_tenant=True).order_by("name"),
        label="Tenant",
        widget=UnfoldAdminSelectWidget,
    )
    amount_minor = forms.IntegerField(
        min_value=1,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text=f"of {settings.CURRENCY.upper()}: 1250 is what people write as 12.50 in US dollars",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput)


class TransferForm(forms.Form):
    """Money that arrived on the bank account for an invoice. A form that is sent twice counts once."""

    amount_minor = forms.IntegerField(
        min_value=1,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput)


class RequestForm(forms.Form):
    """A movement of money that takes two people; a small refund takes one."""

    kind = forms.ChoiceField(
        choices=[choice for choice in ApprovalKind.choices if choice[0] not in MARKETS_OWN],
        widget=UnfoldAdminSelectWidget,
    )
    organization = forms.ModelChoiceField(
        queryset=Organization.objects.order_by("name"), widget=UnfoldAdminSelectWidget
    )
    subject_id = forms.CharField(
        max_length=32,
        label="About",
        help_text="the reservation, the invoice, or the organization itself",
        widget=UnfoldAdminTextInputWidget,
    )
    amount_minor = forms.IntegerField(
        min_value=0,
        max_value=wallet.DEPOSIT_MINOR_MAX,
        label="Amount in minor units",
        help_text="the limit of a credit; 0 ends it, and lets parked money move again",
        widget=UnfoldAdminIntegerFieldWidget,
    )
    net_days = forms.TypedChoiceField(
        choices=[("", "—"), *NET_DAYS],
        coerce=int,
        empty_value=None,
        required=False,
        label="Time to pay an invoice",
        help_text="of a credit alone",
        widget=UnfoldAdminSelectWidget,
    )
    reason = forms.CharField(max_length=2000, widget=UnfoldAdminTextareaWidget)


@admin.register(Account)
class AccountAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["code", "currency", "derived_balance", "guarded", "organization"]
    list_filter = ["kind", "currency", "guarded"]
    search_fields = ["code", "organization__name", "organization__id"]
    list_select_related = ["organization"]
    ordering = ["code", "currency"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Account]:
        """Add the balance as postings make it, in the account's normal side."""
        sums = (
            Posting.objects.filter(account=OuterRef("pk"))
            .order_by()
            .values("account")
            .annotate(
                total=Sum(
                    Case(
                        When(side=F("account__normal_side"), then=F("amount")),
                        default=-F("amount"),
                    )
                )
            )
            .values("total")
        )
        rows: QuerySet[Account] = super().get_queryset(request)
        return rows.annotate(derived=Coalesce(Subquery(sums), 0))

    @admin.display(description="balance, derived", ordering="derived")
    def derived_balance(self, account: Account) -> str:
        return amount_text(minor=account.derived, currency=account.currency)  # type: ignore[attr-defined] # annotated

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("deposit/", view(deposit_view), name="billing_deposit"),
            *super().get_urls(),
        ]


@admin.register(Entry)
class EntryAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "kind", "subject_id", "effective_at", "recorded_at"]
    list_filter = ["kind", "effective_at"]
    search_fields = ["id", "subject_id", "idempotency_key"]
    inlines = [PostingInline]


@admin.register(Posting)
class PostingAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "entry", "account", "side", "amount_written"]
    list_filter = ["side", "account__kind", "account__currency", "entry__kind"]
    search_fields = ["entry__id", "entry__subject_id", "account__code"]
    list_select_related = ["entry", "account"]

    @admin.display(description="amount", ordering="amount")
    def amount_written(self, posting: Posting) -> str:
        return amount_text(minor=posting.amount, currency=posting.account.currency)


@admin.register(Settlement)
class SettlementAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = [
        "id",
        "lease",
        "owner",
        "bought_minor",
        "earned_minor",
        "refunded_minor",
        "owner_minor",
        "currency",
        "settled_at",
        "released_at",
    ]
    list_filter = ["currency", "settled_at", ("released_at", admin.EmptyFieldListFilter)]
    search_fields = ["id", "lease__id", "lease__reservation__id", "owner__name"]
    list_select_related = ["lease", "owner"]


@admin.register(Payout)
class PayoutAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "owner", "amount_written", "status", "due_at"]
    list_filter = ["status", "currency", "due_at"]
    search_fields = ["id", "owner__name", "settlement__id", "settlement__lease__id"]
    list_select_related = ["owner"]
    inlines = [PayoutTransitionInline]

    @admin.display(description="amount", ordering="amount_minor")
    def amount_written(self, payout: Payout) -> str:
        return amount_text(minor=payout.amount_minor, currency=payout.currency)


class _Shown(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    """A table that verbs write and people read."""


def _transitions_of(model: type[Model]) -> type[TabularInline]:
    """Return the inline that shows every move of a state machine."""
    return type(
        f"{model.__name__}Inline",
        (ReadOnly, TabularInline),
        {"model": model, "fields": ["from_status", "to_status", "actor", "at"], "extra": 0},
    )


@admin.register(EarnedHour)
class EarnedHourAdmin(_Shown):
    list_display = ["lease", "starts_at", "earned_minor", "owner_minor", "fee_minor", "closed_at"]
    list_filter = ["starts_at"]
    search_fields = ["lease__id", "lease__node__organization__name"]
    list_select_related = ["lease"]


@admin.register(Correction)
class CorrectionAdmin(_Shown):
    list_display = ["settlement", "number", "earned_minor", "refunded_minor", "corrected_at"]
    list_filter = ["corrected_at"]
    search_fields = ["settlement__id", "settlement__lease__id", "settlement__owner__name"]
    list_select_related = ["settlement"]


@admin.register(Reserve)
class ReserveAdmin(_Shown):
    list_display = ["settlement", "amount_minor", "currency", "release_due_at", "released_at"]
    list_filter = [("released_at", admin.EmptyFieldListFilter)]
    search_fields = ["settlement__id", "settlement__owner__name"]
    list_select_related = ["settlement"]


@admin.register(Refund)
class RefundAdmin(_Shown):
    list_display = ["id", "reservation", "status", "amount_minor", "currency", "created_at"]
    list_filter = ["status", "created_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation"]
    inlines = [_transitions_of(RefundTransition)]


@admin.register(Dispute)
class DisputeAdmin(_Shown):
    list_display = ["id", "reservation", "status", "amount_minor", "currency", "opened_at"]
    list_filter = ["status", "opened_at"]
    search_fields = ["id", "reservation__id", "reservation__organization__name"]
    list_select_related = ["reservation"]
    inlines = [_transitions_of(DisputeTransition)]


@admin.register(BooksRun)
class BooksRunAdmin(_Shown):
    list_display = ["at", "ok"]
    list_filter = ["ok", "at"]
    search_fields = ["checks"]


@admin.register(Parking)
class ParkingAdmin(_Shown):
    list_display = ["organization", "reason", "parked_at", "ended_at"]
    list_filter = [("ended_at", admin.EmptyFieldListFilter)]
    search_fields = ["organization__name", "organization__id", "reason"]
    list_select_related = ["organization"]


@admin.register(Approval)
class ApprovalAdmin(_Shown):
    list_display = [
        "id",
        "kind",
        "organization",
        "amount_minor",
        "status",
        "requested_by",
        "decided_by",
    ]
    list_filter = ["status", "kind"]
    search_fields = ["id", "subject_id", "organization__name"]
    list_select_related = ["organization"]
    inlines = [_transitions_of(ApprovalTransition)]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("request/", view(request_view), name="billing_request"),
            path("<str:approval_id>/decide/", view(decide_view), name="billing_decide"),
            *super().get_urls(),
        ]


def books_view(request: HttpRequest) -> HttpResponse:
    """Check the books and show each invariant; as JSON for `?format=json` or a client that asks for it."""
    if not request.user.has_perm(BOOKS_PERMISSION):
        raise PermissionDenied
    report = books.check(at=timezone.now())
    if request.GET.get("format") == "json" or _wants_json(request):
        return JsonResponse(
            {
                "ok": report.ok,
                "at": report.at.isoformat().replace("+00:00", "Z"),
                "checks": [
                    {"name": check.name, "ok": check.ok, "detail": check.detail}
                    for check in report.checks
                ],
            }
        )
    return _page(
        request,
        "admin/billing/books.html",
        title="Books",
        report=report,
        last_night=BooksRun.objects.first(),
        parked=Parking.objects.filter(ended_at__isnull=True).select_related("organization"),
    )


def deposit_view(request: HttpRequest) -> HttpResponse:
    """Record money that arrived for a tenant's wallet."""
    if not request.user.has_perm(DEPOSIT_PERMISSION):
        raise PermissionDenied
    if request.method != "POST":
        form = DepositForm(initial={"idempotency_key": uuid.uuid4()})
        return _page(
            request,
            "admin/billing/form.html",
            title="Record a deposit",
            form=form,
            buttons=[("record", "Record the deposit")],
        )
    form = DepositForm(request.POST)
    if form.is_valid():
        organization = form.cleaned_data["organization"]
        try:
            entry = wallet.record_deposit(
                organization=organization,
                amount=Money(form.cleaned_data["amount_minor"], settings.CURRENCY),
                idempotency_key=str(form.cleaned_data["idempotency_key"]),
                at=timezone.now(),
                actor=request.user.get_username(),
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            held = wallet.balance(organization=organization)
            messages.success(request, f"{entry.id}: the wallet of {organization} holds {held}.")
            return HttpResponseRedirect(reverse("admin:billing_entry_change", args=[entry.pk]))
    return _page(
        request,
        "admin/billing/form.html",
        title="Record a deposit",
        form=form,
        buttons=[("record", "Record the deposit")],
    )


def transfer_view(request: HttpRequest, sale_id: str) -> HttpResponse:
    """Record money that arrived on the bank account for an invoice."""
    if not request.user.has_perm(DEPOSIT_PERMISSION):
        raise PermissionDenied
    sale = get_object_or_404(CreditSale.objects.select_related("organization"), pk=sale_id)
    form = TransferForm(request.POST or None, initial={"idempotency_key": uuid.uuid4()})
    if request.method == "POST" and form.is_valid():
        try:
            payment_id = invoice_payments.record_transfer(
                sale=sale,
                amount=Money(form.cleaned_data["amount_minor"], sale.currency),
                idempotency_key=str(form.cleaned_data["idempotency_key"]),
                at=timezone.now(),
                actor=request.user.get_username(),
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            text = amount_text(minor=_open_minor(sale), currency=sale.currency)
            messages.success(request, f"{payment_id}: {text} of {sale.invoice_id} are still open.")
            return HttpResponseRedirect(reverse("admin:billing_creditsale_change", args=[sale.pk]))
    return _page(
        request,
        "admin/billing/form.html",
        title=f"Record a transfer for {sale.invoice_id}",
        form=form,
        intro=f"{sale.organization} owes it since {sale.created_at:%Y-%m-%d}; what is beyond it goes to "
        "the wallet.",
        buttons=[("record", "Record the transfer")],
    )


def request_view(request: HttpRequest) -> HttpResponse:
    """Ask for a movement of money."""
    if not request.user.has_perm(REQUEST_PERMISSION):
        raise PermissionDenied
    form = RequestForm(request.POST or None, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid():
        wish = form.cleaned_data
        try:
            approval = approvals.request(
                kind=ApprovalKind(wish["kind"]),
                organization=wish["organization"],
                subject_id=wish["subject_id"],
                amount=Money(wish["amount_minor"], settings.CURRENCY),
                reason=wish["reason"],
                net_days=wish["net_days"],
                at=timezone.now(),
                actor=request.user.get_username(),
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            messages.success(request, f"{approval.id} is {approval.status}.")
            return HttpResponseRedirect(
                reverse("admin:billing_approval_change", args=[approval.pk])
            )
    return _page(
        request,
        "admin/billing/form.html",
        title="Ask for a movement of money",
        form=form,
        intro="A refund up to the market's limit happens at once; everything else waits for somebody else.",
        buttons=[("ask", "Ask")],
    )


def decide_view(request: HttpRequest, approval_id: str) -> HttpResponse:
    """Let what somebody else asked for happen, or refuse it."""
    if not request.user.has_perm(DECIDE_PERMISSION):
        raise PermissionDenied
    approval = get_object_or_404(Approval, pk=approval_id)
    form = forms.Form(request.POST or None)
    verb = {"approve": approvals.approve, "refuse": approvals.refuse}.get(
        request.POST.get("decision", "")
    )
    if request.method == "POST" and form.is_valid() and verb is not None:
        try:
            decided = verb(
                approval_id=approval.pk, at=timezone.now(), actor=request.user.get_username()
            )
        except DomainError as refusal:
            form.add_error(None, refusal.detail)
        else:
            messages.success(request, f"{decided.id} is {decided.status}.")
            return HttpResponseRedirect(reverse("admin:billing_approval_change", args=[decided.pk]))
    amount = amount_text(minor=approval.amount_minor, currency=approval.currency)
    return _page(
        request,
        "admin/billing/form.html",
        title=f"Decide {approval.id}",
        form=form,
        intro=(
            f"{approval.requested_by} asks for: {approval.get_kind_display().lower()} of {amount} for "
            f"{approval.organization or 'the market itself'}, about {approval.subject_id}. "
            f"Reason: {approval.reason}"
        ),
        buttons=[("approve", "Let it happen"), ("refuse", "Refuse")],
    )


def _open_minor(sale: CreditSale) -> int:
    return receivables.open_minor(
        organization=sale.organization, invoice_id=sale.invoice_id, currency=sale.currency
    )


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _page(request: HttpRequest, template: str, **context: Any) -> TemplateResponse:  # noqa: ANN401
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context})


@admin.register(PayoutAccount)
class PayoutAccountAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    """Where owners are paid. A change is approved by somebody else than who asked for it."""

    list_display = ["id", "owner", "receives", "requested_by", "approved_by", "usable_at"]
    list_filter = ["receives", "usable_at"]
    search_fields = ["id", "owner__name", "provider_id"]
    list_select_related = ["owner"]
    actions = ["approve", "withdraw"]

    @admin.action(description="Approve: in use after three days", permissions=["decide"])
    def approve(self, request: HttpRequest, chosen: QuerySet[PayoutAccount]) -> None:
        self._each(request, chosen, verb=onboarding.approve)

    @admin.action(description="Withdraw: never to be used", permissions=["decide"])
    def withdraw(self, request: HttpRequest, chosen: QuerySet[PayoutAccount]) -> None:
        self._each(request, chosen, verb=onboarding.withdraw)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_payoutaccount")

    def _each(
        self, request: HttpRequest, chosen: QuerySet[PayoutAccount], *, verb: Callable[..., object]
    ) -> None:
        for account in chosen:
            try:
                verb(account_id=account.pk, at=timezone.now(), actor=request.user.get_username())
            except DomainError as refusal:
                self.message_user(request, f"{account.pk}: {refusal.detail}", messages.ERROR)
            else:
                self.message_user(request, f"{account.pk} is done.")


@admin.register(CreditTerms)
class CreditTermsAdmin(_Shown):
    """How much tenants may owe. What changes it is asked for among the approvals."""

    list_display = ["organization", "version", "limit_written", "net_days", "granted_at"]
    list_filter = ["net_days", "currency", "granted_at"]
    search_fields = ["id", "organization__name", "organization__id", "approval__id"]
    list_select_related = ["organization"]

    @admin.display(description="limit", ordering="limit_minor")
    def limit_written(self, terms: CreditTerms) -> str:
        return amount_text(minor=terms.limit_minor, currency=terms.currency)


@admin.register(CreditSale)
class CreditSaleAdmin(_Shown):
    """What was bought on account; what was paid of it by bank is recorded here."""

    list_display = ["invoice", "organization", "reservation", "amount_written", "due_at"]
    list_filter = ["currency", "due_at"]
    search_fields = [
        "id",
        "invoice__id",
        "invoice__number",
        "organization__name",
        "reservation__id",
    ]
    list_select_related = ["organization", "invoice"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("<str:sale_id>/pay/", view(transfer_view), name="billing_transfer_received"),
            *super().get_urls(),
        ]

    @admin.display(description="amount", ordering="amount_minor")
    def amount_written(self, sale: CreditSale) -> str:
        return amount_text(minor=sale.amount_minor, currency=sale.currency)


@admin.register(DunningCase)
class DunningCaseAdmin(_Shown):
    """How far the collection of what is owed has come; giving it up is asked for among the approvals."""

    list_display = ["sale", "tenant", "status", "open_written", "act_due_at"]
    list_filter = ["status", "act_due_at"]
    search_fields = ["sale__id", "sale__invoice__number", "sale__organization__name"]
    list_select_related = ["sale__organization", "sale__invoice"]
    readonly_fields = ["open_written", "write_off"]
    inlines = [_transitions_of(DunningTransition)]

    @admin.display(description="tenant", ordering="sale__organization__name")
    def tenant(self, case: DunningCase) -> str:
        return str(case.sale.organization)

    @admin.display(description="open")
    def open_written(self, case: DunningCase) -> str:
        return amount_text(minor=_open_minor(case.sale), currency=case.sale.currency)

    @admin.display(description="write-off")
    def write_off(self, case: DunningCase) -> str:
        still_open = _open_minor(case.sale)
        if not still_open:
            return "nothing is owed"
        wish = {
            "kind": ApprovalKind.WRITE_OFF.value,
            "organization": case.sale.organization_id,
            "subject_id": case.sale.invoice_id,
            "amount_minor": still_open,
        }
        address = f"{reverse('admin:billing_request')}?{urlencode(wish)}"
        return format_html('<a href="{}">Ask for a write-off</a>', address)


@admin.register(Payment)
class PaymentAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "organization", "purpose", "means", "amount_written", "status", "due_at"]
    list_filter = ["status", "purpose", "means", "created_at"]
    search_fields = ["id", "organization__name", "provider_id", "charge_id", "reservation__id"]
    list_select_related = ["organization"]
    # Whoever has the secret can pay, and see the page: nobody here needs it.
    exclude = ["client_secret"]

    @admin.display(description="amount", ordering="amount_minor")
    def amount_written(self, payment: Payment) -> str:
        return amount_text(minor=payment.amount_minor, currency=payment.currency)


@admin.register(Intent)
class IntentAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "kind", "subject_id", "status", "attempts", "refusal_code", "due_at"]
    list_filter = ["status", "kind", "created_at"]
    search_fields = ["id", "subject_id", "object_id"]


@admin.register(Difference)
class DifferenceAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "kind", "object_id", "detail", "first_seen_at", "resolved_at"]
    list_filter = ["kind", ("resolved_at", admin.EmptyFieldListFilter)]
    search_fields = ["object_id"]


@admin.register(InboxEvent)
class InboxEventAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = ["id", "type", "object_id", "source", "received_at", "outcome", "attempts"]
    list_filter = ["outcome", "source", "type"]
    search_fields = ["id", "object_id"]
