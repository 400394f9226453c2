"""Promotions: granted by an approval, spent by purchases, ended by the beat; nothing is edited here."""

import datetime as dt

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.decorators import display

from billing import ledger, promotions
from billing.admin.shown import NOT_SET, Shown, amount_text, link_to, money
from billing.models import Posting, Promotion

MOVES_MAX = 50  # of one grant on its page; the postings of its account are all of them
_STATES = {"in use": "success", "spent": "info", "expired": "warning"}


@admin.register(Promotion)
class PromotionAdmin(Shown):
    list_display = [
        *("id", "organization", "state", money("amount_minor", name="granted"), "left"),
        *("granted_at", "expires_at", "expired_at"),
    ]
    list_filter = [("expired_at", admin.EmptyFieldListFilter), "expires_at"]
    search_fields = ["id", "organization__name", "organization__id", "approval__subject_id"]
    list_select_related = ["organization"]
    readonly_fields = ["left", "moves"]

    @display(description="state", label=_STATES)  # type: ignore[untyped-decorator] # unfold has no types
    def state(self, promotion: Promotion) -> tuple[str, str]:
        found = _state(promotion, at=timezone.now())
        return found, found

    @admin.display(description="can still be spent")
    def left(self, promotion: Promotion) -> str:
        return amount_text(minor=_left(promotion), currency=promotion.currency)

    @admin.display(description="moves")
    def moves(self, promotion: Promotion) -> str:
        """Tell what was granted, spent, given back and ended of it, the latest first."""
        account = promotions.account(promotion)
        rows = Posting.objects.filter(
            account__code=account.code, account__currency=account.currency
        ).select_related("entry", "account")
        told = (
            (
                f"{row.entry.effective_at:%Y-%m-%d %H:%M} UTC",
                row.entry.kind,
                "+" if row.side == row.account.normal_side else "−",
                amount_text(minor=row.amount, currency=promotion.currency),
                link_to(row.entry.subject_id),
            )
            for row in rows.order_by("-entry__effective_at", "-pk")[:MOVES_MAX]
        )
        return format_html_join("", "<div>{}: {}, {}{}, {}</div>", told) or NOT_SET


def _left(promotion: Promotion) -> int:
    return ledger.balance(account=promotions.account(promotion))


def _state(promotion: Promotion, *, at: dt.datetime) -> str:
    if promotion.expired_at is not None or promotion.expires_at <= at:
        return "expired"
    return "in use" if _left(promotion) else "spent"
