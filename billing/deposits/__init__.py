"""Prices in two parts: a deposit at booking, and the balance on the saved card before the start.

`rules` says for what that is possible and in which parts, `plans` takes the arrows, `collecting` asks for the
balance and gives up what was not paid. Only what was received is ever deferred: the deposit by the purchase,
which opens the GPU-second books in full, the rest by the balance.
"""

from billing.deposits.plans import (
    announce_due,
    lock,
    mark_asked,
    note_waiting,
    open_plan,
    settle,
    take_back,
)
from billing.deposits.rules import Parts, PaymentPlanUnavailable, make, offered, require

__all__ = [
    "Parts",
    "PaymentPlanUnavailable",
    "announce_due",
    "lock",
    "make",
    "mark_asked",
    "note_waiting",
    "offered",
    "open_plan",
    "require",
    "settle",
    "take_back",
]
