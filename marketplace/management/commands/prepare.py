"""Bring the tables and the static files up to date, as `up` does before it starts the rest."""

import hashlib
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

# Any number that no other lock of this database uses; these are the letters "hrprep".
ADVISORY_LOCK_KEY = int.from_bytes(b"hrprep")
MARKER = ".collected"


class Command(BaseCommand):
    """Migrate, one host at a time, and collect static files when they changed."""

    help = "Migrate and collect static files, as far as needed; safe to run twice and side by side."

    def handle(self, *args: object, **options: object) -> None:
        """Hold a lock around the migrations: two hosts may start at once."""
        with connection.cursor() as cursor:
            cursor.execute("select pg_advisory_lock(%s)", [ADVISORY_LOCK_KEY])
            try:
                missing = count_missing_migrations()
                if missing:
                    self.stdout.write(f"applying {missing} migrations")
                    call_command("migrate", interactive=False, verbosity=0)
            finally:
                cursor.execute("select pg_advisory_unlock(%s)", [ADVISORY_LOCK_KEY])
        if settings.STATIC_ROOT:
            self._collect(root=Path(settings.STATIC_ROOT))

    def _collect(self, *, root: Path) -> None:
        """Copy, hash and compress takes seconds, so it is done only when a file changed."""
        state = fingerprint_static_files()
        marker = root / MARKER
        if marker.is_file() and marker.read_text(encoding="ascii") == state:
            return
        call_command("collectstatic", interactive=False, clear=True, verbosity=0)
        marker.write_text(state, encoding="ascii")
        self.stdout.write("static files collected")


def count_missing_migrations() -> int:
    """Return how many migrations the tables lack."""
    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def fingerprint_static_files() -> str:
    """Return a hash over the names, sizes and times of every static file."""
    digest = hashlib.sha256()
    for finder in get_finders():
        for path, storage in finder.list([]):
            status = Path(storage.path(path)).stat()
            digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
