"""What a file of an export is, without the file: its rows and digest, its columns, and how to take it in.

The digest is that of the bytes which the export of the same month, version and dataset answers with. While a
month is open a later file overwrites an earlier one. Once it is closed its file stays, and what is found
later is appended in the files of later months; commitments are told as they stand, and always overwritten.
What was being posted while a month was closed may still come into it: its file is final an hour later. Then
it is read once, and what was counted is kept; `breaches` reads some of those again every night.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from django.db.models import F, TextChoices
from django.db.models.functions import Mod

from billing.focus import files
from billing.focus.columns import COLUMNS, Dataset, Version, data_type, file_name
from billing.invoices.invariants import TOLD_AFTER_SECONDS
from billing.models import ExportDigest, MonthClose
from marketplace.models import Organization

ENCODING = "utf-8"
# Raised by whoever lets the rows of a closed month say the same in other words or columns: what was counted
# of the older words is then counted anew. A test has the rows of a world by heart and asks for it.
LAYOUT = 1
# Each kept file is read again once in so many nights, and so many rows are read in one: half a minute.
CHECKED_EVERY_NIGHTS = 28
CHECKED_ROWS_MAX = 1_000_000


class Delivery(TextChoices):
    OVERWRITE = "overwrite"
    APPEND = "append"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    data_type: str


class Counted(NamedTuple):
    """What a file is found to be when it is read to its end; its rows without the header."""

    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One file, its rows counted without the header; `closed_at` is None while its month is open."""

    month: str
    version: Version
    dataset: Dataset
    file_name: str
    rows: int
    size_bytes: int
    sha256: str
    delivery: Delivery
    closed_at: dt.datetime | None
    is_final: bool
    columns: tuple[Column, ...]


def of(
    *,
    organization: Organization,
    month: str,
    version: Version,
    dataset: Dataset,
    read: Callable[[], Iterable[str]],
    at: dt.datetime,
) -> Manifest:
    """Return the manifest of a file; `read` begins to read its lines, where nobody has counted them before.

    :raises KeyError: when the version has no such dataset.
    :raises Exception: whatever `read` raises, where it is called.
    """
    closed_at = (
        MonthClose.objects.filter(organization=organization, month=month)
        .values_list("closed_at", flat=True)
        .first()
    )
    is_kept = closed_at is not None and dataset != Dataset.CONTRACT_COMMITMENT
    is_final = (
        is_kept
        and closed_at is not None
        and at >= closed_at + dt.timedelta(seconds=TOLD_AFTER_SECONDS)
    )
    key = {
        "organization": organization,
        "month": month,
        "version": version.value,
        "dataset": dataset.value,
        "layout": LAYOUT,
    }
    kept = ExportDigest.objects.filter(**key).first() if is_final else None
    if kept is not None:
        counted = Counted(kept.rows, kept.size_bytes, kept.sha256)
    else:
        counted = count(read())
        if is_final:
            # Another one may have counted it meanwhile, with the same result.
            values = {**counted._asdict(), "made_at": at}
            ExportDigest.objects.get_or_create(**key, defaults=values)
    return Manifest(
        month=month,
        version=version,
        dataset=dataset,
        file_name=file_name(version=version, dataset=dataset, month=month),
        **counted._asdict(),
        delivery=Delivery.APPEND if is_kept else Delivery.OVERWRITE,
        closed_at=closed_at,
        is_final=is_final,
        columns=tuple(
            Column(name=name, data_type=data_type(name)) for name in COLUMNS[version, dataset]
        ),
    )


def count(lines: Iterable[str]) -> Counted:
    """Return what a file is, read a page at a time: its size is not felt as memory."""
    digest, rows, size = hashlib.sha256(), -1, 0
    for text in lines:
        block = text.encode(ENCODING)
        digest.update(block)
        rows += text.count("\r\n")
        size += len(block)
    return Counted(rows, size, digest.hexdigest())


def breaches(*, at: dt.datetime) -> Iterator[str]:
    """Yield which of the kept files that are due this night are not any more what they were."""
    night = at.toordinal() % CHECKED_EVERY_NIGHTS
    due = (
        ExportDigest.objects.filter(layout=LAYOUT)
        .annotate(night=Mod(F("pk"), CHECKED_EVERY_NIGHTS))
        .filter(night=night)
        .select_related("organization")
        .order_by("?")  # where not all are read, each has its turn in time
    )
    read = 0
    for kept in due.iterator():
        read += kept.rows
        if read > CHECKED_ROWS_MAX:
            return
        lines = files.lines(
            organization=kept.organization,
            month=kept.month,
            version=Version(kept.version),
            dataset=Dataset(kept.dataset),
            at=at,
        )
        found = count(lines)
        if found != Counted(kept.rows, kept.size_bytes, kept.sha256):
            yield (
                f"{kept} had {kept.rows} rows, {kept.sha256[:12]}…, and now has {found.rows}, "
                f"{found.sha256[:12]}…"
            )
