"""The settings as a process reads them: production refuses what only a demo may do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PRODUCTION = {
    "HEADROOM_PROFILE": "production",
    "SECRET_KEY": "x" * 50,
    "ALLOWED_HOSTS": "market.example.com",
    "DATABASE_URL": "postgres://app@db.example.com/market",
    "CELERY_BROKER_URL": "rediss://broker.example.com:6379/0",
}
READ = """
from marketplace import settings as s
print(s.GRID_SECONDS, s.DEBUG, s.ALLOW_SIMULATED_HARDWARE, s.SIMULATED_PAYMENTS)
"""


# What money does where nobody has decided otherwise: in basis points, seconds, minor units and days.
MONEY = {
    "PLATFORM_FEE_BASIS_POINTS": 1500,
    "PAYOUT_DELAY_SECONDS": 14 * 86_400,
    "OWNER_RESERVE_BASIS_POINTS": 1000,
    "OWNER_RESERVE_SECONDS": 90 * 86_400,
    "SETTLEMENT_PATIENCE_SECONDS": 86_400,
    "UNDELIVERED_CREDIT_BASIS_POINTS": 1000,
    "RECLAIM_COMPENSATION_BASIS_POINTS": 2500,
    "RESALE_SHARE_BASIS_POINTS": 8000,
    "REFUND_ALONE_MINOR_MAX": 10_000,
    "PROMOTION_ALONE_MINOR_MAX": 10_000,
    "WITHDRAWAL_ALONE_MINOR_MAX": 100_000,
    "DEPOSIT_BASIS_POINTS": 2500,
    "DEPOSIT_AHEAD_SECONDS": 30 * 86_400,
    "BALANCE_AHEAD_SECONDS": 14 * 86_400,
    "DUNNING_REMINDER_SECONDS": 3 * 86_400,
    "DUNNING_WARNING_SECONDS": 10 * 86_400,
    "DUNNING_SUSPENSION_SECONDS": 14 * 86_400,
    "MONTH_CLOSE_DELAY_SECONDS": 2 * 86_400,
    "HORIZON_DAYS": 90,
}


def read_settings(read: str = READ, **changes: str | None) -> subprocess.CompletedProcess[str]:
    variables = {**PRODUCTION, **changes, "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-c", read],
        cwd=PROJECT,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )


class TestProduction:
    def test_starts_on_an_hourly_grid_without_debug_or_simulated_gpus(self):
        result = read_settings()

        assert result.stdout.split() == ["3600", "False", "False", "False"], result.stderr

    def test_moves_money_by_the_defaults_that_were_decided(self):
        read = f"from marketplace import settings as s; print([getattr(s, n) for n in {[*MONEY]}])"
        result = read_settings(read)

        assert result.stderr == ""
        assert dict(zip(MONEY, json.loads(result.stdout), strict=True)) == MONEY

    def test_owns_up_to_play_money_with_a_test_key(self):
        result = read_settings(STRIPE_SECRET_KEY="sk_test_1")

        assert result.stdout.split()[-1] == "True", result.stderr

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"SECRET_KEY": None}, "SECRET_KEY is not set"),
            ({"SECRET_KEY": "short"}, "SECRET_KEY must have at least 32 characters"),
            (
                {"SECRET_KEY": "headroom-demo-secret-key-that-production-refuses"},
                "SECRET_KEY is the demo's",
            ),
            ({"DEBUG": "1"}, "DEBUG must be false in production"),
            ({"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS is not set"),
            (
                {"HEADROOM_ALLOW_SIMULATED_HARDWARE": "1"},
                "HEADROOM_ALLOW_SIMULATED_HARDWARE must be false",
            ),
            ({"DATABASE_URL": "db"}, "DATABASE_URL should look like postgres://"),
            ({"CELERY_BROKER_URL": "db"}, "CELERY_BROKER_URL should look like"),
            (
                {"HEADROOM_GRID_SECONDS": "7"},
                "HEADROOM_GRID_SECONDS must be a whole number from 60",
            ),
            ({"HEADROOM_GRID_SECONDS": "61"}, "HEADROOM_GRID_SECONDS must divide an hour"),
            ({"STRIPE_SECRET_KEY": "pk_live_1"}, "STRIPE_SECRET_KEY should look like"),
            ({"STRIPE_WEBHOOK_SECRET": "secret"}, "STRIPE_WEBHOOK_SECRET should look like whsec_"),
            (
                {"HEADROOM_PROFILE": "staging"},
                "HEADROOM_PROFILE must be one of demo, production, test",
            ),
        ],
    )
    def test_stops_at_a_bad_value_and_names_it(self, changes, complaint):
        result = read_settings(**changes)

        assert result.returncode != 0
        assert f"ImproperlyConfigured: {complaint}" in result.stderr


class TestDemo:
    @pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1"])
    def test_takes_no_key_for_real_money(self, key):
        result = read_settings(HEADROOM_PROFILE="demo", STRIPE_SECRET_KEY=key)

        assert result.returncode != 0
        assert "ImproperlyConfigured: STRIPE_SECRET_KEY moves real money" in result.stderr

    def test_has_a_grid_of_a_minute_and_takes_simulated_gpus(self):
        result = read_settings(HEADROOM_PROFILE="demo", SECRET_KEY=None, ALLOWED_HOSTS=None)

        assert result.stdout.split() == ["60", "False", "True", "True"], result.stderr
