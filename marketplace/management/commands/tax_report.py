"""`manage.py tax_report MONTH`: what is to be filed of a month, by place, as JSON or CSV."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import tax_reports
from marketplace.core.errors import DomainError


class Command(BaseCommand):
    help = "Add up the tax of a month of UTC by jurisdiction, rate and treatment, for filing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("month", help="YYYY-MM, such as 2026-11")
        parser.add_argument("--format", choices=("json", "csv"), default="json")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        try:
            rows = tax_reports.month_report(month=options["month"], at=timezone.now())
        except DomainError as refusal:
            raise CommandError(refusal.detail) from refusal
        if options["format"] == "csv":
            for line in tax_reports.as_csv(rows):
                self.stdout.write(line, ending="")
        else:
            self.stdout.write(json.dumps([asdict(row) for row in rows], indent=2))
