"""The payment provider of the machine: what it answers to our calls, and what it books on our balance.

It stands where its answers come in, behind `intents` and in the list of its bookings; the wire is tried
elsewhere. A call is answered only when it is due, so that of parked money none is made.
"""

import datetime as dt

from django.conf import settings

from billing import chargeable, intents, provider_books
from billing.intents import Made
from billing.models import BalanceTransaction, Intent, Payment, ProviderTransition
from billing.provider import HANDLERS
from billing.provider_states import IntentKind, IntentStatus, Machine
from billing.provider_values import (
    ProviderPayment,
    ProviderRefund,
    ProviderTransfer,
    Refusal,
)
from tests.billing import factories
from tests.properties.ledger.model import FARTHER, Model

CALLED_AT = FARTHER + dt.timedelta(days=4_000)  # whatever was ever asked for is due by then


class Provider(Model):
    """What the provider does; no rule of its own."""

    def call(self, kind: IntentKind, subject_id: str, *, at: dt.datetime) -> Intent | None:
        """Return a call that somebody has made and that has no answer yet; None while none may be made."""
        intent = Intent.objects.filter(kind=kind, subject_id=subject_id, closed_at=None).first()
        if intent is None or intent.pk not in intents.due(at=CALLED_AT, subject_ids=[subject_id]):
            return None
        if intent.status == IntentStatus.NEW:
            Intent.objects.filter(pk=intent.pk).update(
                status=IntentStatus.SENT, attempts=1, sent_at=at, due_at=at
            )
            self.note(intent, came_from=IntentStatus.NEW, to=IntentStatus.SENT, at=at)
        return intent

    def was_made(self, kind: IntentKind, subject_id: str) -> bool:
        """Say whether a call had its effect."""
        made = Intent.objects.filter(kind=kind, subject_id=subject_id, status=IntentStatus.DONE)
        return made.exists()

    def answer(self, intent: Intent, made: Made, *, at: dt.datetime) -> None:
        intents.adopt(intent=intent, made=made, handlers=HANDLERS, at=at)

    def refuse(self, intent: Intent, *, code: str, at: dt.datetime) -> None:
        """Let a person find out that a call of which nothing was heard was refused."""
        Intent.objects.filter(pk=intent.pk).update(status=IntentStatus.UNKNOWN)
        self.note(intent, came_from=IntentStatus.SENT, to=IntentStatus.UNKNOWN, at=at)
        refusal = Refusal(code=code, message="it said no")
        intents.give_up(intent=intent, refusal=refusal, handlers=HANDLERS, at=at)

    def note(
        self, intent: Intent, *, came_from: IntentStatus, to: IntentStatus, at: dt.datetime
    ) -> None:
        ProviderTransition.objects.create(
            machine=Machine.INTENT, subject_id=intent.pk, from_status=came_from, to_status=to, at=at
        )

    def payment_made(self, payment: Payment, *, state: str) -> ProviderPayment:
        """Return a payment as the provider shows it; what it took once is booked on our balance."""
        assert payment.amount_minor % chargeable.step(payment.currency) == 0, payment
        is_taken = state == "succeeded"
        charge_id = f"ch_{payment.pk}"
        return ProviderPayment(
            id=f"pi_{payment.pk}",
            intent_id="",
            state=state,
            amount_minor=payment.amount_minor,
            received_minor=payment.amount_minor if is_taken else 0,
            currency=payment.currency,
            client_secret="",
            charge_id=charge_id if is_taken else "",
            method_id="pm_1",
            capture_before=None,
            failure_code="",
            failure_message="",
            instructions=None,
            created_at=factories.START,
        )

    def refund_made(self, refund_id: str, *, payment: Payment, amount: int, state: str) -> Made:
        return ProviderRefund(
            id=f"re_{refund_id}",
            intent_id="",
            state=state,
            amount_minor=amount,
            currency=payment.currency,
            payment_id=payment.provider_id,
            failure_code="lost_or_stolen_card" if state == "failed" else "",
            created_at=factories.START,
        )

    def transfer_made(self, object_id: str, *, amount: int) -> ProviderTransfer:
        return ProviderTransfer(
            id=object_id,
            intent_id="",
            amount_minor=amount,
            reversed_minor=0,
            currency=settings.CURRENCY,
            created_at=factories.START,
        )

    def will_book(self, category: str, source_id: str, amount: int, *, fee: int = 0) -> None:
        """Remember what the provider is going to book: a charge with its fee, a refund, what came back."""
        self.unbooked[(category, source_id)] = (amount, fee)

    def book(
        self, category: str, source_id: str, amount: int, *, fee: int, at: dt.datetime
    ) -> BalanceTransaction:
        """Store a booking as it comes in the provider's list."""
        return BalanceTransaction.objects.create(
            pk=self.next_id("txn"),
            category=category,
            source_id=source_id,
            amount_minor=amount,
            fee_minor=fee,
            currency=settings.CURRENCY,
            available_at=at,
            created_at=at,
        )

    def take_over_bookings(self, *, at: dt.datetime) -> None:
        provider_books.match_all(at=at)
        provider_books.make_available(at=at)
