"""What a file of an export is, without the file: its rows and digest, its columns, and how to take it in.

The digest is that of the bytes which the export of the same month, version and dataset answers with. While a
month is open a later file overwrites an earlier one. Once it is closed its file stays, and what is found
later is appended in the files of later months; commitments are told as they stand, and always overwritten.
What was being posted while a month was closed may still come into it: its file is final an hour later.
"""

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import TextChoices

from billing.focus.columns import COLUMNS, Dataset, Version, data_type, file_name
from billing.invoices.invariants import TOLD_AFTER_SECONDS
from billing.models import MonthClose
from marketplace.models import Organization

ENCODING = "utf-8"


class Delivery(TextChoices):
    OVERWRITE = "overwrite"
    APPEND = "append"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    data_type: str


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
    lines: Iterable[str],
    at: dt.datetime,
) -> Manifest:
    """Return the manifest of a file; `lines` are the file's, and are read to their end.

    :raises KeyError: when the version has no such dataset.
    """
    digest, rows, size = hashlib.sha256(), -1, 0
    for text in lines:
        block = text.encode(ENCODING)
        digest.update(block)
        rows += text.count("\r\n")
        size += len(block)
    closed_at = (
        MonthClose.objects.filter(organization=organization, month=month)
        .values_list("closed_at", flat=True)
        .first()
    )
    is_kept = closed_at is not None and dataset != Dataset.CONTRACT_COMMITMENT
    return Manifest(
        month=month,
        version=version,
        dataset=dataset,
        file_name=file_name(version=version, dataset=dataset, month=month),
        rows=rows,
        size_bytes=size,
        sha256=digest.hexdigest(),
        delivery=Delivery.APPEND if is_kept else Delivery.OVERWRITE,
        closed_at=closed_at,
        is_final=is_kept
        and closed_at is not None
        and at >= closed_at + dt.timedelta(seconds=TOLD_AFTER_SECONDS),
        columns=tuple(
            Column(name=name, data_type=data_type(name)) for name in COLUMNS[version, dataset]
        ),
    )
