"""Whatever is sent, every operation of the document answers as the document says, and never with a fault."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, settings

from marketplace.api import throttling
from tests import openapi
from tests.api.world import a_fleet, a_quote, a_reservation, fund
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization

EXAMPLES_PER_OPERATION = 25  # some forty operations: a minute in all

OPERATIONS = [
    (method.upper(), path)
    for path, operations in openapi._document()["paths"].items()
    for method in operations
]


@pytest.fixture
def secret(db: None) -> Iterator[str]:
    """Return the key of a company that has machines, money, quotes and a reservation.

    While it is in use, requests keep the connection, and with it the test's transaction, open.
    """
    organization = an_organization()
    _, secret = a_key(organization=organization)
    a_fleet(gpus=8)
    fund(organization)
    api = ApiClient(secret=secret)
    a_quote(api)
    a_reservation(api)
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield secret
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_keeps_to_the_document(secret: str, method: str, path: str) -> None:
    """Send what fits the document and what does not; 501 is an answer, any other 5xx is not."""

    @settings(
        max_examples=EXAMPLES_PER_OPERATION,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        throttling.buckets.clear()
        headers: Mapping[str, str] = {"Authorization": f"Bearer {secret}"}
        response = case.call(headers=headers)
        assert response.status_code < 500 or response.status_code == 501, response.content
        openapi.check(
            method=method,
            path=case.formatted_path,
            status=response.status_code,
            content_type=response.headers.get("content-type", [""])[0],
            body=response.content,
        )

    target = schemathesis.openapi.from_wsgi("/v1/openapi.json", WSGIHandler())[path][method]
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
        given(case=target.as_strategy(generation_mode=mode))(send)()
