"""The table of statuses is whole: every refusal has a row, and every row a refusal that is raised."""

import ast
import importlib
from pathlib import Path

import pytest
from django.db import OperationalError
from django.test import RequestFactory

from marketplace.api import errors
from marketplace.core.errors import DomainError
from tests.architecture.test_refusals import refusals
from tests.conftest import ApiClient

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agents", "billing", "marketplace", "scheduler")


def made_classes() -> set[str]:
    """Return the names of what is called, or named as a value, anywhere in the project's code."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call | ast.Raise | ast.Tuple | ast.List | ast.Dict):
                    for part in ast.walk(node):
                        if isinstance(part, ast.Name | ast.Attribute):
                            names.add(part.id if isinstance(part, ast.Name) else part.attr)
    return names


class TestTable:
    def test_has_a_row_for_every_refusal(self) -> None:
        importlib.import_module("marketplace.urls")
        codes = {kind.code for kind in refusals()} - {DomainError.code}
        assert codes - set(errors.STATUS_BY_CODE) == set()

    def test_has_no_row_that_nobody_raises(self) -> None:
        importlib.import_module("marketplace.urls")
        made = made_classes()
        kinds = [kind for kind in refusals() if kind.__name__ in made]
        # A parent that only groups its children is caught as one of them, and needs a row as well.
        raised = {
            parent.code for kind in kinds for parent in kind.__mro__ if hasattr(parent, "code")
        }
        assert set(errors.STATUS_BY_CODE) - raised == set()

    def test_says_500_of_a_code_that_it_lacks(self) -> None:
        stray = type("Stray", (DomainError,), {"code": "stray", "__module__": "tests.stray"})
        response = errors.exception_handler(stray("inner workings"), {})
        assert response.status_code == 500
        assert response.data["code"] == "internal_error"


class TestProblemResponse:
    def test_has_the_shape_of_every_problem(self) -> None:
        request = RequestFactory().get("/agent/v1/reports")
        response = errors.problem_response(
            request, code="body_too_large", detail="too much", extra={"limit": 5, "code": "mine"}
        )
        assert response.status_code == 413
        assert response["Content-Type"] == "application/problem+json"
        assert b'"code": "body_too_large"' in response.content
        assert b'"limit": 5' in response.content
        assert b'"title": "The body is too large"' in response.content

    def test_takes_a_status_of_its_own(self) -> None:
        request = RequestFactory().get("/")
        assert (
            errors.problem_response(request, code="odd", detail="", status=418).status_code == 418
        )


@pytest.mark.django_db
class TestOutage:
    def test_of_the_database_is_said_as_such(
        self, api: ApiClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def be_away(**_arguments: object) -> None:
            raise OperationalError("the connection was lost at 10.0.0.7")

        monkeypatch.setattr("marketplace.api.wallet.wallet.balance", be_away)
        answer = api.get("/v1/wallet")
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert b"10.0.0.7" not in answer.content
