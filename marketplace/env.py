"""Typed readers of environment variables. A bad value stops the start with the variable's name and form."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


@dataclass(frozen=True, slots=True)
class Env:
    """Read settings from a mapping, the process environment by default."""

    variables: Mapping[str, str]

    def text(self, name: str, *, default: str | None = None, secret_length_min: int = 0) -> str:
        """Return a variable as it stands.

        :raises ImproperlyConfigured: when it is not set and has no default, or is too short for a secret.
        """
        value = self.variables.get(name, "").strip() or default
        if value is None:
            raise ImproperlyConfigured(f"{name} is not set")
        if len(value) < secret_length_min:
            raise ImproperlyConfigured(f"{name} must have at least {secret_length_min} characters")
        return value

    def integer(self, name: str, *, default: int, minimum: int, maximum: int) -> int:
        text = self.variables.get(name, "").strip()
        if not text:
            return default
        if (
            not re.fullmatch(r"-?\d{1,12}", text, flags=re.ASCII)
            or not minimum <= int(text) <= maximum
        ):
            raise ImproperlyConfigured(
                f"{name} must be a whole number from {minimum} to {maximum}, not {text!r}"
            )
        return int(text)

    def switch(self, name: str, *, default: bool) -> bool:
        text = self.variables.get(name, "").strip().lower()
        if not text:
            return default
        if text not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
            raise ImproperlyConfigured(f"{name} must be true or false, not {text!r}")
        return text in {"1", "true", "yes", "on"}

    def choice(self, name: str, *, default: str, choices: tuple[str, ...]) -> str:
        text = self.variables.get(name, "").strip() or default
        if text not in choices:
            raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {text!r}")
        return text

    def words(self, name: str, *, default: tuple[str, ...] = ()) -> list[str]:
        """Return a comma-separated list."""
        text = self.variables.get(name, "")
        return [word.strip() for word in text.split(",") if word.strip()] or list(default)

    def database(self, name: str) -> dict[str, Any]:
        """Return Django's description of the PostgreSQL database that a URL names.

        The form is `postgres://user:password@host:5432/name?sslmode=require`; a server on a unix socket is
        `postgres://user@/name?host=/directory`.

        :raises ImproperlyConfigured: when the variable is missing or is no such URL.
        """
        form = "postgres://user:password@host:5432/name"
        if not (text := self.variables.get(name, "").strip()):
            raise ImproperlyConfigured(f"{name} is not set; it should look like {form}")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            raise ImproperlyConfigured(f"{name} should look like {form}") from None
        if url.scheme not in {"postgres", "postgresql"} or len(url.path) < 2:
            raise ImproperlyConfigured(f"{name} should look like {form}")
        options = dict(parse_qsl(url.query))
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(url.path[1:]),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "HOST": options.pop("host", unquote(url.hostname or "")),
            "PORT": str(port or ""),
            "OPTIONS": options,
        }

    def broker(self, name: str) -> str:
        """Return the URL of the message broker.

        :raises ImproperlyConfigured: when it is missing or of a kind that loses tasks.
        """
        form = "rediss://host:6379/0, redis+socket:///path or amqps://user:password@host/vhost"
        text = self.variables.get(name, "").strip()
        schemes = ("redis://", "rediss://", "redis+socket://", "amqp://", "amqps://", "memory://")
        if not text.startswith(schemes):
            raise ImproperlyConfigured(f"{name} should look like {form}")
        return text


env = Env(os.environ)
