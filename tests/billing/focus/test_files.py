"""How files come about: of one snapshot, with no transaction left open, and as a command writes them."""

import hashlib
from collections.abc import Generator

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from billing import focus
from billing.focus import Dataset, Version, reading
from marketplace.models import Organization
from tests.billing import factories as books


def charges_of(tenant: Organization) -> Generator[str]:
    return focus.lines(
        organization=tenant,
        month="2026-11",
        version=Version.V1_4,
        dataset=Dataset.COST_AND_USAGE,
        at=books.START,
    )


def open_cursors() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE is_holdable")
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
class TestSnapshot:
    def test_has_nothing_that_was_posted_while_it_is_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "ROWS_PER_PAGE", 1)
        tenant = books.tenant(funds_minor=10_000)
        for _ in range(2):
            books.reservation(buyer=tenant)
        lines = charges_of(tenant)
        read = [next(lines), next(lines)]
        books.reservation(buyer=tenant)
        assert len([*read, *lines]) == 3
        assert len(list(charges_of(tenant))) == 4

    def test_is_no_open_transaction_and_goes_when_its_reader_goes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "ROWS_PER_PAGE", 1)
        tenant = books.tenant(funds_minor=10_000)
        for _ in range(2):
            books.reservation(buyer=tenant)
        lines = charges_of(tenant)
        next(lines), next(lines)
        assert connection.connection.info.transaction_status.name == "IDLE"
        assert open_cursors() == 1
        lines.close()
        assert open_cursors() == 0


@pytest.mark.django_db
class TestCommand:
    def test_writes_every_file_and_its_hash(self, tmp_path) -> None:
        tenant = books.tenant(funds_minor=10_000)
        books.reservation(buyer=tenant)
        call_command("export_focus", tenant.pk, "2026-11", to=str(tmp_path / "new"))
        sums = (tmp_path / "new/SHA256SUMS").read_text().splitlines()
        assert len(sums) == len(focus.COLUMNS)
        for line in sums:
            digest, name = line.split("  ")
            content = (tmp_path / "new" / name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest
        charges = (tmp_path / "new/focus-1.4-cost_and_usage-2026-11.csv").read_bytes()
        assert charges.decode() == "".join(charges_of(tenant))
        assert not list((tmp_path / "new").glob(".*"))

    @pytest.mark.parametrize(
        ("who", "month"), [("org_nobody", "2026-11"), ("theirs", "november"), ("theirs", "2026-13")]
    )
    def test_says_what_it_does_not_know(self, tmp_path, who: str, month: str) -> None:
        tenant = books.tenant()
        with pytest.raises(CommandError):
            call_command(
                "export_focus", tenant.pk if who == "theirs" else who, month, to=str(tmp_path)
            )
        assert not list(tmp_path.iterdir())
