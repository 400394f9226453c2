"""The calls that are not built: each says so, to those who might have made it."""

import re

import pytest

from marketplace.api import not_built
from tests.conftest import ApiClient

pytestmark = pytest.mark.django_db

CALLS = [
    ("/v1/" + re.sub(r"<[^>]*>", "abc_1", str(pattern.pattern)), method)
    for pattern in not_built.urlpatterns
    for method in vars(pattern.callback)["cls"].scopes
]


@pytest.mark.parametrize(("path", "method"), CALLS)
class TestCall:
    def test_says_that_it_is_not_built(self, api: ApiClient, path: str, method: str) -> None:
        answer = api.call(method, path, query={"month": "2026-11"})
        assert (answer.status, answer.code) == (501, "not_implemented")
        assert len(answer.json["detail"]) > 20

    def test_asks_for_a_key_first(self, anybody: ApiClient, path: str, method: str) -> None:
        assert anybody.call(method, path).code == "api_key_required"
