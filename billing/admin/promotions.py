"""Promotions: granted by an approval, spent by purchases, ended by the beat; nothing is edited here."""

from django.contrib import admin

from billing.admin.shown import Shown
from billing.models import Promotion


@admin.register(Promotion)
class PromotionAdmin(Shown):
    list_display = ["id", "organization", "amount_minor", "currency", "expires_at", "expired_at"]
    list_filter = [("expired_at", admin.EmptyFieldListFilter), "expires_at"]
    search_fields = ["id", "organization__name", "organization__id", "approval__subject_id"]
    list_select_related = ["organization"]
