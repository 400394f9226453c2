"""States of what happens between us and the payment provider."""

from django.db.models import TextChoices

from billing.states import DISPUTE_ARROWS
from marketplace.core.states import Arrows


class IntentKind(TextChoices):
    """What we ask the provider to do; each is one call with one effect."""

    CUSTOMER = "customer"
    PAYMENT = "payment"
    CAPTURE = "capture"
    CANCEL = "cancel"  # of a payment that nobody wants any more
    REFUND = "refund"
    ACCOUNT = "account"  # of an owner, who receives
    TRANSFER = "transfer"
    REVERSAL = "reversal"  # of a transfer


class IntentStatus(TextChoices):
    NEW = "new"  # nobody has called yet
    SENT = "sent"  # somebody calls, or called and does not know the answer
    DONE = "done"
    REFUSED = "refused"  # the provider said no: nothing happened there
    UNKNOWN = "unknown"  # a person must look


INTENT_ARROWS = Arrows(
    initial=(IntentStatus.NEW,),
    moves={
        IntentStatus.NEW: (IntentStatus.SENT,),
        IntentStatus.SENT: (IntentStatus.DONE, IntentStatus.REFUSED, IntentStatus.UNKNOWN),
        IntentStatus.UNKNOWN: (IntentStatus.DONE, IntentStatus.REFUSED),
        IntentStatus.DONE: (),
        IntentStatus.REFUSED: (),
    },
)


class PaymentPurpose(TextChoices):
    TOP_UP = "top_up"
    RESERVATION = "reservation"  # its whole price
    DEPOSIT = "deposit"  # the part of a price that is paid at booking
    BALANCE = "balance"  # the rest of that price
    ADDED_HOURS = "added_hours"  # of one extension, or of another window
    INVOICE = "invoice"


# What pays the price at which a reservation was bought.
PRICE_PURPOSES = (PaymentPurpose.RESERVATION, PaymentPurpose.DEPOSIT, PaymentPurpose.BALANCE)
# What confirms a reservation that waits for it.
CONFIRMING_PURPOSES = (PaymentPurpose.RESERVATION, PaymentPurpose.DEPOSIT)


class PaymentMeans(TextChoices):
    CARD = "card"
    BANK_TRANSFER = "bank_transfer"


class PaymentStatus(TextChoices):
    CREATED = "created"  # written down here
    OPEN = "open"  # the provider waits for the tenant
    AUTHORIZED = "authorized"  # held on the card, not yet taken
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


PAYMENT_ARROWS = Arrows(
    initial=(PaymentStatus.CREATED,),
    moves={
        PaymentStatus.CREATED: (
            PaymentStatus.OPEN,
            PaymentStatus.AUTHORIZED,
            PaymentStatus.SUCCEEDED,
            PaymentStatus.FAILED,
            PaymentStatus.CANCELLED,
        ),
        PaymentStatus.OPEN: (
            PaymentStatus.AUTHORIZED,
            PaymentStatus.SUCCEEDED,
            PaymentStatus.FAILED,
            PaymentStatus.CANCELLED,
        ),
        PaymentStatus.AUTHORIZED: (
            PaymentStatus.SUCCEEDED,
            PaymentStatus.FAILED,
            PaymentStatus.CANCELLED,
        ),
        PaymentStatus.SUCCEEDED: (),
        # What we gave up as failed may have happened all the same, and then it counts.
        PaymentStatus.FAILED: (PaymentStatus.SUCCEEDED,),
        PaymentStatus.CANCELLED: (),
    },
)


PAYMENT_OPEN_STATUSES = (
    PaymentStatus.CREATED,
    PaymentStatus.OPEN,
    PaymentStatus.AUTHORIZED,
)


class CardRefundStatus(TextChoices):
    DUE = "due"
    PENDING = "pending"  # the provider has it
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the money is in the tenant's wallet instead


CARD_REFUND_ARROWS = Arrows(
    initial=(CardRefundStatus.DUE,),
    moves={
        CardRefundStatus.DUE: (
            CardRefundStatus.PENDING,
            CardRefundStatus.SUCCEEDED,
            CardRefundStatus.FAILED,
        ),
        CardRefundStatus.PENDING: (CardRefundStatus.SUCCEEDED, CardRefundStatus.FAILED),
        CardRefundStatus.SUCCEEDED: (
            CardRefundStatus.FAILED,
        ),  # a closed card gives it back days later
        CardRefundStatus.FAILED: (),
    },
)


class DepositStatus(TextChoices):
    """How far a price that is paid in two parts has come."""

    AWAITED = "awaited"  # the deposit is not paid yet
    OPEN = "open"  # the deposit is paid, the balance is not due
    ASKED = (
        "asked"  # the balance was asked for: the saved card is charged, or its tenant must return
    )
    PAID = "paid"
    ENDED = "ended"  # the reservation was given up before the balance was paid


DEPOSIT_ARROWS = Arrows(
    initial=(DepositStatus.AWAITED,),
    moves={
        DepositStatus.AWAITED: (DepositStatus.OPEN,),
        DepositStatus.OPEN: (DepositStatus.ASKED, DepositStatus.PAID, DepositStatus.ENDED),
        DepositStatus.ASKED: (DepositStatus.PAID, DepositStatus.ENDED),
        DepositStatus.PAID: (),
        DepositStatus.ENDED: (),
    },
)


class TransferStatus(TextChoices):
    SENDING = "sending"
    PAID = "paid"
    FAILED = "failed"
    REVERSED = "reversed"


TRANSFER_ARROWS = Arrows(
    initial=(TransferStatus.SENDING,),
    moves={
        TransferStatus.SENDING: (TransferStatus.PAID, TransferStatus.FAILED),
        TransferStatus.PAID: (TransferStatus.REVERSED,),
        TransferStatus.FAILED: (),
        TransferStatus.REVERSED: (),
    },
)


class ReversalStatus(TextChoices):
    ASKED = "asked"
    DONE = "done"
    REFUSED = "refused"  # it is no longer there: what is owed stays owed


REVERSAL_ARROWS = Arrows(
    initial=(ReversalStatus.ASKED,),
    moves={
        ReversalStatus.ASKED: (ReversalStatus.DONE, ReversalStatus.REFUSED),
        ReversalStatus.DONE: (),
        ReversalStatus.REFUSED: (),
    },
)


class Machine(TextChoices):
    """Which of the tables of arrows a transition belongs to."""

    INTENT = "intent"
    PAYMENT = "payment"
    REFUND = "refund"
    TRANSFER = "transfer"
    DISPUTE = "dispute"
    REVERSAL = "reversal"
    DEPOSIT = "deposit"


ARROWS_BY_MACHINE: dict[Machine, Arrows[TextChoices]] = {
    Machine.INTENT: INTENT_ARROWS,  # type: ignore[dict-item] # every table is one of text choices
    Machine.PAYMENT: PAYMENT_ARROWS,  # type: ignore[dict-item]
    Machine.REFUND: CARD_REFUND_ARROWS,  # type: ignore[dict-item]
    Machine.TRANSFER: TRANSFER_ARROWS,  # type: ignore[dict-item]
    Machine.DISPUTE: DISPUTE_ARROWS,  # type: ignore[dict-item]
    Machine.REVERSAL: REVERSAL_ARROWS,  # type: ignore[dict-item]
    Machine.DEPOSIT: DEPOSIT_ARROWS,  # type: ignore[dict-item]
}
