"""How staff ask for what takes two people, wherever in the admin they do it."""

import datetime as dt

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from billing import approvals
from billing.states import ApprovalKind, ApprovalStatus
from marketplace.core.errors import DomainError
from marketplace.core.money import Money
from marketplace.models import Organization

REQUEST_PERMISSION = "billing.add_approval"
REASON_LENGTH_MAX = 2000


def ask(
    request: HttpRequest,
    form: forms.Form,
    *,
    kind: ApprovalKind,
    organization: Organization | None,
    subject_id: str,
    amount: Money,
    at: dt.datetime,
    net_days: int | None = None,
    expires_at: dt.datetime | None = None,
) -> HttpResponse | None:
    """Ask for a movement of money for the `reason` of a valid form, and go to where it is decided.

    None where it is refused: the form says why.
    """
    try:
        asked = approvals.request(
            kind=kind,
            organization=organization,
            subject_id=subject_id,
            amount=amount,
            reason=form.cleaned_data["reason"],
            net_days=net_days,
            expires_at=expires_at,
            at=at,
            actor=request.user.get_username(),
        )
    except DomainError as refusal:
        field = (refusal.pointer or "").strip("/")
        form.add_error(field if field in form.fields else None, refusal.detail)
        return None
    is_open = asked.status == ApprovalStatus.REQUESTED
    said = "waits for somebody else to decide it" if is_open else f"is {asked.status}"
    messages.success(request, f"{asked.id} {said}.")
    return HttpResponseRedirect(reverse("admin:billing_approval_change", args=[asked.pk]))
