"""How the admin tells who did something, and how it went."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest

from marketplace.core.errors import DomainError


def actor_of(request: HttpRequest) -> str:
    """Return the name under which an operator's doings are recorded."""
    return f"admin:{request.user.get_username()}"


def report(request: HttpRequest, call: Any, *, done: str) -> None:  # noqa: ANN401 - a call without input
    """Do one thing and tell the operator how it went."""
    try:
        call()
    except DomainError as refusal:
        messages.error(request, refusal.detail)
    else:
        messages.success(request, done)
