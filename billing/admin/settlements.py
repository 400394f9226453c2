"""Hours and leases as final money, what was corrected later and what is held back."""

from django.contrib import admin

from billing.admin.shown import Shown, money
from billing.models import Correction, EarnedHour, Reserve, Settlement

_OF_LEASE = "lease__reservation__currency"


@admin.register(Settlement)
class SettlementAdmin(Shown):
    list_display = [
        "id",
        "lease",
        "owner",
        money("bought_minor"),
        money("earned_minor"),
        money("refunded_minor"),
        money("owner_minor"),
        "settled_at",
        "released_at",
    ]
    list_filter = ["currency", "settled_at", ("released_at", admin.EmptyFieldListFilter)]
    search_fields = ["id", "lease__id", "lease__reservation__id", "owner__name"]
    list_select_related = ["lease", "owner"]


@admin.register(EarnedHour)
class EarnedHourAdmin(Shown):
    currency_of = _OF_LEASE
    list_display = [
        "lease",
        "starts_at",
        money("earned_minor", currency=_OF_LEASE),
        money("owner_minor", currency=_OF_LEASE),
        money("fee_minor", currency=_OF_LEASE),
        "closed_at",
    ]
    list_filter = ["starts_at"]
    search_fields = ["lease__id", "lease__node__organization__name"]
    list_select_related = ["lease__reservation"]


@admin.register(Correction)
class CorrectionAdmin(Shown):
    currency_of = "settlement__currency"
    list_display = [
        "settlement",
        "number",
        money("earned_minor", currency="settlement__currency"),
        money("refunded_minor", currency="settlement__currency"),
        "corrected_at",
    ]
    list_filter = ["corrected_at"]
    search_fields = ["settlement__id", "settlement__lease__id", "settlement__owner__name"]
    list_select_related = ["settlement"]


@admin.register(Reserve)
class ReserveAdmin(Shown):
    list_display = ["settlement", money("amount_minor"), "release_due_at", "released_at"]
    list_filter = [("released_at", admin.EmptyFieldListFilter)]
    search_fields = ["settlement__id", "settlement__owner__name"]
    list_select_related = ["settlement"]
