"""The files of an export, a page of lines at a time: what a caller asks for, and nothing kept."""

import csv
import datetime as dt
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from django.conf import settings

from billing import month_movements
from billing.budgets import NO_LABELS, Labels
from billing.focus import charges, commitments, invoice_lines, periods, reading
from billing.focus.columns import COLUMNS, SAME_AS, Dataset, Version
from billing.focus.facts import NO_DOCUMENTS, Deal, Documents, Fact, Payer
from billing.focus.frames import Frames, Row
from billing.models import MonthClose
from billing.undelivered import NO_REASONS, Reasons
from marketplace.core.windows import Window
from marketplace.models import Organization

# Of what a closed month keeps, what a reservation was called; its labels are those of each charge.
_CALLED = ("name", "gpu_model_name")
_EVER = Window(dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.datetime(9000, 1, 1, tzinfo=dt.UTC))


def lines(
    *,
    organization: Organization,
    month: str,
    version: Version,
    dataset: Dataset,
    at: dt.datetime,
) -> Generator[str]:
    """Return the lines of a file as it stands now, its header first; what follows is read as it is asked for.

    :raises ValueError: when `month` names no month.
    :raises KeyError: when the version has no such dataset.
    """
    columns = COLUMNS[version, dataset]
    window = month_movements.month_window(month=month)
    close = MonthClose.objects.filter(organization=organization, month=month).first()
    names = close.names if close is not None else {}
    payer = _payer(organization, starts_at=window.starts_at, ends_at=window.ends_at, names=names)
    pages: Iterator[Iterable[Row]]
    match dataset:
        case Dataset.COST_AND_USAGE:
            pages = _charges(organization=organization, payer=payer, close=close)
        case Dataset.CONTRACT_COMMITMENT:
            pages = commitments.pages(organization=organization, payer=payer)
        case Dataset.INVOICE_DETAIL:
            pages = invoice_lines.pages(organization=organization, month=month, payer=payer)
        case Dataset.BILLING_PERIOD:
            row = periods.row_of(organization=organization, month=month, payer=payer, at=at)
            pages = iter([[row]])
    return _lines(columns, pages)


class _Line:
    """A file that hands each line on instead of keeping it."""

    def write(self, text: str) -> str:
        return text


def _lines(columns: tuple[str, ...], pages: Iterator[Iterable[Row]]) -> Generator[str]:
    writer = csv.writer(_Line(), lineterminator="\r\n")
    cells = itemgetter(*(SAME_AS.get(column, column) for column in columns))
    yield str(writer.writerow(columns))
    for page in pages:
        yield "".join([str(writer.writerow(cells(row))) for row in page])


def charges_of(*, organization: Organization, reservation_ids: Sequence[str]) -> Iterator[Row]:
    """Yield the charges of some reservations over all their months: what is checked against the books."""
    payer = _payer(organization, starts_at=_EVER.starts_at, ends_at=_EVER.ends_at)
    for page in _charges(organization=organization, payer=payer, reservation_ids=reservation_ids):
        yield from page


def _payer(
    organization: Organization,
    *,
    starts_at: dt.datetime,
    ends_at: dt.datetime,
    names: Mapping[str, Any] = MappingProxyType({}),
) -> Payer:
    """Return whose file it is; of a closed month by the names that were known when it was closed."""
    return Payer(
        account_id=organization.pk,
        account_name=names.get("account", organization.name),
        issuer_name=names.get("issuer", settings.SELLER["name"]),
        starts_at=starts_at,
        ends_at=ends_at,
    )


def _charges(
    *,
    organization: Organization,
    payer: Payer,
    reservation_ids: Sequence[str] | None = None,
    close: MonthClose | None = None,
) -> Iterator[Iterable[Row]]:
    called = close.names.get("reservations", {}) if close is not None else {}
    for page in reading.pages(
        organization=organization, payer=payer, reservation_ids=reservation_ids
    ):
        deals = reading.deals(
            reservation_ids={fact.reservation_id for fact in page if fact.reservation_id}
        )
        deals = {key: _renamed(deal, called.get(key, {})) for key, deal in deals.items()}
        documents = reading.documents(
            entry_keys={fact.entry_key for fact in page if fact.entry_key}, close=close
        )
        reasons = reading.reasons(facts=page)
        yield _rows(page, payer=payer, deals=deals, documents=documents, reasons=reasons)


def _renamed(deal: Deal, called: Mapping[str, Any]) -> Deal:
    return replace(deal, **{name: called[name] for name in _CALLED if name in called})


def _rows(
    page: list[Fact],
    *,
    payer: Payer,
    deals: Mapping[str, Deal],
    documents: Mapping[str, Documents],
    reasons: Mapping[str, Reasons],
) -> Iterator[Row]:
    """Yield the charges of a page; its facts come by reservation, so that few frames are made."""
    frames: Frames | None = None
    place: tuple[str, str, Labels] | None = None
    for fact in page:
        deal = deals.get(fact.reservation_id or "")
        labels = deal.said.before(fact.effective_at) if deal else NO_LABELS
        here = (fact.reservation_id or "", fact.currency, labels)
        if frames is None or here != place:
            place = here
            frames = Frames(payer=payer, deal=deal, currency=fact.currency, labels=labels)
        yield from charges.rows_of(
            fact,
            frames=frames,
            documents=documents.get(fact.entry_key, NO_DOCUMENTS),
            reasons=reasons.get(fact.entry_id, NO_REASONS),
        )
