"""The first page of the admin: the state of the house in numbers, each a link to its rows."""

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from agents import inventory
from agents.models import Gpu, Node
from agents.states import NodeStatus
from billing.models import Approval, Difference, Dispute, Parking, Payout
from billing.states import ApprovalStatus, DisputeStatus, PayoutStatus
from marketplace.models import Listing
from marketplace.states import ListingStatus
from scheduler.models import Lease, LeaseTransition, Quote, Reservation, ReservationTransition
from scheduler.states import LEASE_ARROWS, LeaseStatus, QuoteStatus, ReservationStatus

MOVES_MAX = 12  # what one screen shows below the cards
FINAL_LEASES = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]


def context(request: HttpRequest, page: dict[str, object]) -> dict[str, object]:
    """Add the cards to the admin's first page."""
    at = timezone.now()
    leases = Lease.objects.all()
    cards = [
        _card(
            "Nodes in service", Node.objects.filter(status=NodeStatus.ACTIVE), "enrolled and active"
        ),
        _card(
            "GPUs",
            Gpu.objects.filter(present=True),
            f"{inventory.sellable_gpus(at=at).count()} may be sold now",
        ),
        _card(
            "Listings on offer", Listing.objects.filter(status=ListingStatus.PUBLISHED), "published"
        ),
        _card(
            "Reservations ahead",
            Reservation.objects.filter(status=ReservationStatus.SCHEDULED),
            "paid, not yet started",
        ),
        _card("Leases open", leases.exclude(status__in=FINAL_LEASES), "from grant to return"),
        _card(
            "Leases to settle",
            leases.filter(status__in=FINAL_LEASES, settlement__isnull=True),
            "final, money not yet",
        ),
        _card("Quotes open", Quote.objects.filter(status=QuoteStatus.OPEN), "prices promised"),
        _card("Payouts due", Payout.objects.filter(status=PayoutStatus.DUE), "owed to owners"),
        _card(
            "To decide",
            Approval.objects.filter(status=ApprovalStatus.REQUESTED),
            "money that takes two people",
            where="status__exact=requested",
        ),
        _card(
            "Disputes open",
            Dispute.objects.filter(status=DisputeStatus.OPEN),
            "a bank has the money",
            where="status__exact=open",
        ),
        _card(
            "Differences",
            Difference.objects.filter(resolved_at__isnull=True),
            "between provider and books",
            where="resolved_at__isempty=1",
        ),
        _card(
            "Parked",
            Parking.objects.filter(ended_at__isnull=True),
            "whose money stands still",
            where="ended_at__isempty=1",
        ),
    ]
    return page | {"cards": cards, "moves": _latest_moves()}


def _latest_moves() -> list[dict[str, object]]:
    """Return the latest moves of reservations and leases together, the newest first."""
    found = [
        (move.at, subject, move.from_status, move.to_status, move.reason, move.actor)
        for rows, name in (
            (ReservationTransition.objects.all(), "reservation_id"),
            (LeaseTransition.objects.all(), "lease_id"),
        )
        for move in rows.order_by("-id")[:MOVES_MAX]
        for subject in (getattr(move, name),)
    ]
    names = ("at", "subject", "from_status", "to_status", "reason", "actor")
    found.sort(key=lambda move: move[0], reverse=True)
    return [dict(zip(names, move, strict=True)) for move in found[:MOVES_MAX]]


def _card(title: str, rows: QuerySet[Model], note: str, where: str = "") -> dict[str, object]:
    """Return a number and the list that it counts, with what of the list where only that is told."""
    options = rows.model._meta  # noqa: SLF001 - Django's documented name for it
    registered = admin.site.is_registered(rows.model)
    link = (
        reverse(f"admin:{options.app_label}_{options.model_name}_changelist") if registered else ""
    )
    if link and where:
        link = f"{link}?{where}"
    return {"title": title, "count": rows.count(), "note": note, "link": link}
