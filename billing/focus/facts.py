"""What a file is made of, without where it was read: entries of the books, and what they are about."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from billing.budgets import History


class Fact(NamedTuple):
    """One entry as it concerns a tenant, in minor units and GPU-seconds. The order is that of the query.

    `net_minor` was taken from the tenant, negative where it was given back, without its tax; what is paid
    for and not yet earned grew by `deferred_minor`. Its tax is `tax_minor`, as a difference where an entry
    charges and gives back; what it gave back of that is `tax_refunded_minor`. What the meters say is None
    where nothing measured it. `worth_micros` is what the tariff asks for the delivered: micros × seconds.
    `fee_minor` is of a change, `charged_minor` what it added; `earned_minor`, `borne_minor` and
    `credit_minor` are of a correction. `entry_key` names the entry in documents; an hour is in none.
    """

    reservation_id: str | None
    lease_id: str | None
    entry_id: str
    kind: str
    currency: str
    effective_at: dt.datetime
    starts_at: dt.datetime | None
    ends_at: dt.datetime | None
    net_minor: int = 0
    deferred_minor: int = 0
    tax_minor: int = 0
    tax_refunded_minor: int = 0
    bought: int = 0
    released: int = 0
    undelivered: int = 0
    delivered: int = 0
    busy: int = 0
    metered: int | None = None
    measured: int | None = None
    attached: int | None = None
    energy_millijoules: int | None = None
    worth_micros: int | None = None
    charged_minor: int = 0
    fee_minor: int = 0
    earned_minor: int = 0
    borne_minor: int = 0
    credit_minor: int = 0
    entry_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Whose file it is, of which month, and who issues its documents."""

    account_id: str
    account_name: str
    issuer_name: str
    starts_at: dt.datetime
    ends_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What a reservation says of itself; rates are per GPU-hour. The window is the one first bought.

    `said` is what its project and tags were and are: each charge has those that held when it was made.
    """

    reservation_id: str
    quote_id: str
    gpu_model: str
    gpu_model_name: str
    gpus: int
    region: str
    tier: str
    starts_at: dt.datetime
    ends_at: dt.datetime
    rate: Decimal
    base_rate: Decimal | None
    multiplier: str
    is_dynamic: bool
    name: str
    said: History
    simulated: bool
    purchased_at: dt.datetime | None
    is_in_two_parts: bool


class Place(NamedTuple):
    """A line of a document that says what an entry charged or gave back: none of its numbers is negative."""

    number: str
    line_id: str
    net_minor: int
    tax_minor: int
    gpu_seconds: int


@dataclass(slots=True, kw_only=True)
class Documents:
    """Where an entry stands in what was issued: what it charged on one line, what it gave back on several."""

    charged: Place | None = None
    given_back: tuple[Place, ...] = ()


NO_DOCUMENTS = Documents()
