"""`manage.py export_focus ORGANIZATION YYYY-MM`: the FOCUS files of a tenant's month, and their hashes.

Each file appears under its name when it is whole; `SHA256SUMS` beside them is read by `sha256sum --check`.
"""

import hashlib
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from billing import focus
from marketplace.models import Organization

SUMS = "SHA256SUMS"


class Command(BaseCommand):
    help = "Write the FOCUS files of a tenant's month into a folder, and SHA256SUMS of them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", help="org_…")
        parser.add_argument("month", help="YYYY-MM, of UTC")
        parser.add_argument("--to", default=".", help="the folder; it is made if it is not there")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        organization = Organization.objects.filter(pk=options["organization"]).first()
        if organization is None:
            raise CommandError(f"there is no organization {options['organization']}")
        folder, month, at = Path(options["to"]), options["month"], timezone.now()
        sums = []
        for version, dataset in sorted(focus.COLUMNS):
            name = focus.file_name(version=version, dataset=dataset, month=month)
            try:
                lines = focus.lines(
                    organization=organization, month=month, version=version, dataset=dataset, at=at
                )
            except ValueError:
                raise CommandError("a month is written as YYYY-MM, such as 2026-11") from None
            folder.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            unfinished = folder / f".{name}.part"
            with unfinished.open("wb") as file:
                for line in lines:
                    digest.update(line.encode())
                    file.write(line.encode())
            unfinished.replace(folder / name)
            sums.append(f"{digest.hexdigest()}  {name}\n")
            self.stdout.write(f"{folder / name}")
        (folder / SUMS).write_text("".join(sums), encoding="ascii")
        self.stdout.write(f"{folder / SUMS}")
