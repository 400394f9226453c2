"""A stateful stand-in for the payment provider, at the wire: the unmodified client library talks to it.

It keeps payments, refunds, disputes, connected accounts, transfers, invoices and balance transactions, has a
clock of its own, remembers idempotency keys for a day, signs webhooks, and breaks on request. The standard
library is all it needs, so that a demo can run it as a program: `python -m tests.fakes.stripe`.
"""

from tests.fakes.stripe.server import StandIn
from tests.fakes.stripe.world import Fault, World

__all__ = ["Fault", "StandIn", "World"]
