"""The kinds of settings: how each is given, checked and explained.

A value is text on the command line and in the environment, and of TOML's own type in the file; each kind
knows both. What does not fit is a `ValueError` in words that follow the setting's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Parse = Callable[[object], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a value looks like, in one word and as a function that reads it."""

    metavar: str
    parse: Parse

    def named(self, metavar: str) -> Kind:
        """Return the same kind under another word."""
        return replace(self, metavar=metavar)

    def checked(self, check: Callable[[Any], Any]) -> Kind:
        """Return a kind whose value is also given to `check`, which may refuse it or make something of it."""
        return replace(self, parse=lambda value: check(self.parse(value)))


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as a person sees it. `name` is that of the file; `--na-me` and HEADROOM_NA_ME follow.

    An action says what to do now, not how to be: it is given on the command line alone.
    """

    name: str
    kind: Kind
    help: str
    is_action: bool = False

    @property
    def flag(self) -> str:
        """Return how it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return its name in the environment."""
        return f"HEADROOM_{self.name.upper()}"


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    return value


def _parse_path(value: object) -> Path:
    text = _parse_text(value)
    if not text:
        raise ValueError("must be a path")
    return Path(text).expanduser().absolute()


def _parse_switch(value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("must be true or false (1 or 0 in the environment)")


TEXT = Kind(metavar="TEXT", parse=_parse_text)
PATH = Kind(metavar="PATH", parse=_parse_path)
SWITCH = Kind(metavar="", parse=_parse_switch)


def number(*, least: float, most: float, unit: str) -> Kind:
    """Return the kind of a number from `least` to `most`."""

    def parse(value: object) -> float:
        wanted = f"must be a number of {unit} from {least:g} to {most:g}"
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(wanted)
        try:
            found = float(value)
        except ValueError:
            raise ValueError(wanted) from None
        if not least <= found <= most:  # so is NaN refused
            raise ValueError(wanted)
        return found

    return Kind(metavar=unit.upper(), parse=parse)


def choice(*words: str) -> Kind:
    """Return the kind of one word out of several."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return str(value)

    return Kind(metavar="|".join(words), parse=parse)
