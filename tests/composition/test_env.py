"""Typed readers of the environment: a bad value is refused with its name and its form."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from marketplace.env import Env


class TestInteger:
    @pytest.mark.parametrize("text", ["ten", "1.5", "0", "11", "9" * 30, "1e1"])
    def test_names_the_variable_and_the_range_of_a_bad_value(self, text):
        with pytest.raises(
            ImproperlyConfigured, match="WORKERS must be a whole number from 1 to 10"
        ):
            Env({"WORKERS": text}).integer("WORKERS", default=2, minimum=1, maximum=10)

    def test_reads_a_number_and_falls_back_on_nothing(self):
        assert Env({"WORKERS": " 3 "}).integer("WORKERS", default=2, minimum=1, maximum=10) == 3
        assert Env({"WORKERS": ""}).integer("WORKERS", default=2, minimum=1, maximum=10) == 2


class TestSwitch:
    @pytest.mark.parametrize(
        ("text", "value"), [("1", True), ("Yes", True), ("off", False), ("", True)]
    )
    def test_reads_the_usual_words(self, text, value):
        assert Env({"DEBUG": text}).switch("DEBUG", default=True) is value

    def test_refuses_other_words(self):
        with pytest.raises(ImproperlyConfigured, match="DEBUG must be true or false, not 'maybe'"):
            Env({"DEBUG": "maybe"}).switch("DEBUG", default=False)


class TestDatabase:
    def test_reads_a_server_on_the_network(self):
        url = "postgres://app:s%40fe@db.example.com:6432/market?sslmode=require"

        database = Env({"DATABASE_URL": url}).database("DATABASE_URL")

        assert database == {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "market",
            "USER": "app",
            "PASSWORD": "s@fe",
            "HOST": "db.example.com",
            "PORT": "6432",
            "OPTIONS": {"sslmode": "require"},
        }

    def test_reads_a_server_on_a_unix_socket(self):
        database = Env({"U": "postgres://postgres@/postgres?host=/run/pg"}).database("U")

        assert (database["HOST"], database["NAME"], database["OPTIONS"]) == (
            "/run/pg",
            "postgres",
            {},
        )

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "mysql://a@b/c",
            "postgres://host",
            "postgres://h:port/db",
            "sqlite:///db",
            "db",
            "postgres://h/",
        ],
    )
    def test_shows_the_form_instead_of_a_bad_url(self, url):
        with pytest.raises(
            ImproperlyConfigured, match=r"DATABASE_URL.*should look like postgres://"
        ):
            Env({"DATABASE_URL": url}).database("DATABASE_URL")


class TestBroker:
    @pytest.mark.parametrize("url", ["", "sqla+postgresql://x", "filesystem://", "localhost:6379"])
    def test_refuses_brokers_that_lose_tasks_and_no_broker(self, url):
        with pytest.raises(ImproperlyConfigured, match="CELERY_BROKER_URL should look like"):
            Env({"CELERY_BROKER_URL": url}).broker("CELERY_BROKER_URL")
