"""The statements of owners, for whoever answers their questions: a form, and the file that it leads to."""

from django import forms
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from billing import owner_statements, pdf
from billing.admin.shown import page
from marketplace.models import Organization

PERMISSION = "billing.view_payout"


class StatementForm(forms.Form):
    """Whose statement, and of which month."""

    owner = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_owner=True).order_by("name"),
        widget=UnfoldAdminSelectWidget,
    )
    month = forms.RegexField(
        r"^\d{4}-(0[1-9]|1[0-2])$",
        help_text="of UTC, as 2026-11",
        widget=UnfoldAdminTextInputWidget,
    )


def statement_view(request: HttpRequest) -> HttpResponse:
    """Show the form, or the statement that it asks for as a file."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    form = StatementForm(request.POST or None, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid():
        owner, month = form.cleaned_data["owner"], form.cleaned_data["month"]
        at = timezone.now()
        try:
            found = owner_statements.statement(owner=owner, month=month, at=at)
        except ValueError:
            form.add_error("month", "There is no such month.")
        else:
            return HttpResponse(
                pdf.owner_statement(statement=found, owner=owner, at=at),
                content_type="application/pdf",
                headers={
                    "Content-Disposition": f'inline; filename="statement-{owner.pk}-{month}.pdf"'
                },
            )
    return page(
        request,
        "admin/billing/form.html",
        title="Statement of an owner",
        form=form,
        intro="Every lease, fee and adjustment of a month, as the owner reads it.",
        buttons=[("show", "Show the statement")],
    )
