"""Reservations: the promise, from the accepted quote to the end of its window.

Every arrow is one function here: `acceptance` has the first one, `moves` those that somebody takes, `due`
those whose time has come.
"""

from scheduler.reservations.acceptance import PAYMENT_WINDOW_SECONDS, accept, reserve
from scheduler.reservations.due import expire_unpaid, finish_due, start_due
from scheduler.reservations.moves import (
    cancel,
    confirm,
    confirm_held,
    confirm_in_hand,
    confirm_late,
    fail_payment,
    pay_up,
    take_held,
)
from scheduler.reservations.records import change_details, get

__all__ = [
    "PAYMENT_WINDOW_SECONDS",
    "accept",
    "cancel",
    "change_details",
    "confirm",
    "confirm_held",
    "confirm_in_hand",
    "confirm_late",
    "expire_unpaid",
    "fail_payment",
    "finish_due",
    "get",
    "pay_up",
    "reserve",
    "start_due",
    "take_held",
]
