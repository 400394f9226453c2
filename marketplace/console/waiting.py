"""What a person has to look at first: whether the books hold, and what waits for somebody to decide it."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.urls import reverse

from agents.models import Alarm
from billing import disputes, silences
from billing.models import (
    Approval,
    BooksRun,
    CardInquiry,
    Difference,
    Dispute,
    DunningCase,
    Intent,
    LimitRequest,
    Parking,
    PayoutAccount,
    SilentLease,
    TopUpDispute,
    Withdrawal,
)
from billing.provider_states import IntentStatus
from billing.states import ApprovalStatus, DisputeStatus, DunningStatus

# The check is nightly, and asked for every hour: later than this, one was left out.
BOOKS_STALE_AFTER = dt.timedelta(hours=27)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A number, and the list that it counts; one that is urgent stands out."""

    title: str
    count: int
    note: str
    link: str
    urgent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the last check of the books says: in words, and in a color."""

    words: str
    note: str
    color: str  # success, warning or danger


def card(
    title: str, rows: QuerySet[Any], note: str, *, where: str = "", is_work: bool = False
) -> Card:
    """Return a number and the list that it counts, with what of the list where only that is told.

    What is work for people is urgent as soon as there is some.
    """
    options = rows.model._meta  # noqa: SLF001 - Django's documented name for it
    registered = admin.site.is_registered(rows.model)
    link = (
        reverse(f"admin:{options.app_label}_{options.model_name}_changelist") if registered else ""
    )
    count = rows.count()
    return Card(
        title=title,
        count=count,
        note=note,
        link=f"{link}?{where}" if link and where else link,
        urgent=is_work and count > 0,
    )


def verdict(*, at: dt.datetime) -> Verdict:
    """Return what the latest check of the books found, and whether it is too old to say anything."""
    run = BooksRun.objects.first()
    if run is None:
        return Verdict(
            words="The books were never checked",
            note="The first check runs within the hour; you can check them now.",
            color="warning",
        )
    when = f"checked {run.at:%Y-%m-%d %H:%M} UTC, {len(run.checks)} invariants"
    if not run.ok:
        broken = [each["name"] for each in run.checks if not each["ok"]]
        return Verdict(
            words="The books are broken", note=f"{when}: {', '.join(broken)}", color="danger"
        )
    if at - run.at > BOOKS_STALE_AFTER:
        return Verdict(words="The last check of the books is old", note=when, color="warning")
    return Verdict(words="The books hold", note=when, color="success")


def for_people(*, username: str) -> list[Card]:
    """Return what waits for a person, as whoever reads it may decide it: the urgent first."""
    asked = Approval.objects.filter(status=ApprovalStatus.REQUESTED)
    own = asked.filter(requested_by=username).count()
    cards = [
        card(
            "To decide",
            asked,
            f"money that takes two people; {own} asked for by you"
            if own
            else "money that takes two people",
            where="status__exact=requested",
            is_work=True,
        ),
        card(
            "Parked",
            Parking.objects.filter(ended_at__isnull=True),
            "whose money stands still",
            where="ended_at__isempty=1",
            is_work=True,
        ),
        card(
            "Differences",
            Difference.objects.filter(resolved_at__isnull=True, dismissal__isnull=True),
            "between provider and books",
            where="resolved_at__isempty=1&dismissal__isempty=1",
            is_work=True,
        ),
        card(
            "Calls without an answer",
            Intent.objects.filter(status=IntentStatus.UNKNOWN),
            "nobody knows whether they happened",
            where="status__exact=unknown",
            is_work=True,
        ),
        card(
            "Refunds refused",
            disputes.unexplained_refusals(),
            "as disputed, by no dispute that we know",
            where="kind__exact=refund&status__exact=refused",
            is_work=True,
        ),
        card(
            "Silent leases",
            SilentLease.objects.filter(pk__in=silences.candidates().values("pk")),
            "delivered or not: two people say",
            is_work=True,
        ),
        card(
            "Limits to raise",
            LimitRequest.objects.filter(status=ApprovalStatus.REQUESTED),
            "what one person orders alone",
            where="status__exact=requested",
            is_work=True,
        ),
        card(
            "Payout accounts",
            PayoutAccount.objects.filter(usable_at__isnull=True, retired_at__isnull=True),
            "to be approved or withdrawn",
            where="usable_at__isempty=1&retired_at__isempty=1",
            is_work=True,
        ),
        card(
            "Withdrawals",
            Withdrawal.objects.waiting(),
            "not carried out yet",
            where="carried_out_at__isempty=1",
            is_work=True,
        ),
        card(
            "Card inquiries",
            CardInquiry.objects.filter(closed_at__isnull=True, disputed_at__isnull=True),
            "a bank asks, and has taken nothing",
            where="closed_at__isempty=1&disputed_at__isempty=1",
            is_work=True,
        ),
        card(
            "Disputes open",
            Dispute.objects.filter(status=DisputeStatus.OPEN),
            "a bank has the money",
            where="status__exact=open",
            is_work=True,
        ),
        card(
            "Disputed top-ups",
            TopUpDispute.objects.filter(status=DisputeStatus.OPEN),
            "a bank has the money",
            where="status__exact=open",
            is_work=True,
        ),
        card(
            "Collection at its end",
            DunningCase.objects.filter(status=DunningStatus.SUSPENDED),
            "still owed: to be written off?",
            where="status__exact=suspended",
            is_work=True,
        ),
        card(
            "Alarms of machines",
            Alarm.objects.filter(settled_at__isnull=True),
            "not settled",
            where="settled_at__isempty=1",
            is_work=True,
        ),
    ]
    return sorted(cards, key=lambda each: not each.urgent)
