"""Kinds and states of the books."""

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class Side(TextChoices):
    DEBIT = "debit"
    CREDIT = "credit"


class AccountKind(TextChoices):
    """The chart of accounts; the comment after each is its normal side and what it holds."""

    BANK = "bank"  # debit: money received outside of a payment provider
    STRIPE_PENDING = "stripe_pending"  # debit: at the provider, not yet available
    STRIPE_AVAILABLE = "stripe_available"  # debit: at the provider, available
    STRIPE_RESERVED = "stripe_reserved"  # debit: at the provider, held back by it against losses
    PSP_CLEARING = "psp_clearing"  # debit, one per object there: until it is matched
    RECEIVABLE = "receivable"  # debit, guarded, one per invoice or dispute lost: not yet paid
    OWNER_CLAWBACK = "owner_clawback"  # debit: what an owner owes us
    DISPUTE_HOLD = "dispute_hold"  # debit, one per dispute: taken away while it is open
    WALLET = "wallet"  # credit, guarded: a tenant's prepaid money
    DISPUTE_WITHHELD = "dispute_withheld"  # credit, guarded, one per dispute: out of the wallet
    PROMO = "promo"  # credit, guarded, one per grant: ours to spend for a tenant
    HOLD = "hold"  # credit, guarded, one per purchase request: out of the wallet, not yet spent
    DEFERRED = "deferred"  # credit, guarded: paid for a reservation and not yet earned
    REFUND_PAYABLE = "refund_payable"  # credit, guarded, one per reservation: to go back
    OWNER_ACCRUED = "owner_accrued"  # credit: earned by an owner's lease, not yet payable
    OWNER_PAYABLE = "owner_payable"  # credit: due to an owner
    OWNER_RESERVE = "owner_reserve"  # credit: due to an owner later, against disputes
    PAYOUT_IN_TRANSIT = "payout_in_transit"  # credit, one per payout: on its way to an owner
    TAX_PAYABLE = "tax_payable"  # credit, one per jurisdiction: collected, to be filed
    SUSPENSE = "suspense"  # credit: nobody knows yet whose it is; always to be emptied
    PLATFORM_FEE = "platform_fee"  # credit: ours
    CANCELLATION_FEE = "cancellation_fee"  # credit: ours, of what was given back
    RESALE_MARGIN = "resale_margin"  # credit: ours, of time that was sold twice
    BREAKAGE = "breakage"  # credit: ours, a promotion that nobody used
    PSP_FEES = "psp_fees"  # debit: what the provider keeps
    SLA_CREDITS = "sla_credits"  # debit: credits for which no owner answers
    RECLAIM_COST = "reclaim_cost"  # debit: compensation that no owner pays
    DISPUTE_LOSSES = "dispute_losses"  # debit: disputes that were lost
    DISPUTE_FEES = "dispute_fees"  # debit: what the provider takes for a dispute
    PROMO_COST = "promo_cost"  # debit: what promotions cost us
    BAD_DEBT = "bad_debt"  # debit: invoices that nobody pays, and what owners never gave back
    ROUNDING_FX = "rounding_fx"  # debit: what exchange leaves over, and what nobody can explain
    U_BOUGHT = "u_bought"  # credit: GPU-seconds that a reservation bought
    U_OPEN = "u_open"  # debit, guarded: of these, not yet accounted for
    U_BUSY = "u_busy"  # debit: delivered, and a kernel ran
    U_IDLE = "u_idle"  # debit: delivered, and none ran or none was seen
    U_UNDELIVERED = "u_undelivered"  # debit: not delivered, refunded
    U_RELEASED = "u_released"  # debit: given back by the tenant


