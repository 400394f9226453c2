"""Every invariant of the books, as SQL over what is stored: a second opinion beside the constraints.

Each check is a query for breaches; a sound market returns no row from any. The queries derive everything
from postings and trust neither the guards nor the verbs.
"""

import datetime as dt
import logging
from dataclasses import dataclass, field

from django.db import connection, transaction

from billing import parking, settlements, silences
from billing.deposits.invariants import DEPOSIT_INVARIANTS
from billing.focus import invariants as export_invariants
from billing.guards import GUARDS
from billing.invariants.debts import DEBT_INVARIANTS
from billing.invariants.holds import HOLD_INVARIANTS
from billing.invariants.ledger import LEDGER_INVARIANTS
from billing.invariants.provider import PROVIDER_INVARIANTS
from billing.invariants.resales import RESALE_INVARIANTS
from billing.invariants.reservations import RESERVATION_INVARIANTS
from billing.invariants.settlements import SETTLEMENT_INVARIANTS
from billing.invariants.suspense import SUSPENSE_INVARIANTS
from billing.invariants.taxes import TAX_INVARIANTS
from billing.invariants.wallets import WALLET_INVARIANTS
from billing.invoices.invariants import INVOICE_INVARIANTS
from billing.models import BooksRun

logger = logging.getLogger(__name__)

NIGHTLY_SECONDS = 86_400
# A finished lease is settled within seconds of its grace. Ten minutes cover a restart of everything.
SETTLEMENT_OVERDUE_SECONDS = 600
BREACHES_SHOWN_MAX = 5  # enough to begin the search with; the count says how many there are
BREACHES_READ_MAX = 10_000  # so many organizations at most are parked by one check


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant and whether it holds; `detail` says what was found.

    `organizations` has, by id, the first breach of each organization whose money is to be parked for it.
    """

    name: str
    ok: bool
    detail: str
    organizations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BooksReport:
    """All invariants at one instant, of one snapshot of the database."""

    at: dt.datetime
    ok: bool
    checks: list[Check]


INVARIANTS = (
    *LEDGER_INVARIANTS,
    *RESERVATION_INVARIANTS,
    *SETTLEMENT_INVARIANTS,
    *SUSPENSE_INVARIANTS,
    *DEBT_INVARIANTS,
    *PROVIDER_INVARIANTS,
    *WALLET_INVARIANTS,
    *INVOICE_INVARIANTS,
    *TAX_INVARIANTS,
    *DEPOSIT_INVARIANTS,
    *HOLD_INVARIANTS,
    *RESALE_INVARIANTS,
)
# Of every check, in their order: those that are queries, then those that read the exports.
NAMES = (*(invariant.name for invariant in INVARIANTS), *export_invariants.SENTENCES)


def check(*, at: dt.datetime) -> BooksReport:
    """Check every invariant on one snapshot of the database.

    A lease or reservation that closed less than its grace and `SETTLEMENT_OVERDUE_SECONDS` before `at` may
    still wait for its settlement.
    """
    patience_seconds = settlements.grace_seconds(at=at) + SETTLEMENT_OVERDUE_SECONDS
    overdue_before = at - dt.timedelta(seconds=patience_seconds)
    parameters: dict[str, dt.datetime | list[str]] = {
        "at": at,
        "overdue_before": overdue_before,
        "silent_since": at - dt.timedelta(seconds=silences.SILENT_SECONDS_MAX),
        "guards": list(GUARDS),
    }
    with transaction.atomic(), connection.cursor() as cursor:
        if not _is_nested():
            # Between two statements of READ COMMITTED a purchase may commit; of one snapshot it cannot.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        checks = []
        for invariant in INVARIANTS:
            cursor.execute(
                f"SELECT breach, organization_id FROM ({invariant.breaches})"  # noqa: S608
                f" AS found (breach, organization_id) LIMIT {BREACHES_READ_MAX}",
                parameters,
            )
            checks.append(_judge(invariant.name, invariant.sentence, cursor.fetchall()))
        for name, found in export_invariants.breaches(at=at).items():
            checks.append(_judge(name, export_invariants.SENTENCES[name], found))
    return BooksReport(at=at, ok=all(each.ok for each in checks), checks=checks)


def run_if_due(*, at: dt.datetime) -> BooksReport | None:
    """Check the books once a night, keep what was found, and park whose books are broken.

    None where the last night's check is not a day old. Safe to run twice: a check changes nothing, and
    whoever is parked stays parked.
    """
    last = BooksRun.objects.order_by("-at").values_list("at", flat=True).first()
    if last is not None and at < last + dt.timedelta(seconds=NIGHTLY_SECONDS):
        return None
    return run(at=at)


def run(*, at: dt.datetime) -> BooksReport:
    """Check the books now, keep what was found, and park whose books are broken."""
    report = check(at=at)
    with transaction.atomic():
        BooksRun.objects.create(
            at=at,
            ok=report.ok,
            checks=[
                {"name": each.name, "ok": each.ok, "detail": each.detail} for each in report.checks
            ],
        )
        parking.park(breaches=breaches_of(report), at=at)
    for each in report.checks:
        if not each.ok:
            logger.error("the books are broken: %s: %s", each.name, each.detail)
    return report


def breaches_of(report: BooksReport) -> dict[str, str]:
    """Return, by organization, the first breach that concerns its money."""
    found: dict[str, str] = {}
    for each in report.checks:
        for organization_id, text in each.organizations.items():
            found.setdefault(organization_id, text)
    return found


def _is_nested() -> bool:
    """Say whether a caller's transaction is open around ours: its isolation is the caller's choice."""
    return bool(connection.savepoint_ids)


def _judge(name: str, sentence: str, rows: list[tuple[str, str | None]]) -> Check:
    if not rows:
        return Check(name=name, ok=True, detail=sentence)
    texts = list(dict.fromkeys(text for text, _ in rows))  # one may concern several organizations
    shown = "; ".join(texts[:BREACHES_SHOWN_MAX])
    rest = (
        f"; and {len(texts) - BREACHES_SHOWN_MAX} more" if len(texts) > BREACHES_SHOWN_MAX else ""
    )
    return Check(
        name=name,
        ok=False,
        detail=f"{shown}{rest}",
        organizations={
            organization_id: f"{name}: {text}"
            for text, organization_id in reversed(rows)
            if organization_id is not None
        },
    )
