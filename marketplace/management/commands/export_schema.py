"""Write the OpenAPI document of /v1 to the file that is committed and served, or check that it is current."""

import contextlib
import io
import json
from argparse import ArgumentParser

from django.core.management.base import BaseCommand, CommandError

from marketplace.api import documents, schema


class Command(BaseCommand):
    help = "Write marketplace/api/openapi.json from the views; with --check, only compare."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--check", action="store_true", help="fail when the committed document is not current"
        )

    def handle(self, *args: object, **options: object) -> None:
        """Write or compare.

        :raises CommandError: when the generator warns, or when `--check` finds a difference.
        """
        warnings = io.StringIO()
        with contextlib.redirect_stderr(warnings):
            document = schema.document()
        if warnings.getvalue():
            raise CommandError(f"the generator is in doubt:\n{warnings.getvalue()}")
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        if not options["check"]:
            documents.COMMITTED.write_text(text)
            self.stdout.write(
                f"wrote {documents.COMMITTED.name}: {len(document['paths'])} addresses"
            )
        elif not documents.COMMITTED.exists() or documents.COMMITTED.read_text() != text:
            raise CommandError(
                "marketplace/api/openapi.json is not current; run manage.py export_schema"
            )
        else:
            self.stdout.write("openapi.json is current")
