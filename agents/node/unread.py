"""How a reason is spelled for a value that could not be read."""

from __future__ import annotations

NOT_SUPPORTED = "not_supported"
LOST = "lost"


def error_reason(*, code: int) -> str:
    """Return how an NVML error code is spelled."""
    return f"error({code})"
