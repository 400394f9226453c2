"""What one person may decide alone: little, and no more of it by doing it often.

A limit counts all that single people have let happen lately, of one subject and by one person, so that what
takes two people is not made of small parts.
"""

import datetime as dt

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet, Sum

from billing.models import Approval
from billing.states import ApprovalKind, ApprovalStatus
from marketplace import audit
from marketplace.core.money import Money

SUBJECT_WINDOW = dt.timedelta(days=30)  # who is given something every week needs another look
PERSON_WINDOW = dt.timedelta(days=1)  # what a stolen account can do before somebody wonders
BY_RULE = "rule:"
_ONE_AT_A_TIME = 0x616C6F6E  # advisory: two decisions at once would not see each other's amounts


def limit_minor(*, kind: ApprovalKind) -> int | None:
    """Return what one person may let happen of a kind, in minor units; None where it always takes two."""
    match kind:
        case ApprovalKind.REFUND:
            return settings.REFUND_ALONE_MINOR_MAX
        case ApprovalKind.PROMOTION:
            return settings.PROMOTION_ALONE_MINOR_MAX
        case _:
            return None


def decider(*, actor: str) -> str:
    """Return who decides what one person may do: the market's rule, in that person's name."""
    return f"{BY_RULE}{actor}"[: audit.ACTOR_LENGTH_MAX]


def is_enough(
    *, kind: ApprovalKind, subject_id: str, amount: Money, actor: str, at: dt.datetime
) -> bool:
    """Say whether one person is enough, after all that single people did lately; and to end a credit.

    Until the caller's transaction ends nobody else decides alone, so that sums hold under concurrency.
    """
    if kind == ApprovalKind.CREDIT:
        return amount.amount_minor == 0
    limit = limit_minor(kind=kind)
    if limit is None:
        return False
    _lock()
    alone = Approval.objects.filter(
        kind=kind,
        currency=amount.currency,
        status=ApprovalStatus.APPROVED,
        decided_by__startswith=BY_RULE,
    )
    of_subject = alone.filter(subject_id=subject_id, decided_at__gt=at - SUBJECT_WINDOW)
    by_person = alone.filter(requested_by=actor, decided_at__gt=at - PERSON_WINDOW)
    before = max(_sum(of_subject), _sum(by_person))
    return before + amount.amount_minor <= limit


def _lock() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_ONE_AT_A_TIME])


def _sum(approvals: QuerySet[Approval]) -> int:
    return int(approvals.aggregate(sum=Sum("amount_minor"))["sum"] or 0)
