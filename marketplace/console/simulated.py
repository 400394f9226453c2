"""What of this market is not real. Every page says so."""

from django.conf import settings


def simulated_parts() -> list[str]:
    """Return what is not real here: `hardware`, `payments`, both or neither."""
    parts = (
        ("hardware", settings.ALLOW_SIMULATED_HARDWARE),
        ("payments", settings.SIMULATED_PAYMENTS),
    )
    return [name for name, simulated in parts if simulated]