class UndeliveredReason(TextChoices):
    """Why bought GPU-seconds were not delivered, by the evidence that a settlement keeps."""

    GPU_FAULT = "gpu_fault", "a GPU failed"  # the node said that it was lost or quarantined
    NODE_DOWN = "node_down", "the node went down"  # it gave the GPUs back unasked
    MAINTENANCE = "maintenance", "maintenance by the owner"  # likewise, while it was being drained
    NETWORK = "network", "the node was not heard from"  # nothing proves that it had the GPUs on
    HANDOVER = "handover", "not handed over in time"  # before the handover, or there was none
    RECLAIM = "reclaim", "taken back by the owner"
    NOT_STARTED = "not_started", "the market did not start it"
    UNKNOWN = "unknown", "no evidence says why"


class EntryKind(TextChoices):
    DEPOSIT = "deposit"
    TOP_UP = "top_up"
    WITHDRAWAL = "withdrawal"  # out of a wallet, to go back the way it came
    PROMOTION = "promotion"
    PROMOTION_SPENT = "promotion_spent"
    PROMOTION_EXPIRY = "promotion_expiry"
    PROMOTION_RETURNED = "promotion_returned"  # of what a reservation gave back
    BALANCE_TRANSACTION = "balance_transaction"  # what the provider booked for an object of ours
    SUSPENSE = "suspense"  # money of which nobody knows yet whose it is
    SUSPENSE_RESOLVED = "suspense_resolved"  # somebody found out, and two people agree
    HOLD = "hold"  # of the price of an order that a second person decides
    VOID = "void"  # of a hold, or of what its order left of it
    PURCHASE = "purchase"  # of the price, or of the part of it that is a deposit
    BALANCE = "balance"  # the rest of a price of which the deposit was paid
    EARNING = "earning"  # an hour of a lease
    SETTLEMENT = "settlement"
    CORRECTION = "correction"  # of a settlement, by evidence that came late
    CREDIT = "credit"  # for what was not delivered, beyond its price
    COMPENSATION = "compensation"  # for a lease that its owner reclaimed
    REFUND = "refund"  # of what no lease of a reservation accounts for
    CHANGE = "change"  # of what a reservation buys: cancelled, returned early, extended, moved
    FEE_SHARE = "fee_share"  # an owner's part of the fee of a change
    RESALE = "resale"  # of time that was left for a fee and sold again, to who left it
    GOODWILL = "goodwill"  # a refund that a person decides
    REFUND_SENT = "refund_sent"
    REFUND_SETTLED = "refund_settled"
    REFUND_FAILED = "refund_failed"
    RELEASE = "release"
    RESERVE_RELEASE = "reserve_release"
    CORRECTION_RELEASE = "correction_release"
    TRANSFER = "transfer"
    TRANSFER_PAID = "transfer_paid"
    TRANSFER_FAILED = "transfer_failed"
    TRANSFER_REVERSAL = "transfer_reversal"
    DISPUTE_OPENED = "dispute_opened"
    DISPUTE_WON = "dispute_won"
    DISPUTE_LOST = "dispute_lost"
    DISPUTE_WITHHELD = "dispute_withheld"  # out of a wallet, while its top-up is disputed
    DISPUTE_RELEASED = "dispute_released"  # into the wallet again: the dispute was won
    DISPUTE_REPAID = "dispute_repaid"  # by a tenant, of what a dispute that was lost left owed
    DISPUTE_SET_OFF = "dispute_set_off"  # what was to go back, and a bank has given back already
    DISPUTE_CHARGED = "dispute_charged"  # to an owner, who answers for it
    DISPUTE_RETURNED = "dispute_returned"  # of that, what was set off: nobody lost it
    RESERVE_DRAWN = "reserve_drawn"  # what was kept back of an owner, for what it owes
    PAYMENT = "payment"
    TAX_REMITTANCE = "tax_remittance"  # of collected tax, to its tax office
    RELIEF_WITHDRAWN = "relief_withdrawn"  # of tax that a refund gave back
    OFFSET = (
        "offset"  # what a reservation gives back or a credit for it, against what is owed for it
    )
    WRITE_OFF = "write_off"
    OWNER_WRITE_OFF = "owner_write_off"  # of what an owner owes
    RECOVERY = "recovery"  # of what was written off: paid after all, or given back
    REVERSAL = "reversal"


