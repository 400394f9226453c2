"""What was given up of invoices, and has not come after all."""

from django.db.models import Sum

from billing import accounts, ledger
from billing.models import Posting
from billing.states import AccountKind, EntryKind, Side


def given_up_minor(*, owed: ledger.AccountRef) -> int:
    """Return what was written off of the invoice whose account is `owed`, less what was recovered of it."""
    written_off = Posting.objects.filter(
        account__code=owed.code,
        account__currency=owed.currency,
        entry__kind=EntryKind.WRITE_OFF,
        side=Side.CREDIT,
    )
    lost = accounts.shared(kind=AccountKind.BAD_DEBT, currency=owed.currency)
    recovered = Posting.objects.filter(
        account__code=lost.code,
        account__currency=lost.currency,
        entry__kind=EntryKind.RECOVERY,
        entry__subject_id=owed.subject_id,
        side=Side.CREDIT,
    )
    first, second = (rows.aggregate(sum=Sum("amount"))["sum"] for rows in (written_off, recovered))
    return (first or 0) - (second or 0)
