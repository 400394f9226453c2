"""`/v1/reservations`: buy what a quote promises, look after it, and see what became of it."""

from marketplace.api.reservations.balance import BalancePaymentsView
from marketplace.api.reservations.views import ReservationsView, ReservationView

__all__ = ["BalancePaymentsView", "ReservationView", "ReservationsView"]
