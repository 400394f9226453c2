"""The state machines of quotes, reservations and leases, with the reasons of each move."""

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class Spread(TextChoices):
    """How far a request may be scattered; every reservation stays in one region."""

    SINGLE_NODE = "single_node"
    SAME_FABRIC = "same_fabric"
    ANY = "any"


class PaymentMethod(TextChoices):
    WALLET = "wallet"
    CARD = "card"
    BANK_TRANSFER = "bank_transfer"
    INVOICE = "invoice"


class QuoteStatus(TextChoices):
    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"


QUOTE_ARROWS = Arrows(
    initial=(QuoteStatus.OPEN,),
    moves={
        QuoteStatus.OPEN: (QuoteStatus.USED, QuoteStatus.EXPIRED),
        QuoteStatus.USED: (),
        QuoteStatus.EXPIRED: (),
    },
)


class ReservationStatus(TextChoices):
    PAYMENT_PENDING = "payment_pending"
    SCHEDULED = "scheduled"
    ACTIVE = "active"
    COMPLETED = "completed"
    PAYMENT_FAILED = "payment_failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    RECLAIMED = "reclaimed"
    FAILED = "failed"


RESERVATION_ARROWS = Arrows(
    initial=(ReservationStatus.PAYMENT_PENDING,),
    moves={
        ReservationStatus.PAYMENT_PENDING: (
            ReservationStatus.SCHEDULED,
            ReservationStatus.PAYMENT_FAILED,
            ReservationStatus.EXPIRED,
            ReservationStatus.CANCELLED,
        ),
        ReservationStatus.SCHEDULED: (
            ReservationStatus.ACTIVE,
            ReservationStatus.PAYMENT_FAILED,  # what was held on the card could not be taken
            ReservationStatus.CANCELLED,
            ReservationStatus.FAILED,
        ),
        ReservationStatus.ACTIVE: (
            ReservationStatus.COMPLETED,
            ReservationStatus.RECLAIMED,
            ReservationStatus.FAILED,
        ),
        ReservationStatus.COMPLETED: (),
        ReservationStatus.PAYMENT_FAILED: (),
        ReservationStatus.EXPIRED: (ReservationStatus.SCHEDULED,),  # paid late, and still to be had
        ReservationStatus.CANCELLED: (),
        ReservationStatus.RECLAIMED: (),
        ReservationStatus.FAILED: (),
    },
)


class ReservationReason(TextChoices):
    """Why a reservation moved."""

    QUOTE_ACCEPTED = "quote_accepted"
    PAID = "paid"
    PAID_LATE = "paid_late"
    PAYMENT_HELD = "payment_held"  # the price is held on a card, to be taken before the start
    PAYMENT_NOT_TAKEN = "payment_not_taken"  # it was held, and not taken in time
    PAYMENT_RETURNED = "payment_returned"  # what came could not buy it
    PAYMENT_DECLINED = "payment_declined"
    PAYMENT_WINDOW_CLOSED = "payment_window_closed"
    WINDOW_STARTED = "window_started"
    WINDOW_ENDED = "window_ended"
    TENANT_CANCELLED = "tenant_cancelled"
    OWNER_RECLAIMED = "owner_reclaimed"
    NOTHING_DELIVERED = "nothing_delivered"
    NOT_STARTED = "not_started"
    NOT_REPLACED = "not_replaced"


class ChangeKind(TextChoices):
    """What a tenant may do with what it has bought."""

    CANCELLATION = "cancellation"  # before the start: the whole window is given back
    EARLY_RETURN = "early_return"  # after the start: the time that is left is given back
    EXTENSION = "extension"  # a later end on the same GPUs
    SHORTENING = "shortening"  # before the start: a part of the window is given back
    MOVE = "move"  # before the start: another window


