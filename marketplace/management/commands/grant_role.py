"""`manage.py grant_role NAME`: let a role run the market that does not own its tables; as their owner."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace.management import privileges
from marketplace.management.errors import PlainError


class Command(BaseCommand):
    help = (
        "Let a role run web, worker and beat with the rows alone: what never changes it can only insert and"
        " read. To be run by the owner of the tables, after every `prepare`."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("role", help="a role that logs in, owns nothing, and is no superuser")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        """Grant, and say on how many tables.

        :raises CommandError: when the role is not one for this.
        """
        try:
            count = privileges.grant(role=options["role"])
        except PlainError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{options['role']} may run the market on {count} tables")
