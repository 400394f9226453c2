"""What of this market is not real. Every answer says so."""

from django.conf import settings

HEADER = "Headroom-Simulated"


def simulated_hardware() -> bool:
    """Say whether GPUs that do not exist may be enrolled and sold here."""
    return bool(settings.ALLOW_SIMULATED_HARDWARE)


def simulated_payments() -> bool:
    """Say whether money here is play money: outside production, or with a test key of the provider."""
    return not settings.IS_PRODUCTION or settings.STRIPE_SECRET_KEY.startswith(
        ("sk_test_", "rk_test_")
    )


def header_value() -> str:
    """Return the header's value: `hardware, payments`, one of them, or nothing."""
    parts = [("hardware", simulated_hardware()), ("payments", simulated_payments())]
    return ", ".join(name for name, simulated in parts if simulated)
