"""Validate every answer of /v1 against the committed OpenAPI document: status, media type and body.

Stricter than a client need be: a member that the document does not name fails, so that nothing is
answered that is not documented.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # no stubs are installed

from marketplace.api import documents

_MEMBERS_OF_THEIR_OWN = {"Problem"}  # RFC 9457: a problem may bring more members


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(documents.committed_document())
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema and name not in _MEMBERS_OF_THEIR_OWN:
            schema.setdefault("additionalProperties", False)
    return document


@cache
def _routes() -> list[tuple[re.Pattern[str], Mapping[str, Any]]]:
    """Return the paths as patterns, those without a parameter first: `/v1/a/{id}` also matches `/v1/a/b`."""
    paths = sorted(_document()["paths"].items(), key=lambda item: item[0].count("{"))
    return [
        (re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))), operations)
        for path, operations in paths
    ]


@cache
def _validator(pointer: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#{pointer}", "components": _document()["components"], **_inline(pointer)}
    )


def _inline(pointer: str) -> dict[str, Any]:
    return {"paths": _document()["paths"]} if pointer.startswith("/paths") else {}


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


class Undocumented(AssertionError):
    """The answer is not what the document promises."""


def check(*, method: str, path: str, status: int, content_type: str, body: bytes) -> None:
    """Compare one answer with the document.

    :raises Undocumented: when its status, its media type or its body is not documented.
    """
    call = f"{method} {path} → {status}"
    if not path.startswith("/v1/") or path in ("/v1/openapi.json", "/v1/docs"):
        return
    if status in (404, 405) and not _operation(method=method, path=path):
        _check_problem(call=call, content_type=content_type, body=body)
        return
    found = _operation(method=method, path=path)
    if found is None:
        raise Undocumented(f"{call}: the operation is not documented")
    template, operation = found
    response = operation["responses"].get(str(status))
    if response is None:
        raise Undocumented(f"{call}: the status is not documented; body {body[:500]!r}")
    if not response.get("content"):
        if body:
            raise Undocumented(f"{call}: a body where none is documented")
        return
    media_type = content_type.partition(";")[0]
    if media_type not in response.get("content", {}):
        raise Undocumented(f"{call}: {media_type} is not documented")
    if method == "HEAD":
        return
    if media_type == "application/pdf":
        return  # a file has no schema; what is in it is for its own tests
    pointer = "/".join(
        [
            "",
            "paths",
            _escape(template),
            method.lower(),
            "responses",
            str(status),
            "content",
            _escape(media_type),
            "schema",
        ]
    )
    _check_body(call=call, pointer=pointer, body=body)


def _check_problem(*, call: str, content_type: str, body: bytes) -> None:
    if content_type != "application/problem+json":
        raise Undocumented(f"{call}: {content_type} where a problem was due")
    _check_body(call=call, pointer="/components/schemas/Problem", body=body)


def _check_body(*, call: str, pointer: str, body: bytes) -> None:
    value = json.loads(body, parse_float=_refuse_float, parse_constant=_refuse_float)
    errors = sorted(_validator(pointer).iter_errors(value), key=lambda error: list(error.path))
    if errors:
        raise Undocumented(f"{call}: {errors[0].json_path}: {errors[0].message}")


def _refuse_float(text: str) -> float:
    raise Undocumented(f"the answer holds the JSON float {text}")


def _operation(*, method: str, path: str) -> tuple[str, Mapping[str, Any]] | None:
    name = "get" if method == "HEAD" else method.lower()
    for pattern, operations in _routes():
        if pattern.fullmatch(path) and name in operations:
            template = next(p for p, o in _document()["paths"].items() if o is operations)
            return template, operations[name]
    return None
