"""`manage.py check_capacity`: every invariant of what is sold. Exit code 1 when one is broken."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from scheduler import checks


class Command(BaseCommand):
    help = (
        "Check that nothing is sold twice, late or on what is not there; exits with 1 on a breach."
    )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        report = checks.check(at=timezone.now())
        width = max(len(check.name) for check in report.checks)
        for check in report.checks:
            verdict = "ok    " if check.ok else "BROKEN"
            self.stdout.write(f"{verdict}  {check.name:<{width}}  {check.detail}")
        broken = sum(not check.ok for check in report.checks)
        if broken:
            self.stdout.write(f"{broken} of {len(report.checks)} invariants are broken")
            raise SystemExit(1)
        self.stdout.write(f"all {len(report.checks)} invariants hold")
