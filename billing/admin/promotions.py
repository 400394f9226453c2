"""Promotions: granted by an approval, spent by purchases, ended by the beat; nothing is edited here."""

from django.contrib import admin

from billing import ledger, promotions
from billing.admin.shown import Shown, amount_text, money
from billing.models import Promotion


@admin.register(Promotion)
class PromotionAdmin(Shown):
    list_display = ["id", "organization", money("amount_minor"), "left", "expires_at", "expired_at"]
    list_filter = [("expired_at", admin.EmptyFieldListFilter), "expires_at"]
    search_fields = ["id", "organization__name", "organization__id", "approval__subject_id"]
    list_select_related = ["organization"]

    @admin.display(description="can still be spent")
    def left(self, promotion: Promotion) -> str:
        left = ledger.balance(account=promotions.account(promotion))
        return amount_text(minor=left, currency=promotion.currency)
