"""Which amounts the payment provider takes: the least of each currency, and in which steps.

Source of the minima and of the eight digits: a copy of docs.stripe.com/currencies, "Minimum and maximum
charge amounts", compared on 2026-11-30: all 24 rows agree. They are of the currency that a charge is settled
in, here the market's own. Source of the step: the same page as of 2022-06, "Three-decimal currencies". The
later copy has no such section, so that the rule still holds is not confirmed by a source; to keep it costs
less than ten minor units of a charge. Nor is a least amount in a currency with three decimals confirmed.
"""

from marketplace.core.money import currency_exponent

# In minor units. Of a currency that is not listed the provider says nothing; then the least is one step, and
# its refusal says the rest.
LEAST_MINOR = {
    "aed": 200,
    "aud": 50,
    "bgn": 100,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17_500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
    "usd": 50,
}
# Eight digits. The provider takes more of some, as of rupees and of yen by card; what is true of all will do.
MOST_MINOR = 99_999_999
# Of a currency with three decimals the last digit of a charge or a refund must be 0: 5.124 is refused.
THREE_DECIMALS_STEP = 10


def step(currency: str) -> int:
    """Return of what every amount is a multiple, in minor units."""
    return THREE_DECIMALS_STEP if currency_exponent(currency) == 3 else 1


def least(currency: str) -> int:
    """Return the smallest amount that is taken, in minor units."""
    return LEAST_MINOR.get(currency, step(currency))


def rounded_up(*, amount_minor: int, currency: str) -> int:
    """Return the amount to ask for so that one is covered: the next that is taken in steps."""
    return -(-amount_minor // step(currency)) * step(currency)


def rounded_down(*, amount_minor: int, currency: str) -> int:
    """Return the part of an amount that can go back: in steps."""
    return amount_minor - amount_minor % step(currency)


def is_taken(*, amount_minor: int, currency: str) -> bool:
    """Say whether the provider takes an amount."""
    return least(currency) <= amount_minor <= MOST_MINOR and amount_minor % step(currency) == 0
