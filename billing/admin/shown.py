"""What the rooms of the admin share: rows that verbs write and people read, and the frame of a page."""

from collections.abc import Callable
from decimal import Decimal
from functools import reduce
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin, TabularInline

from billing.states import GPU_SECONDS
from marketplace.core.money import currency_exponent
from marketplace.core.read_only import ReadOnly


def amount_text(*, minor: int, currency: str) -> str:
    """Return an amount as people write it; GPU-seconds are no money."""
    if currency == GPU_SECONDS:
        return f"{minor:,} GPU-s"
    places = currency_exponent(currency)
    return f"{Decimal(minor).scaleb(-places):,.{places}f} {currency.upper()}"


def money(column: str, *, name: str = "", currency: str = "currency") -> Callable[[Any], str]:
    """Return a column of a list: minor units as people write them; `currency` is the path to their own."""

    @admin.display(description=name or column.removesuffix("_minor"), ordering=column)
    def shown(row: Any) -> str:  # noqa: ANN401 - a row of any table with amounts
        minor = getattr(row, column)
        return amount_text(minor=minor, currency=reduce(getattr, currency.split("__"), row))

    return shown


class Shown(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    """A table that verbs write and people read."""


def transitions_of(model: type[Model]) -> type[TabularInline]:
    """Return the inline that shows every move of a state machine."""
    return type(
        f"{model.__name__}Inline",
        (ReadOnly, TabularInline),
        {"model": model, "fields": ["from_status", "to_status", "actor", "at"], "extra": 0},
    )


def page(request: HttpRequest, template: str, **context: Any) -> TemplateResponse:  # noqa: ANN401 - what the template asks for
    """Return a page of the admin's frame, its menu included."""
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context})
