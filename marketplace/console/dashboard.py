"""The first page of the admin: whether the books hold, what waits for people, and the house in numbers."""

from django.http import HttpRequest
from django.utils import timezone

from agents import inventory
from agents.models import Gpu, Node
from agents.states import NodeStatus
from billing.admin.shown import link_to
from billing.models import Payout
from billing.states import PayoutStatus
from marketplace.console import waiting
from marketplace.console.waiting import Card, card
from marketplace.models import Listing
from marketplace.states import ListingStatus
from scheduler.models import Lease, LeaseTransition, Quote, Reservation, ReservationTransition
from scheduler.states import LEASE_ARROWS, LeaseStatus, QuoteStatus, ReservationStatus

MOVES_MAX = 12  # what one screen shows below the cards
FINAL_LEASES = [status for status in LeaseStatus if LEASE_ARROWS.is_final(status)]


def context(request: HttpRequest, page: dict[str, object]) -> dict[str, object]:
    """Add to the admin's first page what an operator looks at."""
    at = timezone.now()
    waits = waiting.for_people(username=request.user.get_username())
    return page | {
        "verdict": waiting.verdict(at=at),
        "urgent": [each for each in waits if each.urgent],
        "at_rest": [each for each in waits if not each.urgent],
        "cards": _house(),
        "moves": _latest_moves(),
    }


def _house() -> list[Card]:
    leases = Lease.objects.all()
    sellable = inventory.sellable_gpus(at=timezone.now()).count()
    return [
        card(
            "Nodes in service", Node.objects.filter(status=NodeStatus.ACTIVE), "enrolled and active"
        ),
        card("GPUs", Gpu.objects.filter(present=True), f"{sellable} may be sold now"),
        card(
            "Listings on offer", Listing.objects.filter(status=ListingStatus.PUBLISHED), "published"
        ),
        card(
            "Quotes open",
            Quote.objects.filter(status=QuoteStatus.OPEN, kept_for__isnull=True),
            "prices promised",
        ),
        card(
            "Reservations ahead",
            Reservation.objects.filter(status=ReservationStatus.SCHEDULED),
            "paid, not yet started",
        ),
        card("Leases open", leases.exclude(status__in=FINAL_LEASES), "from grant to return"),
        card(
            "Leases to settle",
            leases.filter(status__in=FINAL_LEASES, settlement__isnull=True),
            "final, money not yet",
        ),
        card(
            "Payouts due",
            Payout.objects.filter(status=PayoutStatus.DUE),
            "owed to owners",
            where="status__exact=due",
        ),
    ]


def _latest_moves() -> list[dict[str, object]]:
    """Return the latest moves of reservations and leases together, the newest first."""
    found = [
        (move.at, link_to(subject), move.from_status, move.to_status, move.reason, move.actor)
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
