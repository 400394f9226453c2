"""`manage.py replay_price QUOTE_ID`: compute a quote's price again from its stored inputs, and compare."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace.core.errors import DomainError
from scheduler.models import Quote
from scheduler.prices import replay

SHOWN_LENGTH_MAX = 60  # a tariff of half a year is a long line


class Command(BaseCommand):
    help = (
        "Compute a quote's price again from its stored inputs; exits with 1 where a figure differs."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("quote_id", help="qte_…")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        quote = Quote.objects.select_related("price_version").filter(pk=options["quote_id"]).first()
        if quote is None:
            raise CommandError(f"there is no quote {options['quote_id']}")
        try:
            comparisons = replay.replay(quote=quote)
        except DomainError as refusal:
            raise CommandError(refusal.detail) from refusal
        width = max(len(comparison.name) for comparison in comparisons)
        for comparison in comparisons:
            stored = comparison.stored[:SHOWN_LENGTH_MAX]
            verdict = "same   " if comparison.agrees else "DIFFERS"
            line = f"{verdict}  {comparison.name:<{width}}  {stored}"
            if not comparison.agrees:
                line += f"  recomputed: {comparison.recomputed[:SHOWN_LENGTH_MAX]}"
            self.stdout.write(line)
        differing = sum(not comparison.agrees for comparison in comparisons)
        if differing:
            self.stdout.write(f"{differing} of {len(comparisons)} figures differ")
            raise SystemExit(1)
        self.stdout.write(f"all {len(comparisons)} figures come out again")
