"""What tests read of the books."""

import datetime as dt

from billing import books, ledger, wallet
from billing.states import AccountKind
from marketplace.models import Organization


def balance(kind: AccountKind, subject_id: str = "", *, currency: str = "usd") -> int:
    """Return what an account holds, in its normal side and minor units: by default a shared one."""
    return ledger.balance(account=ledger.AccountRef(kind, currency, subject_id))


def purse(organization: Organization) -> int:
    """Return what a tenant has in its wallet, in minor units."""
    return wallet.balance(organization=organization).amount_minor


def breaches(*, at: dt.datetime) -> list[str]:
    """Return every invariant of the books that does not hold, with what was found."""
    return [f"{c.name}: {c.detail}" for c in books.check(at=at).checks if not c.ok]
