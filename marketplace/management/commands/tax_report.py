"""`manage.py tax_report MONTH`: what is to be filed of a month and is still owed, as JSON or CSV."""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import tax_remittances, tax_reports
from marketplace.core.errors import DomainError


class Command(BaseCommand):
    help = "Add up the tax of a month of UTC by jurisdiction, rate and treatment, for filing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("month", help="YYYY-MM, such as 2026-11")
        parser.add_argument(
            "--by",
            choices=("sale", "office"),
            default="sale",
            help="what was sold on which terms, or what each tax office is owed and was paid",
        )
        parser.add_argument("--format", choices=("json", "csv"), default="json")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        try:
            month, at = options["month"], timezone.now()
            kind: type[tax_reports.TaxRow | tax_remittances.Period]
            rows: Sequence[tax_reports.TaxRow] | Sequence[tax_remittances.Period]
            if options["by"] == "office":
                kind, rows = tax_remittances.Period, tax_reports.offices(month=month, at=at)
            else:
                kind, rows = tax_reports.TaxRow, tax_reports.month_report(month=month, at=at)
        except DomainError as refusal:
            raise CommandError(refusal.detail) from refusal
        if options["format"] == "csv":
            for line in tax_reports.as_csv(rows, of=kind):
                self.stdout.write(line, ending="")
        else:
            self.stdout.write(json.dumps([asdict(row) for row in rows], indent=2))
