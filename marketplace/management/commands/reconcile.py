"""`manage.py reconcile`: the payment provider against the ledger. Exit code 1 when something is overdue."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import reconcile, unknown_intents
from billing.models import Difference
from marketplace.core.errors import DomainError


class Command(BaseCommand):
    help = "Compare the payment provider with the ledger, object by object and booking by booking."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--adopt", type=int, metavar="NUMBER", help="take over what the provider says of one"
        )
        parser.add_argument(
            "--call",
            metavar="ID",
            help="a call of unknown outcome, with --object or --did-not-happen",
        )
        parser.add_argument("--object", default="", help="the provider's object that the call made")
        parser.add_argument(
            "--did-not-happen", metavar="REASON", default="", help="it made none; how you know"
        )
        parser.add_argument("--as", dest="actor", default="", help="who adopts; for the trail")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        at = timezone.now()
        try:
            if options["adopt"] is not None:
                self._adopt(number=options["adopt"], actor=options["actor"])
            if options["call"] is not None:
                self._settle(options)
            opened = reconcile.run(at=at)
        except DomainError as refusal:
            raise CommandError(refusal.detail) from refusal
        overdue = 0
        for difference in opened:
            is_overdue = reconcile.is_overdue(difference=difference, at=at)
            overdue += is_overdue
            is_dismissed = reconcile.is_dismissed(difference=difference)
            state = "OVERDUE" if is_overdue else "dismissed" if is_dismissed else "open"
            age_minutes = int((at - difference.first_seen_at).total_seconds()) // 60
            self.stdout.write(
                f"{state:<9}  {difference.pk:>6}  {difference.kind:<24}"
                f"  {difference.object_id}  {difference.detail}  ({age_minutes} min)"
            )
        if not opened:
            self.stdout.write("the provider and the ledger agree")
        if overdue:
            raise SystemExit(1)

    def _settle(self, options: dict[str, Any]) -> None:
        call, made, reason = options["call"], options["object"], options["did_not_happen"]
        if not options["actor"]:
            raise CommandError("say who found out: --as NAME")
        if bool(made) == bool(reason):
            raise CommandError("say one of --object and --did-not-happen")
        told = {"intent_id": call, "at": timezone.now(), "actor": options["actor"]}
        intent = (
            unknown_intents.is_object(object_id=made, **told)
            if made
            else unknown_intents.did_not_happen(reason=reason, **told)
        )
        self.stdout.write(f"{call}: {intent.status}")

    def _adopt(self, *, number: int, actor: str) -> None:
        if not actor:
            raise CommandError("say who adopts it: --as NAME")
        difference = Difference.objects.filter(pk=number).first()
        if difference is None:
            raise CommandError(f"there is no difference {number}")
        done = reconcile.adopt(difference=difference, at=timezone.now(), actor=actor)
        self.stdout.write(f"{number}: {done}")
