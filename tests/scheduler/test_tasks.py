"""The tasks are thin: each reads the clock once and works off what is due, as often as it runs."""

import pytest
import time_machine
from django.test import Client, override_settings
from django.urls import reverse

from agents.models import Node
from marketplace.models import User
from scheduler import tasks
from scheduler.models import Lease, Reservation
from scheduler.states import LeaseStatus, QuoteStatus, ReservationStatus
from tests.scheduler.factories import (
    make_pool,
    make_quote,
    make_reservation,
    reserve,
    say_handed_over,
    say_returned,
    seconds,
)

pytestmark = pytest.mark.django_db


class TestTasks:
    def test_carry_a_reservation_through_its_life(self) -> None:
        make_pool()
        reservation = make_reservation(gpus=2)
        with time_machine.travel(reservation.starts_at, tick=False):
            tasks.start_due_reservations()
            tasks.start_due_reservations()
        lease = Lease.objects.get()
        say_handed_over(lease)
        with time_machine.travel(reservation.starts_at + seconds(5), tick=False):
            tasks.end_due_leases()
        assert Lease.objects.get().status == LeaseStatus.ACTIVE
        say_returned(lease)
        with time_machine.travel(reservation.ends_at, tick=False):
            tasks.end_due_leases()
            tasks.end_due_leases()

        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.COMPLETED
        assert [t.to_status for t in reservation.transitions.all()] == [
            "payment_pending",
            "scheduled",
            "active",
            "completed",
        ]

    def test_expire_what_nobody_used_or_paid(self) -> None:
        make_pool()
        quote, unpaid = make_quote(), reserve(make_quote())

        with time_machine.travel(unpaid.payment_due_at, tick=False):
            tasks.expire_quotes()

        quote.refresh_from_db()
        assert quote.status == QuoteStatus.EXPIRED
        assert Reservation.objects.get().status == ReservationStatus.EXPIRED

    def test_do_nothing_in_an_empty_market(self) -> None:
        tasks.expire_quotes()
        tasks.start_due_reservations()
        tasks.end_due_leases()

        assert not Node.objects.exists()


class TestAdmin:
    @pytest.mark.parametrize("model", ["quote", "reservation", "lease", "allocation"])
    @override_settings(
        STORAGES={
            "staticfiles": {
                "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"  # needs no build
            }
        }
    )
    def test_shows_and_searches_but_never_changes(self, model: str, client: Client) -> None:
        make_pool()
        reservation = make_reservation()
        with time_machine.travel(reservation.starts_at, tick=False):
            tasks.start_due_reservations()
        lease = Lease.objects.get()
        ids = {
            "quote": reservation.quote_id,
            "reservation": reservation.pk,
            "lease": lease.pk,
            "allocation": str(lease.allocations.get().pk),
        }
        staff = User.objects.create_superuser("staff", password="a long enough password")
        client.force_login(staff)

        listing = client.get(reverse(f"admin:scheduler_{model}_changelist"), {"q": reservation.pk})
        page = client.get(reverse(f"admin:scheduler_{model}_change", args=[ids[model]]))
        change = client.post(
            reverse(f"admin:scheduler_{model}_change", args=[ids[model]]), {"status": "open"}
        )

        assert (listing.status_code, page.status_code, change.status_code) == (200, 200, 403)
        reservation.refresh_from_db()
        assert reservation.status == ReservationStatus.ACTIVE
