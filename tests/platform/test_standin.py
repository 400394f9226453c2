"""The stand-in for the payment provider, as `up` runs it."""

import httpx
import pytest

from marketplace.management import standin
from marketplace.management.processes import spawn

pytestmark = pytest.mark.timeout(60)


class TestIsWanted:
    @pytest.mark.parametrize(
        ("environ", "profile", "wanted"),
        [
            ({}, "demo", True),
            ({}, "production", False),
            ({"STRIPE_SECRET_KEY": "sk_test_1"}, "demo", False),
            ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "demo", False),
        ],
    )
    def test_where_nobody_else_takes_money(self, environ, profile, wanted):
        assert standin.is_wanted(environ=environ, profile=profile) is wanted

    def test_not_where_there_is_no_checkout(self, monkeypatch, tmp_path):
        monkeypatch.setattr(standin, "SOURCES", tmp_path / "absent")
        assert not standin.is_wanted(environ={}, profile="demo")


def test_answers_in_a_process_of_its_own_and_keeps_what_was_done(tmp_path):
    port = standin.free_port()
    program = standin.program(
        port=port, data=tmp_path, base_url="http://127.0.0.1:9", environ={"PATH": "/usr/bin"}
    )
    url = f"http://127.0.0.1:{port}"
    for customers in (0, 1):
        process = spawn(
            command=program.command,
            environment=program.environment,
            working_directory=program.working_directory,
            output=None,
        )
        try:
            while not standin.answers(port=port):
                assert process.poll() is None
            with httpx.Client(trust_env=False, headers={"Authorization": "Bearer x"}) as client:
                listed = client.get(f"{url}/v1/customers").json()["data"]
                client.post(f"{url}/v1/customers", data={"name": "Perceptron"})
            assert len(listed) == customers
        finally:
            process.kill()
            process.wait()


def test_its_environment_makes_a_market_that_can_be_paid():
    values = standin.environment(url="http://127.0.0.1:1")
    assert values["STRIPE_SECRET_KEY"].startswith("sk_test_")
    assert values["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
    assert values["STRIPE_API_BASE"] == "http://127.0.0.1:1"
