"""What the rooms of the admin share: rows that verbs write and people read, and the frame of a page."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, reduce
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display

from billing.states import GPU_SECONDS
from marketplace.core.money import Money, grouped
from marketplace.core.read_only import NOT_SET, Column, ReadOnly, money

__all__ = [
    "MINOR_UNITS_HELP",
    "NOT_SET",
    "Shown",
    "ShownInline",
    "amount_text",
    "badge",
    "link_to",
    "linked",
    "money",
    "page",
    "transitions_of",
    "whose",
]

MINOR_UNITS_HELP = "1250 is what people write as 12.50 in US dollars"
# Whose page an id leads to, by its prefix. What the provider names is not told apart by its prefix.
_PAGES = {
    "apr": "billing_approval",
    "chg": "scheduler_change",
    "crs": "billing_creditsale",
    "ent": "billing_entry",
    "ext": "scheduler_extensionhold",
    "fee": "billing_feeshare",
    "int": "billing_intent",
    "inv": "billing_invoice",
    "lse": "scheduler_lease",
    "nde": "agents_node",
    "org": "marketplace_organization",
    "pac": "billing_payoutaccount",
    "pay": "billing_payment",
    "pot": "billing_payout",
    "prm": "billing_promotion",
    "qte": "scheduler_quote",
    "ref": "billing_cardrefund",
    "rev": "billing_reversal",
    "rfd": "billing_refund",
    "rsl": "billing_resale",
    "rsv": "scheduler_reservation",
    "set": "billing_settlement",
    "trf": "billing_transfer",
    "wdr": "billing_withdrawal",
}


def amount_text(*, minor: int, currency: str) -> str:
    """Return an amount as people read it; GPU-seconds are no money."""
    return f"{minor:,} GPU-s" if currency == GPU_SECONDS else grouped(Money(minor, currency))


def link_to(object_id: str, *, words: str = "") -> str:
    """Return an id, or words for it, as a link to its page, if it has one."""
    name = _PAGES.get(object_id.partition("_")[0]) if "_" in object_id else None
    if name is None:
        return words or object_id or NOT_SET
    address = reverse(f"admin:{name}_change", args=[quote(object_id)])
    return format_html('<a class="text-link" href="{}">{}</a>', address, words or object_id)


@cache
def linked(column: str, *, name: str = "") -> Callable[[Any], str]:
    """Return a column, or a field of a page, that leads to what its id names."""

    @admin.display(description=name or column.removesuffix("_id"), ordering=column)
    def shown(row: Any) -> str:  # noqa: ANN401 - a row of any table that names another's
        return link_to(getattr(row, column))

    return shown


@cache
def whose(path: str, *, name: str) -> Callable[[Any], str]:
    """Return a column, or a field of a page, that leads to the organization at the end of a path."""

    @admin.display(description=name, ordering=f"{path}__name")
    def shown(row: Any) -> str:  # noqa: ANN401 - a row of any table that is somebody's
        organization = reduce(getattr, path.split("__"), row)
        return link_to(organization.pk, words=organization.name)

    return shown


def badge(column: str, colors: Mapping[str, str]) -> Callable[[Any], tuple[str, str]]:
    """Return a column that marks some choices with a color: success, info, warning or danger."""

    @display(description=column, ordering=column, label=dict(colors))  # type: ignore[untyped-decorator] # unfold has no types
    def shown(row: Any) -> tuple[str, str]:  # noqa: ANN401 - a row of any table with choices
        return getattr(row, column), str(getattr(row, f"get_{column}_display")())

    return shown  # type: ignore[no-any-return] # unfold has no types


class _Linked(ReadOnly):
    """What is read leads to what it is about."""

    # Columns that name another row by its id, and how they are called.
    names_of_others: ClassVar[Mapping[str, str]] = {"subject_id": "about"}

    def as_read(self, names: Iterable[Any]) -> list[Column]:
        return [
            linked(each, name=self.names_of_others[each])
            if isinstance(each, str) and each in self.names_of_others
            else each
            for each in super().as_read(names)
        ]


class Shown(_Linked, ModelAdmin):  # type: ignore[misc] # unfold has no types
    """A table that verbs write and people read."""


class ShownInline(_Linked, TabularInline):  # type: ignore[misc] # unfold has no types
    """Rows of another table under the one that they belong to."""

    extra = 0
    hide_title = True


@admin.display(description="move")
def _move(row: Any) -> str:  # noqa: ANN401 - a transition of any machine
    return f"{row.from_status or '∅'} → {row.to_status}"


def transitions_of(model: type[Model]) -> type[ShownInline]:
    """Return the inline that shows every move of a state machine."""
    return type(
        f"{model.__name__}Inline",
        (ShownInline,),
        {
            "model": model,
            "fields": ["at", _move, "actor"],
            "verbose_name_plural": "What became of it",
        },
    )


def page(request: HttpRequest, template: str, **context: Any) -> TemplateResponse:  # noqa: ANN401 - what the template asks for
    """Return a page of the admin's frame, its menu included."""
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context})
