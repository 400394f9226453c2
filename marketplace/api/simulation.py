"""What of this market is not real. Every answer says so."""

from django.conf import settings

HEADER = "Headroom-Simulated"


def simulated_hardware() -> bool:
    """Say whether GPUs that do not exist may be enrolled and sold here."""
    return bool(settings.ALLOW_SIMULATED_HARDWARE)


def simulated_payments() -> bool:
    """Say whether money here is play money."""
    return bool(settings.SIMULATED_PAYMENTS)


def simulated_parts() -> list[str]:
    """Return what is not real here: `hardware`, `payments`, both or neither."""
    parts = [("hardware", simulated_hardware()), ("payments", simulated_payments())]
    return [name for name, simulated in parts if simulated]


def header_value() -> str:
    """Return the header's value: `hardware, payments`, one of them, or nothing."""
    return ", ".join(simulated_parts())
