"""Kinds and states of the books."""

from django.db.models import TextChoices

from marketplace.core.states import Arrows


class Side(TextChoices):
    DEBIT = "debit"
    CREDIT = "credit"


class AccountKind(TextChoices):
    """The chart of accounts; the comment after each is its normal side and what it holds."""

    BANK = "bank"  # debit: money received outside of a payment provider
    WALLET = "wallet"  # credit, guarded: a tenant's prepaid money
    DEFERRED = "deferred"  # credit, guarded: paid for a reservation and not yet earned
    OWNER_ACCRUED = "owner_accrued"  # credit: earned by an owner's lease, not yet payable
    OWNER_PAYABLE = "owner_payable"  # credit: due to an owner
    PLATFORM_FEE = "platform_fee"  # credit: ours
    CANCELLATION_FEE = "cancellation_fee"  # credit: ours, of what was given back
    U_BOUGHT = "u_bought"  # credit: GPU-seconds that a reservation bought
    U_OPEN = "u_open"  # debit, guarded: of these, not yet accounted for
    U_BUSY = "u_busy"  # debit: delivered, and a kernel ran
    U_IDLE = "u_idle"  # debit: delivered, and none ran or none was seen
    U_UNDELIVERED = "u_undelivered"  # debit: not delivered, refunded
    U_RELEASED = "u_released"  # debit: given back by the tenant


class EntryKind(TextChoices):
    DEPOSIT = "deposit"
    PURCHASE = "purchase"
    SETTLEMENT = "settlement"
    REFUND = "refund"  # of what no lease of a reservation accounts for
    CHANGE = "change"  # of what a reservation buys: cancelled, returned early, extended, moved
    FEE_SHARE = "fee_share"  # an owner's part of the fee of a change
    RELEASE = "release"
    REVERSAL = "reversal"


# A reservation is bought, a lease settled, a settlement released at most once, whatever the keys say.
ONCE_PER_SUBJECT = (
    EntryKind.PURCHASE,
    EntryKind.SETTLEMENT,
    EntryKind.REFUND,
    EntryKind.CHANGE,
    EntryKind.FEE_SHARE,
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

GPU_SECONDS = "gpu_second"  # the "currency" of the second set of books