# What only records what has happened outside, or undoes an entry: it is written of parked money too. Of
# `payment` and `refund_sent` some are our own deeds; the verbs that do these ask for themselves.
FACTS = frozenset(
    {
        EntryKind.DEPOSIT,
        EntryKind.TOP_UP,
        EntryKind.BALANCE_TRANSACTION,
        EntryKind.SUSPENSE,
        EntryKind.PAYMENT,
        EntryKind.REFUND_SENT,
        EntryKind.REFUND_SETTLED,
        EntryKind.REFUND_FAILED,
        EntryKind.TRANSFER_PAID,
        EntryKind.TRANSFER_FAILED,
        EntryKind.TRANSFER_REVERSAL,
        EntryKind.DISPUTE_OPENED,
        EntryKind.DISPUTE_WON,
        EntryKind.DISPUTE_LOST,
        EntryKind.REVERSAL,
    }
)

# Each of these happens to its subject at most once, whatever the keys say.
ONCE_PER_SUBJECT = (
    EntryKind.PURCHASE,
    EntryKind.BALANCE,
    EntryKind.SETTLEMENT,
    EntryKind.REFUND,
    EntryKind.RELEASE,
)


class PayoutStatus(TextChoices):
    DUE = "due"
    IN_TRANSIT = "in_transit"
    PAID = "paid"
    FAILED = "failed"


PAYOUT_ARROWS = Arrows(
    initial=(PayoutStatus.DUE,),
    moves={
        PayoutStatus.DUE: (PayoutStatus.IN_TRANSIT,),
        PayoutStatus.IN_TRANSIT: (PayoutStatus.PAID, PayoutStatus.FAILED),
        PayoutStatus.PAID: (),
        PayoutStatus.FAILED: (PayoutStatus.DUE,),
    },
)


class RefundStatus(TextChoices):
    DUE = "due"
    SENT = "sent"
    SETTLED = "settled"
    FAILED = "failed"  # the money is the tenant's still: in its wallet, or to be sent once more
    SET_OFF = "set_off"  # never sent: the tenant's bank has given it back


REFUND_ARROWS = Arrows(
    initial=(RefundStatus.DUE,),
    moves={
        RefundStatus.DUE: (RefundStatus.SENT, RefundStatus.SET_OFF),
        RefundStatus.SENT: (RefundStatus.SETTLED, RefundStatus.FAILED),
        # A closed card gives it back days later; then it is in the wallet.
        RefundStatus.SETTLED: (RefundStatus.FAILED,),
        RefundStatus.FAILED: (),
        RefundStatus.SET_OFF: (),
    },
)


class DisputeStatus(TextChoices):
    OPEN = "open"
    WON = "won"
    LOST = "lost"


DISPUTE_ARROWS = Arrows(
    initial=(DisputeStatus.OPEN,),
    moves={
        DisputeStatus.OPEN: (DisputeStatus.WON, DisputeStatus.LOST),
        DisputeStatus.WON: (),
        DisputeStatus.LOST: (),
    },
)


class ApprovalKind(TextChoices):
    """What takes two people."""

    REFUND = "refund"
    WRITE_OFF = "write_off"
    CREDIT = "credit"  # how much may be owed; to end it takes one
    DISPUTE = "dispute"  # that an owner bears one that was lost
    UNPARK = "unpark"
    PROMOTION = "promotion"
    WITHDRAWAL = "withdrawal"  # of a tenant's, that one person may not let go
    TAX_REMITTANCE = "tax_remittance"
    REMITTANCE_REVERSAL = "remittance_reversal"  # of a transfer that came back
    SILENCE_DELIVERED = "silence_delivered"  # that what nobody tells of a lease was delivered
    SILENCE_REFUNDED = "silence_refunded"  # that it was not
    SUSPENSE_BANK = "suspense_bank"  # that it is our own, from or to our bank account
    SUSPENSE_WALLET = "suspense_wallet"  # that it is a tenant's
    SUSPENSE_FEES = "suspense_fees"  # that the provider took it for its services, or gave it back
    SUSPENSE_MARKET = "suspense_market"  # that nobody can explain it: our loss, or gain


