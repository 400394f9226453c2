"""`manage.py reconcile`: what it lists, when it fails, and what it adopts."""

import pytest
import time_machine
from django.core.management import CommandError, call_command

from billing.models import Difference, Payment

pytestmark = pytest.mark.django_db


class TestCommand:
    def call(self, world, capsys, *arguments):
        with time_machine.travel(world.clock(), tick=False):
            try:
                call_command("reconcile", *arguments)
            except SystemExit as stop:
                return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    def test_says_that_all_is_well(self, world, capsys):
        world.paid()
        status, text = self.call(world, capsys)
        assert (status, text.splitlines()[-1]) == (0, "the provider and the ledger agree")

    def test_lists_what_differs_fails_by_its_age_and_adopts(self, world, capsys):
        payment = world.top_up()
        world.pays(payment)
        world.clock(hours=1)
        status, text = self.call(world, capsys)
        assert (status, "payment_differs" in text) == (0, True)
        world.clock(minutes=20)
        status, text = self.call(world, capsys)
        assert (status, "OVERDUE" in text) == (1, True)
        number = str(Difference.objects.get(kind="payment_differs").pk)
        with pytest.raises(CommandError):
            call_command("reconcile", "--adopt", number)
        assert self.call(world, capsys, "--adopt", number, "--as", "cfo")[0] == 0
        assert Payment.objects.get().status == "succeeded"

    def test_needs_a_provider(self, db):
        with pytest.raises(CommandError, match="no payment provider"):
            call_command("reconcile")
