"""What the admin shows and nobody edits: states move by verbs alone, and evidence stands."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, reduce
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from marketplace.core.money import Money, grouped

Column = str | Callable[[Any], Any]
NOT_SET = "–"
MINOR_UNITS = "_minor"  # how the columns of amounts end


@cache
def money(column: str, *, name: str = "", currency: str = "currency") -> Callable[[Any], str]:
    """Return a column of a list or a field of a page: minor units as people read them.

    `currency` is the path to the row's own, such as `settlement__currency`.
    """

    @admin.display(
        description=name or column.removesuffix(MINOR_UNITS).replace("_", " "), ordering=column
    )
    def shown(row: Any) -> str:  # noqa: ANN401 - a row of any table with amounts
        minor = getattr(row, column)
        if minor is None:
            return NOT_SET
        return grouped(Money(minor, reduce(getattr, currency.split("__"), row)))

    return shown


class ReadOnly:
    """Refuse to add, change and delete, whoever asks; mixed into admin classes and their inlines.

    Columns of minor units are shown as money, whose currency is not repeated beside them.
    """

    # The path to the currency of a row's amounts.
    currency_of: ClassVar[str] = "currency"

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Column]:  # noqa: ANN401 - a row of any table
        return self.as_read(super().get_fields(request, obj))  # type: ignore[misc] # of that class

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Column]:  # noqa: ANN401 - a row of any table
        """Name what is no column of the table too, which a form would look for otherwise."""
        declared = super().get_readonly_fields(request, obj)  # type: ignore[misc] # of that class
        named = self.as_read(getattr(self, "fields", None) or ())
        return [*declared, *(each for each in named if callable(each))]

    def as_read(self, names: Iterable[Any]) -> list[Column]:
        """Return fields as people read them: amounts as money, and everything else as it stands."""
        found = [
            money(name, currency=self.currency_of)
            if isinstance(name, str) and name.endswith(MINOR_UNITS)
            else name
            for name in names
        ]
        has_amounts = any(name != each for name, each in zip(names, found, strict=True))
        return [each for each in found if not (has_amounts and each == self.currency_of)]
