"""A market that is connected to the stand-in for the payment provider, for the races that need one."""

from tests.billing.conftest import clock, provider

__all__ = ["clock", "provider"]