# What concerns the market alone, and no organization.
MARKETS_OWN = (
    ApprovalKind.TAX_REMITTANCE,
    ApprovalKind.REMITTANCE_REVERSAL,
    ApprovalKind.SUSPENSE_BANK,
    ApprovalKind.SUSPENSE_FEES,
    ApprovalKind.SUSPENSE_MARKET,
)
# What is decided of money of which nobody knew whose it is.
RESOLUTIONS = (
    ApprovalKind.SUSPENSE_BANK,
    ApprovalKind.SUSPENSE_WALLET,
    ApprovalKind.SUSPENSE_FEES,
    ApprovalKind.SUSPENSE_MARKET,
)
# What is decided of a lease of whose time nobody tells.
RULINGS = (ApprovalKind.SILENCE_DELIVERED, ApprovalKind.SILENCE_REFUNDED)


class ApprovalStatus(TextChoices):
    REQUESTED = "requested"
    APPROVED = "approved"
    REFUSED = "refused"


APPROVAL_ARROWS = Arrows(
    initial=(ApprovalStatus.REQUESTED,),
    moves={
        ApprovalStatus.REQUESTED: (ApprovalStatus.APPROVED, ApprovalStatus.REFUSED),
        ApprovalStatus.APPROVED: (),
        ApprovalStatus.REFUSED: (),
    },
)


class TaxTreatment(TextChoices):
    STANDARD = "standard"  # at the rate of the jurisdiction
    REVERSE_CHARGE = "reverse_charge"  # the tenant accounts for the tax itself
    EXEMPT = "exempt"


class InvoiceKind(TextChoices):
    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"


class InvoiceState(TextChoices):
    """What has become of an invoice, as the ledger tells; a credit note has none."""

    OPEN = "open"
    PART_PAID = "part_paid"
    PAID = "paid"
    CREDITED = "credited"  # credit notes took all of it back
    WRITTEN_OFF = "written_off"


class PurchaseKind(TextChoices):
    """What takes a second person of the tenant, above its own limit."""

    RESERVATION = "reservation"
    CHANGE = "change"


class HoldResolution(TextChoices):
    """What became of money that was held for an order."""

    CAPTURED = "captured"  # the order took it, or what it cost of it
    VOIDED = "voided"  # it went back to the wallet


class Decider(TextChoices):
    """Who can let a higher limit happen."""

    ORGANIZATION = "organization"  # another of its keys that writes bills
    OPERATOR = "operator"  # it has no other such key


class BudgetPeriod(TextChoices):
    """Of UTC; what is delivered in it counts."""

    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    TOTAL = "total"


class BudgetMode(TextChoices):
    HARD = "hard"  # what does not fit is refused
    NOTIFY = "notify"  # thresholds are told, and nothing is refused


class DunningStatus(TextChoices):
    WAITING = "waiting"  # not due yet
    OVERDUE = "overdue"  # nothing more is sold on account
    REMINDED = "reminded"
    WARNED = "warned"  # told what happens next, and when
    SUSPENDED = "suspended"  # what had not started and was not paid is given back
    CLOSED = "closed"  # nothing is owed any more


DUNNING_ARROWS = Arrows(
    initial=(DunningStatus.WAITING,),
    moves={
        DunningStatus.WAITING: (DunningStatus.OVERDUE, DunningStatus.CLOSED),
        DunningStatus.OVERDUE: (DunningStatus.REMINDED, DunningStatus.CLOSED),
        DunningStatus.REMINDED: (DunningStatus.WARNED, DunningStatus.CLOSED),
        DunningStatus.WARNED: (DunningStatus.SUSPENDED, DunningStatus.CLOSED),
        DunningStatus.SUSPENDED: (DunningStatus.CLOSED,),
        DunningStatus.CLOSED: (),
    },
)

GPU_SECONDS = "gpu_second"  # the "currency" of the second set of books
