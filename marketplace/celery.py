"""The Celery application and the whole beat table: how often anything runs is decided here, nowhere else."""

import os

from celery import Celery
from celery.signals import worker_process_init

from marketplace.management.processes import end_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

app = Celery("headroom")
app.config_from_object("django.conf:settings", namespace="CELERY")


@worker_process_init.connect
def _die_with_the_worker(**_: object) -> None:
    """Let a process of the pool end with its worker: a killed worker must not go on at half."""
    end_with_parent()


app.autodiscover_tasks(["agents", "scheduler", "billing", "marketplace"])

# A tick that could not run while the broker or the worker was away must not pile up: each message dies
# after its own period, but not so soon that the clocks of two machines, a few seconds apart, would let
# every message be dead on arrival. Every task takes no input, reconciles from the database, and may run
# twice.
EXPIRES_SECONDS_MIN = 10
_CADENCES_SECONDS: dict[str, float] = {
    "scheduler.end_due_leases": 1,
    "scheduler.start_due_reservations": 1,
    "scheduler.seek_replacements": 5,
    "scheduler.expire_quotes": 15,
    "scheduler.protect_reservations": 15,
    "scheduler.warn_of_ends": 10,
    "scheduler.sweep_drained_nodes": 120,
    "scheduler.fold_calendar": 2,
    "scheduler.check_capacity": 86_400,
    "scheduler.count_demand": 60,
    "scheduler.heal_fragmentation": 86_400,
    "scheduler.refresh_prices": 60,
    "scheduler.prune_prices": 3600,
    "billing.collect_debts": 60,
    "billing.collect_balances": 60,
    "billing.collect_owner_debts": 600,
    "billing.settle_leases": 2,
    "billing.release_earnings": 5,
    "billing.drive_intents": 2,
    "billing.read_inbox": 2,
    "billing.poll_provider": 60,
    "billing.fetch_bookings": 60,
    "billing.reconcile": 900,
    "billing.close_hours": 30,
    "billing.issue_documents": 300,
    "billing.review_settlements": 60,
    "billing.open_refunds": 5,
    "billing.void_holds": 15,
    "billing.expire_promotions": 60,
    "billing.check_books": 3600,
    "billing.watch_budgets": 15,
    "billing.watch_idle_leases": 600,
    "billing.watch_spend": 3600,
    "agents.review_alarms": 60,
    "agents.prune_readings": 3600,
    "marketplace.deliver_events": 2,
    "marketplace.prune_deliveries": 3600,
    "marketplace.prune_idempotency_records": 3600,
}
app.conf.beat_schedule = {
    name: {
        "task": name,
        "schedule": seconds,
        "options": {"expires": max(seconds, EXPIRES_SECONDS_MIN)},
    }
    for name, seconds in _CADENCES_SECONDS.items()
}
