"""Fixtures that every part of the suite may use."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.test import Client

from agents import pacing
from marketplace.api import throttling
from marketplace.models import Organization
from tests import openapi
from tests.factories import a_key, an_organization
from tests.flush import flush_may_empty_the_books

__all__ = ["flush_may_empty_the_books"]


class Answer:
    """An answer of the API that has been compared with the OpenAPI document."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.content: bytes = response.content

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """Return a problem's code."""
        return str(self.json["code"])


class ApiClient:
    """Call the API as an organization does; every answer is compared with the OpenAPI document."""

    def __init__(self, *, secret: str | None = None) -> None:
        self._client = Client(raise_request_exception=False)
        self._secret = secret

    def signed_in(self, *, secret: str | None) -> "ApiClient":
        """Return a client with another key, or with none."""
        return ApiClient(secret=secret)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        raw: bytes | None = None,
        content_type: str = "application/json",
        key: str | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Make one call. `key` is the Idempotency-Key; `raw` replaces the JSON of `body`."""
        sent = dict(headers or {})
        if self._secret is not None:
            sent.setdefault("Authorization", f"Bearer {self._secret}")
        if key is not None:
            sent["Idempotency-Key"] = key
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        response = self._client.generic(
            method,
            path,
            data,
            content_type=content_type,
            headers=sent,
            query_params=dict(query or {}),
        )
        openapi.check(
            method=method,
            path=path,
            status=response.status_code,
            content_type=response.headers.get("Content-Type", ""),
            body=response.content,
        )
        return Answer(response)

    def get(self, path: str, **query: Any) -> Answer:
        return self.call("GET", path, query={name: str(value) for name, value in query.items()})

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Answer:
        return self.call("POST", path, body=body, key=key)

    def patch(self, path: str, body: object) -> Answer:
        return self.call("PATCH", path, body=body)


@pytest.fixture(autouse=True)
def _full_buckets() -> Iterator[None]:
    """Let no test run out of calls because of the one before it."""
    throttling.buckets.clear()
    yield
    throttling.buckets.clear()


@pytest.fixture(autouse=True)
def _few_nodes() -> Iterator[None]:
    """Let no test wait, or count its queries, by the number of nodes of another one."""
    pacing.remember_count(nodes=0)
    yield
    pacing.remember_count(nodes=0)


@pytest.fixture
def organization(db: None) -> Organization:
    return an_organization()


@pytest.fixture
def api(organization: Organization) -> ApiClient:
    """Return a client with a key of every scope."""
    _, secret = a_key(organization=organization)
    return ApiClient(secret=secret)


@pytest.fixture
def anybody(db: None) -> ApiClient:
    """Return a client without a key."""
    return ApiClient()
