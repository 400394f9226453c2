"""The catalogue's state machines."""

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class ListingStatus(TextChoices):
    DRAFT = "draft"
    PUBLISHED = "published"
    PAUSED = "paused"
    RETIRED = "retired"


LISTING_ARROWS = Arrows(
    initial=(ListingStatus.DRAFT,),
    moves={
        ListingStatus.DRAFT: (ListingStatus.PUBLISHED, ListingStatus.RETIRED),
        ListingStatus.PUBLISHED: (ListingStatus.PAUSED, ListingStatus.RETIRED),
        ListingStatus.PAUSED: (ListingStatus.PUBLISHED, ListingStatus.RETIRED),
        ListingStatus.RETIRED: (),
    },
)


class Tier(TextChoices):
    """A firm lease cannot be taken back; a reclaimable one can, after its notice."""

    FIRM = "firm"
    RECLAIMABLE = "reclaimable"


class ListingMode(TextChoices):
    ALWAYS = "always"
    WHEN_IDLE = "when_idle"


class Scope(TextChoices):
    """What an API key may do."""

    MARKET_READ = "market:read"
    RESERVATIONS_READ = "reservations:read"
    RESERVATIONS_WRITE = "reservations:write"
    OWNER_READ = "owner:read"
    OWNER_WRITE = "owner:write"
    BILLING_READ = "billing:read"
    BILLING_WRITE = "billing:write"


class EventKind(TextChoices):
    """What an organization is told of: a noun and a past participle."""

    CREDIT_CHANGED = "credit.changed"
    CREDIT_SUSPENDED = "credit.suspended"
    CREDIT_NOTE_ISSUED = "credit_note.issued"
    APPROVAL_LIMIT_CHANGED = "approval_limit.changed"
    BALANCE_ANNOUNCED = "balance.announced"
    BALANCE_ASKED = "balance.asked"
    BALANCE_NOT_PAID = "balance.not_paid"
    BALANCE_PAID = "balance.paid"
    BUDGET_THRESHOLD_REACHED = "budget.threshold_reached"
    DISPUTE_CHARGED = "dispute.charged"
    DISPUTE_CLOSED = "dispute.closed"
    DISPUTE_OPENED = "dispute.opened"
    DISPUTE_RETURNED = "dispute.returned"
    INQUIRY_CLOSED = "inquiry.closed"
    INQUIRY_OPENED = "inquiry.opened"
    INVOICE_ISSUED = "invoice.issued"
    INVOICE_OVERDUE = "invoice.overdue"
    INVOICE_PAID = "invoice.paid"
    INVOICE_REMINDED = "invoice.reminded"
    INVOICE_WARNED = "invoice.warned"
    OWNER_DEBT_WRITTEN_OFF = "owner_debt.written_off"
    PAYMENT_ACTION_REQUIRED = "payment.action_required"
    PAYMENT_AUTHORIZED = "payment.authorized"
    PAYMENT_CLOSED = "payment.closed"
    PAYMENT_DECLINED = "payment.declined"
    PAYMENT_RETURNED = "payment.returned"
    PAYMENT_SUCCEEDED = "payment.succeeded"
    PURCHASE_REQUEST_APPROVED = "purchase_request.approved"
    PURCHASE_REQUEST_OPENED = "purchase_request.opened"
    PURCHASE_REQUEST_REFUSED = "purchase_request.refused"
    PROJECT_FROZEN = "project.frozen"
    PROJECT_UNFROZEN = "project.unfrozen"
    PAYOUT_ACCOUNT_CHANGED = "payout_account.changed"
    PAYOUT_FAILED = "payout.failed"
    PAYOUT_SENT = "payout.sent"
    PROMOTION_EXPIRED = "promotion.expired"
    PROMOTION_GRANTED = "promotion.granted"
    REFUND_FAILED = "refund.failed"
    REFUND_SENT = "refund.sent"
    RESALE_CREDITED = "resale.credited"
    SPEND_ANOMALY = "spend.anomaly"
    LEASE_END_ANNOUNCED = "lease.end_announced"
    LEASE_IDLE = "lease.idle"
    LEASE_INTERRUPTED = "lease.interrupted"
    LIMIT_REQUEST_APPROVED = "limit_request.approved"
    LIMIT_REQUEST_OPENED = "limit_request.opened"
    LIMIT_REQUEST_REFUSED = "limit_request.refused"
    LEASE_RECLAIM_ANNOUNCED = "lease.reclaim_announced"
    LEASE_REPLACED = "lease.replaced"
    RESERVATION_SCHEDULED = "reservation.scheduled"
    RESERVATION_STARTED = "reservation.started"
    RESERVATION_END_ANNOUNCED = "reservation.end_announced"
    RESERVATION_ENDED = "reservation.ended"
    RESERVATION_CANCELLED = "reservation.cancelled"
    RESERVATION_EXTENDED = "reservation.extended"
    RESERVATION_EXTENSION_DROPPED = "reservation.extension_dropped"
    RESERVATION_CHANGED = "reservation.changed"
    WALLET_CREDITED = "wallet.credited"
    WEBHOOK_ENDPOINT_DISABLED = "webhook_endpoint.disabled"
    WITHDRAWAL_FAILED = "withdrawal.failed"
    WITHDRAWAL_REFUSED = "withdrawal.refused"
    WITHDRAWAL_REQUESTED = "withdrawal.requested"
    WITHDRAWAL_SENT = "withdrawal.sent"
    WITHDRAWAL_SETTLED = "withdrawal.settled"
    MONEY_PARKED = "money.parked"


class DeliveryState(TextChoices):
    """What has become of an event on its way to an endpoint: read from the row, never stored."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class DisabledBecause(TextChoices):
    """Why an endpoint is called no more."""

    GONE = "gone"
    FAILING_FOR_DAYS = "failing_for_days"
    OPERATOR = "operator"
