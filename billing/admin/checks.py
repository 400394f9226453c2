"""Whether the books hold, last night and now, and whose money stands still because they did not."""

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone

from billing import books
from billing.admin.shown import Shown, page
from billing.models import BooksRun, Parking

BOOKS_PERMISSION = "billing.view_entry"


@admin.register(BooksRun)
class BooksRunAdmin(Shown):
    list_display = ["at", "ok"]
    list_filter = ["ok", "at"]
    search_fields = ["checks"]


@admin.register(Parking)
class ParkingAdmin(Shown):
    list_display = ["organization", "reason", "parked_at", "ended_at"]
    list_filter = [("ended_at", admin.EmptyFieldListFilter)]
    search_fields = ["organization__name", "organization__id", "reason"]
    list_select_related = ["organization"]


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
    return page(
        request,
        "admin/billing/books.html",
        title="Books",
        report=report,
        # What is broken is what the page is opened for.
        checks=sorted(report.checks, key=lambda check: check.ok),
        broken=sum(not check.ok for check in report.checks),
        last_night=BooksRun.objects.first(),
        parked=Parking.objects.filter(ended_at__isnull=True).select_related("organization"),
    )


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"