class ExtensionLimit(TextChoices):
    """What ends the longest possible extension."""

    NEXT_BOOKING = "next_booking"
    LISTING_PERIOD = "listing_period"
    LISTING_WITHDRAWN = "listing_withdrawn"
    BLACKOUT = "blackout"
    MAX_DURATION = "max_duration"
    HORIZON = "horizon"
    RECLAIM_PENDING = "reclaim_pending"
    HEALTH = "health"
    TENANT_LIMIT = "tenant_limit"


class ExtensionDropReason(TextChoices):
    """Why hours that were kept for a payment were given back."""

    PAYMENT_WINDOW_CLOSED = "payment_window_closed"
    PAYMENT_DECLINED = "payment_declined"
    RESERVATION_CHANGED = (
        "reservation_changed"  # its tenant cancelled, returned or moved it meanwhile
    )


class RepackingReason(TextChoices):
    """Why a promise that had not started got other places."""

    MADE_ROOM = "made_room"
    HEALED = "healed"


class LeaseStatus(TextChoices):
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    RETURNING = "returning"
    RECLAIMING = "reclaiming"
    ENDED = "ended"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


LEASE_ARROWS = Arrows(
    initial=(LeaseStatus.PROVISIONING,),
    moves={
        LeaseStatus.PROVISIONING: (LeaseStatus.ACTIVE, LeaseStatus.FAILED),
        LeaseStatus.ACTIVE: (
            LeaseStatus.RETURNING,
            LeaseStatus.RECLAIMING,
            LeaseStatus.INTERRUPTED,
        ),
        LeaseStatus.RETURNING: (LeaseStatus.ENDED, LeaseStatus.INTERRUPTED),
        LeaseStatus.RECLAIMING: (LeaseStatus.ENDED, LeaseStatus.INTERRUPTED),
        LeaseStatus.ENDED: (),
        LeaseStatus.INTERRUPTED: (),
        LeaseStatus.FAILED: (),
    },
)


class LeaseReason(TextChoices):
    """Why a lease moved."""

    WINDOW_STARTED = "window_started"
    HANDED_OVER = "handed_over"
    WINDOW_ENDED = "window_ended"
    RETURNED = "returned"
    RETURN_UNCONFIRMED = "return_unconfirmed"
    HANDOVER_TIMED_OUT = "handover_timed_out"
    HANDOVER_FAILED = "handover_failed"
    NODE_FAULT = "node_fault"
    RETURNED_UNASKED = "returned_unasked"
    REPLACED = "replaced"
    TENANT_RETURNED = "tenant_returned"
    OWNER_RECLAIMED = "owner_reclaimed"


class ReplacementOutcome(TextChoices):
    """What became of the search for other GPUs in the place of a lease's."""

    PLACED = "placed"
    HEALED = "healed"
    OVER = "over"
    NO_ROOM = "no_room"
    TOO_MANY = "too_many"


class RelocationReason(TextChoices):
    """Why a reservation that has not started stands on other GPUs than before."""

    NODE_DRAINED = "node_drained"
    GPU_UNFIT = "gpu_unfit"
    OVERRUN = "overrun"


class PriceCause(TextChoices):
    """Why a version of a price table was made."""

    HOUR = "hour"
    BOOKING = "booking"


class PriceRuleStatus(TextChoices):
    PROPOSED = "proposed"
    APPROVED = "approved"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


PRICE_RULE_ARROWS = Arrows(
    initial=(PriceRuleStatus.PROPOSED,),
    moves={
        PriceRuleStatus.PROPOSED: (
            PriceRuleStatus.APPROVED,
            PriceRuleStatus.REJECTED,
            PriceRuleStatus.WITHDRAWN,
        ),
        PriceRuleStatus.APPROVED: (),
        PriceRuleStatus.REJECTED: (),
        PriceRuleStatus.WITHDRAWN: (),
    },
)


class DemandKind(TextChoices):
    """How a tenant said what it wants."""

    SEARCH = "search"
    QUOTE = "quote"
    REFUSAL = "refusal"
    RESERVATION = "reservation"
