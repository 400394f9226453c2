"""Bodies that no call takes: refused before anything is looked at, and nothing is stored."""

import pytest

from marketplace.core.limits import REQUEST_BODY_BYTES_MAX
from marketplace.models import IdempotencyRecord
from scheduler.models import Quote
from tests.conftest import Answer, ApiClient

pytestmark = pytest.mark.django_db


def send(api: ApiClient, raw: bytes, *, content_type: str = "application/json") -> Answer:
    return api.call("POST", "/v1/quotes", raw=raw, content_type=content_type, key="k")


class TestJson:
    @pytest.mark.parametrize(
        "raw",
        [
            b"{",
            b"gpus=8",
            b'{"gpus": NaN}',
            b'{"gpus": Infinity}',
            b'{"gpus": -Infinity}',
            b'{"gpus": 1, "gpus": 2}',
            b'{"gpu_model": "\xff"}',
            b'\xef\xbb\xbf{"gpus": 1}',
            b'{"gpus": 1} {}',
            b"[" * 60_000,
            b'{"gpus": ' + b"9" * 5000 + b"}",
            b'{"\\ud800": 1}',
            b'{"region": {"\\udfff": 1}}',
        ],
    )
    def test_that_is_none_is_refused(self, api: ApiClient, raw: bytes) -> None:
        answer = send(api, raw)
        assert (answer.status, answer.code) == (400, "malformed_json")
        assert not Quote.objects.exists()
        assert not IdempotencyRecord.objects.exists()

    @pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1e3", b"8.0", b"9" * 400])
    def test_that_is_no_whole_number_in_range_is_refused(
        self, api: ApiClient, number: bytes
    ) -> None:
        answer = send(api, b'{"gpus": ' + number + b"}")
        assert (answer.status, answer.code) == (422, "invalid_request")


class TestSize:
    def test_above_the_limit_is_refused(self, api: ApiClient) -> None:
        answer = send(api, b" " * (REQUEST_BODY_BYTES_MAX + 1))
        assert (answer.status, answer.code) == (413, "body_too_large")

    def test_at_the_limit_is_read(self, api: ApiClient) -> None:
        assert send(api, b"{}" + b" " * (REQUEST_BODY_BYTES_MAX - 2)).status == 422

    def test_far_above_the_limit_is_refused(self, api: ApiClient) -> None:
        assert send(api, b"x" * 5_000_000).code == "body_too_large"


class TestChunks:
    """Gunicorn hands them over without a length, and Django would read nothing of them."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", "/v1/quotes"), ("PATCH", "/v1/listings/lst_0"), ("POST", "/agent/v1/reports")],
    )
    def test_are_refused_rather_than_read_as_no_body(
        self, api: ApiClient, method: str, path: str
    ) -> None:
        answer = api.call(method, path, raw=b"", headers={"Transfer-Encoding": "chunked"}, key="k")
        assert (answer.status, answer.code) == (411, "length_required")
        assert not IdempotencyRecord.objects.exists()


class TestMediaType:
    @pytest.mark.parametrize(
        "content_type",
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"],
    )
    def test_other_than_json_is_refused(self, api: ApiClient, content_type: str) -> None:
        answer = send(api, b"{}", content_type=content_type)
        assert (answer.status, answer.code) == (415, "unsupported_media_type")

    @pytest.mark.parametrize(
        "content_type", ["application/json; charset=utf-8", "Application/JSON"]
    )
    def test_json_may_have_parameters(self, api: ApiClient, content_type: str) -> None:
        assert send(api, b"{}", content_type=content_type).code == "invalid_request"

    def test_of_an_answer_is_json_whatever_is_accepted(self, api: ApiClient) -> None:
        answer = api.call("GET", "/v1/market", headers={"Accept": "text/html"})
        assert answer.headers["Content-Type"] == "application/json"


class TestEmptyBody:
    def test_is_an_object_without_fields(self, api: ApiClient) -> None:
        answer = send(api, b"")
        assert answer.status == 422
        assert {e["code"] for e in answer.json["errors"]} == {"required"}
