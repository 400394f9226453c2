"""Replay demand through the real pricing and placement code, beside other ways to price and a bound.

What is assumed: tenants' values, leads and flexibility are laws, not data; only arrivals, sizes and
durations follow a real cluster. Amounts here are floats: nothing of a backtest is ever charged.
"""
