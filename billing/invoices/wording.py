"""What a line of a document says of what was bought or given back."""

from billing.models.invoices import DESCRIPTION_LENGTH_MAX
from marketplace.core.windows import Window
from scheduler.models import Reservation


def purchased(*, reservation: Reservation, window: Window) -> str:
    """Describe what a reservation buys: GPUs of a model, for a window, in a region."""
    return _cut(
        f"{reservation.gpus} × {reservation.gpu_model_id}, {reservation.region}, {reservation.tier}: "
        f"{_span(window)}{_called(reservation)}"
    )


def _span(window: Window) -> str:
    return f"{window.starts_at:%Y-%m-%d %H:%M} to {window.ends_at:%Y-%m-%d %H:%M} UTC"


def _called(reservation: Reservation) -> str:
    words = [word for word in (reservation.name, reservation.project) if word]
    return f" ({', '.join(words)})" if words else ""


def _cut(text: str) -> str:
    return text if len(text) <= DESCRIPTION_LENGTH_MAX else f"{text[: DESCRIPTION_LENGTH_MAX - 1]}…"
