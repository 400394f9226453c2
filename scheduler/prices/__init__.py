"""Prices: the versions of every pool's table, how they come about, and what a window costs by them."""

from scheduler.prices.refresh import refresh_due
from scheduler.prices.tables import PoolKey, PricedWindow, PriceTable, tables

__all__ = ["PoolKey", "PriceTable", "PricedWindow", "refresh_due", "tables"]
