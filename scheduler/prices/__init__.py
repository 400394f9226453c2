"""Prices: the versions of every pool's table, how they come about, and what a window costs by them."""

from scheduler.prices.tables import PoolKey, PricedWindow, PriceTable, as_rate, tables

__all__ = ["PoolKey", "PriceTable", "PricedWindow", "as_rate", "tables"]
