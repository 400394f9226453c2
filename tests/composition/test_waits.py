"""How long money and people are waited for, as an operator sets it."""

import datetime as dt

import pytest

from billing import findings, onboarding
from billing import stripe_gateway as gateway
from tests.billing import factories
from tests.composition.test_settings import read_settings

AT = factories.START


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("HEADROOM_OWNER_DEBT_PATIENCE_SECONDS", "-1", "from 0 to 31536000"),
        ("HEADROOM_PAYOUT_ACCOUNT_COOL_OFF_SECONDS", "0", "from 3600 to 2592000"),
        ("HEADROOM_DISPUTE_WINDOW_SECONDS", "4months", "from 86400 to 46656000"),
    ],
)
def test_a_wait_that_makes_no_sense_stops_the_start(name, value, complaint):
    result = read_settings(**{name: value})

    assert result.returncode != 0
    assert f"{name} must be a whole number {complaint}" in result.stderr


def test_the_waits_are_those_of_the_rules_where_nobody_says_otherwise(settings):
    assert settings.OWNER_DEBT_PATIENCE_SECONDS == 14 * 86_400
    assert settings.PAYOUT_ACCOUNT_COOL_OFF_SECONDS == 72 * 3600
    assert settings.DISPUTE_WINDOW_SECONDS == 120 * 86_400


@pytest.mark.django_db
def test_another_payout_account_cools_off_as_long_as_the_operator_says(settings):
    settings.PAYOUT_ACCOUNT_COOL_OFF_SECONDS = 7200
    for _ in range(2):
        asked = onboarding.ask(
            owner=factories.owner(),
            email="owner@example.com",
            country="DE",
            at=AT,
            actor="key_1",
        )

    approved = onboarding.approve(account_id=asked.pk, at=AT, actor="staff")

    assert approved.usable_at == AT + dt.timedelta(hours=2)


@pytest.mark.django_db
def test_disputes_are_compared_as_far_back_as_the_operator_says(settings, monkeypatch):
    settings.DISPUTE_WINDOW_SECONDS = 200 * 86_400
    asked = []
    for name in ("payments", "refunds", "transfers", "disputes"):
        monkeypatch.setattr(
            gateway, f"{name}_since", lambda *, since, name=name: asked.append((name, since)) or ()
        )
    monkeypatch.setattr(gateway, "balances", lambda *, currency: (0, 0))

    assert list(findings.find(at=AT)) == []

    assert dict(asked)["disputes"] == AT - dt.timedelta(days=200)
