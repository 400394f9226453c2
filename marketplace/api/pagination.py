"""Lists: `{"data": […], "next_cursor": …}` in a stable order, a page at a time.

A cursor names the last object of its page, not a number of objects to skip, so that what is written between
two calls neither repeats nor hides an object.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from django.db.models import CharField, ForeignKey, Model, QuerySet
from rest_framework import serializers

from marketplace.api.errors import InvalidRequest

ModelT = TypeVar("ModelT", bound=Model)


class Page(Generic[ModelT]):
    """One page of objects and where the next begins."""

    def __init__(self, *, data: list[ModelT], next_cursor: str | None) -> None:
        self.data = data
        self.next_cursor = next_cursor


def page_of(
    queryset: QuerySet[ModelT], *, query: Mapping[str, Any], order: str = "-id"
) -> Page[ModelT]:
    """Return the page that `limit` and `cursor` of a `PageQuery` ask for.

    `order` is one unique column, with `-` for newest first. Ids sort by the time of their making.

    :raises InvalidRequest: when the cursor is not one of this list's.
    """
    column, descending = order.removeprefix("-"), order.startswith("-")
    queryset = queryset.order_by(order)
    if query["cursor"] is not None:
        last = _decode(query["cursor"], order=order)
        # PostgreSQL would compare a text column with a number as text, and page from nowhere.
        field = queryset.model._meta.get_field(column)  # noqa: SLF001 - Django's documented name for it
        if isinstance(field, ForeignKey):
            field = field.target_field
        if isinstance(last, str) != isinstance(field, CharField):
            raise _foreign_cursor()
        queryset = queryset.filter(**{f"{column}__{'lt' if descending else 'gt'}": last})
    rows = list(queryset[: query["limit"] + 1])
    data = rows[: query["limit"]]
    more = len(rows) > len(data)
    return Page(
        data=data, next_cursor=_encode(getattr(data[-1], column), order=order) if more else None
    )


def _encode(value: object, *, order: str) -> str:
    text = json.dumps([order, value], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str, *, order: str) -> str | int:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value = json.loads(raw)
    except (ValueError, binascii.Error, RecursionError):
        value = None
    if isinstance(value, list) and len(value) == 2 and value[0] == order and _is_plain(value[1]):
        return value[1]  # type: ignore[no-any-return] # checked on the line above
    raise _foreign_cursor()


def _foreign_cursor() -> InvalidRequest:
    return InvalidRequest(
        [{"pointer": "/cursor", "code": "wrong_form", "detail": "is not a cursor of this list"}]
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isprintable()
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def page_serializer(
    item: type[serializers.BaseSerializer[Any]], *, name: str
) -> type[serializers.Serializer[Any]]:
    """Return the serializer of a page of `item`; `name` is its name in the OpenAPI document."""
    return type(
        name,
        (serializers.Serializer,),
        {
            "data": item(many=True),
            "next_cursor": serializers.CharField(
                allow_null=True, help_text="give it as `cursor` for the next page; null on the last"
            ),
            "__module__": __name__,
            "__doc__": "One page of a list.",
        },
    )
