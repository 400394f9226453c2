"""What a line of a document says of what was bought or given back."""

from billing.models.invoices import DESCRIPTION_LENGTH_MAX
from billing.states import EntryKind
from marketplace.core.windows import Window
from scheduler.models import Change, Reservation
from scheduler.states import ChangeKind

_RETURNED = {
    ChangeKind.CANCELLATION: "Cancelled",
    ChangeKind.EARLY_RETURN: "Returned early",
    ChangeKind.EXTENSION: "Extended",
    ChangeKind.SHORTENING: "Shortened",
    ChangeKind.MOVE: "Moved",
}


def charge_of(
    *,
    kind: EntryKind,
    change: Change | None,
    reservation: Reservation,
    window: Window,
    net_minor: int,
) -> str:
    """Describe what was bought: GPUs of a model, for a window, in a region; or which part of its price."""
    bought = _bought(reservation, window)
    if change is not None:
        word = (
            "Extension" if change.kind == ChangeKind.EXTENSION else "Difference for another window"
        )
        return _cut(f"{word}: {bought}")
    match kind:
        case EntryKind.CORRECTION:
            return _cut(f"Delivered after all: {bought}")
        case EntryKind.BALANCE:
            return _cut(f"Balance: {bought}")
        case EntryKind.PURCHASE if net_minor < reservation.quote.total_minor:
            return _cut(f"Deposit: {bought}")
        case _:
            return _cut(bought)


def return_of(
    *, kind: EntryKind, change: Change | None, reservation: Reservation, window: Window
) -> str:
    """Describe why something of what was bought goes back."""
    if change is not None:
        word = _RETURNED[ChangeKind(change.kind)]
    else:
        word = "Not delivered, found later" if kind is EntryKind.CORRECTION else "Not delivered"
    return _cut(f"{word}: {_bought(reservation, window)}")


def _bought(reservation: Reservation, window: Window) -> str:
    words = [word for word in (reservation.name, reservation.project) if word]
    called = f" ({', '.join(words)})" if words else ""
    span = f"{window.starts_at:%Y-%m-%d %H:%M} to {window.ends_at:%Y-%m-%d %H:%M} UTC"
    return (
        f"{reservation.gpus} × {reservation.gpu_model_id}, {reservation.region}, {reservation.tier}: "
        f"{span}{called}"
    )


def _cut(text: str) -> str:
    return text if len(text) <= DESCRIPTION_LENGTH_MAX else f"{text[: DESCRIPTION_LENGTH_MAX - 1]}…"
