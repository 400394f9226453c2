"""Hours and leases as final money, what was corrected later and what is held back."""

from django.contrib import admin

from billing.admin.shown import Shown
from billing.models import Correction, EarnedHour, Reserve, Settlement


@admin.register(Settlement)
class SettlementAdmin(Shown):
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


@admin.register(EarnedHour)
class EarnedHourAdmin(Shown):
    list_display = ["lease", "starts_at", "earned_minor", "owner_minor", "fee_minor", "closed_at"]
    list_filter = ["starts_at"]
    search_fields = ["lease__id", "lease__node__organization__name"]
    list_select_related = ["lease"]


@admin.register(Correction)
class CorrectionAdmin(Shown):
    list_display = ["settlement", "number", "earned_minor", "refunded_minor", "corrected_at"]
    list_filter = ["corrected_at"]
    search_fields = ["settlement__id", "settlement__lease__id", "settlement__owner__name"]
    list_select_related = ["settlement"]


@admin.register(Reserve)
class ReserveAdmin(Shown):
    list_display = ["settlement", "amount_minor", "currency", "release_due_at", "released_at"]
    list_filter = [("released_at", admin.EmptyFieldListFilter)]
    search_fields = ["settlement__id", "settlement__owner__name"]
    list_select_related = ["settlement"]
