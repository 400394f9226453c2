"""A process that dies at a step of a call to the provider."""

import contextlib
from collections.abc import Iterator

import pytest

from billing import intents
from billing.models import Intent
from billing.provider_states import IntentKind

STEPS = ("claimed", "called", "recorded")


class Died(BaseException):
    """The process is gone: nothing catches it."""


@contextlib.contextmanager
def dies(*, at: str, kind: IntentKind) -> Iterator[None]:
    """Let the process die when a call of a kind has reached a step; assert that it did."""

    def die(*, step: str, intent: Intent) -> None:
        if step == at and intent.kind == kind:
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intents, "reached", die)
        with pytest.raises(Died):
            yield
