"""What the beat calls: each task reads the clock and runs one verb, and may run twice or side by side."""

from celery import shared_task
from django.utils import timezone

from billing import (
    books,
    budgets,
    card_refunds,
    corrections,
    dunning,
    earnings,
    fee_shares,
    idle_leases,
    inbox,
    invoices,
    owner_debts,
    payments,
    promotions,
    provider,
    provider_books,
    reconcile,
    refunds,
    releases,
    reservation_refunds,
    settlements,
    spend_anomalies,
    top_up_disputes,
    transfers,
    wallet_holds,
)
from billing.deposits import collecting


@shared_task(name="billing.collect_debts")
def collect_debts() -> None:
    dunning.advance_due(at=timezone.now())


@shared_task(name="billing.collect_balances")
def collect_balances() -> None:
    collecting.advance_due(at=timezone.now())


@shared_task(name="billing.settle_leases")
def settle_leases() -> None:
    settlements.settle_ended(at=timezone.now())


@shared_task(name="billing.release_earnings")
def release_earnings() -> None:
    now = timezone.now()
    releases.release_due(at=now)
    fee_shares.release_due(at=now)
    releases.release_due(at=timezone.now())


@shared_task(name="billing.drive_intents")
def drive_intents() -> None:
    """Ask the provider for what is due, and give up what nobody paid."""
    now = timezone.now()
    payments.end_untaken(at=now)
    payments.give_up_due(at=now)
    payments.capture_due(at=now)
    payments.pay_invoices_due(at=now)
    card_refunds.send_due(at=now)
    top_up_disputes.square_due(at=now)
    if provider.is_connected():
        reservation_refunds.ask_due(at=now)
        transfers.send_due(at=now)
    provider.drive_due(at=now)


@shared_task(name="billing.collect_owner_debts")
def collect_owner_debts() -> None:
    if provider.is_connected():
        owner_debts.collect_due(at=timezone.now())


@shared_task(name="billing.read_inbox")
def read_inbox() -> None:
    inbox.process_due(at=timezone.now())


@shared_task(name="billing.poll_provider")
def poll_provider() -> None:
    """Find what no webhook told of: missed events, and payments of which nothing was heard."""
    now = timezone.now()
    inbox.poll(at=now)
    provider.read_due(at=now)


@shared_task(name="billing.close_hours")
def close_hours() -> None:
    earnings.close_due(at=timezone.now())


@shared_task(name="billing.issue_documents")
def issue_documents() -> None:
    invoices.run_due(at=timezone.now())


@shared_task(name="billing.review_settlements")
def review_settlements() -> None:
    corrections.review_due(at=timezone.now())


@shared_task(name="billing.open_refunds")
def open_refunds() -> None:
    refunds.open_due(at=timezone.now())


@shared_task(name="billing.void_holds")
def void_holds() -> None:
    wallet_holds.void_due(at=timezone.now())


@shared_task(name="billing.expire_promotions")
def expire_promotions() -> None:
    promotions.expire_due(at=timezone.now())


@shared_task(name="billing.check_books")
def check_books() -> None:
    books.run_if_due(at=timezone.now())


@shared_task(name="billing.fetch_bookings")
def fetch_bookings() -> None:
    provider_books.fetch(at=timezone.now())


@shared_task(name="billing.reconcile")
def reconcile_provider() -> None:
    """Compare the provider's books with ours; what is overdue goes to the log as an error."""
    if provider.is_connected():
        reconcile.run(at=timezone.now())


@shared_task(name="billing.watch_budgets")
def watch_budgets() -> None:
    budgets.watch_due(at=timezone.now())


@shared_task(name="billing.watch_idle_leases")
def watch_idle_leases() -> None:
    idle_leases.watch(at=timezone.now())


@shared_task(name="billing.watch_spend")
def watch_spend() -> None:
    spend_anomalies.watch(at=timezone.now())
