"""What the books moved in a month of UTC, for each reservation of a tenant.

When something happened is decided in one place, `MOMENT`: an hour of a lease belongs to the month in which
the hour begins, and what a settlement adds to its hours (refund and credit too) to the month in which the
lease's time ended. Everything else, late corrections too, belongs to the instant of its entry. What is posted
after a tenant's month was closed belongs to the first one that is open: a closed one never changes. So every
posting is in exactly one month, and months add up to the books. Documents, exports, the bill and the tax that
is filed follow this one rule.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from django.conf import settings
from django.db import connection
from django.db.models import Q, Sum

from billing.models import Correction, MonthClose
from billing.states import GPU_SECONDS, AccountKind, EntryKind
from marketplace.core.windows import Window
from marketplace.models import Organization

_SECONDS_KINDS = (
    AccountKind.U_BOUGHT,
    AccountKind.U_BUSY,
    AccountKind.U_IDLE,
    AccountKind.U_UNDELIVERED,
    AccountKind.U_RELEASED,
)
_ACCOUNT_KINDS = (
    AccountKind.DEFERRED,
    AccountKind.WALLET,
    AccountKind.HOLD,
    AccountKind.REFUND_PAYABLE,
    AccountKind.RECEIVABLE,
    AccountKind.U_OPEN,
    *_SECONDS_KINDS,
)
# What a tenant's wallet gets beyond the price of a reservation, or gives back of that: bills and exports tell
# the same of these.
CREDITS = (
    EntryKind.CREDIT,
    EntryKind.COMPENSATION,
    EntryKind.GOODWILL,
    EntryKind.RESALE,
    EntryKind.PROMOTION_SPENT,
    EntryKind.PROMOTION_RETURNED,
)
# Entries that move a wallet or a refund for another reason are not of a reservation's price.
_PRICE_ENTRIES = (
    EntryKind.CHANGE,
    EntryKind.SETTLEMENT,
    EntryKind.CORRECTION,
    EntryKind.REFUND,
    *CREDITS,
)
MOMENT = """
    CASE
        WHEN e.kind IN ('settlement', 'credit', 'compensation') AND l.id IS NOT NULL
            THEN least(e.effective_at, l.ends_at) - interval '1 microsecond'
        ELSE e.effective_at
    END
"""
# Of an entry e, or the hour h that is told by it: recorded after the month before was closed, and before the
# month itself was. Hours know their clock, entries that of the database. See `cutoffs`.
ENTRY_IS_LATE = "coalesce(e.recorded_at >= %(opened_at)s::timestamptz, false)"
ENTRY_IS_IN_TIME = "coalesce(e.recorded_at < %(closed_at)s::timestamptz, true)"
HOUR_IS_LATE = "coalesce(h.closed_at >= %(opened_by)s::timestamptz, false)"
HOUR_IS_IN_TIME = "coalesce(h.closed_at < %(closed_by)s::timestamptz, true)"
_MOVEMENTS = f"""
    SELECT CASE WHEN m.account_kind IN ('wallet', 'hold', 'receivable')
            THEN coalesce(m.lease_of, m.change_of, m.subject_id) ELSE m.account_of END AS reservation_id,
        m.entry_kind, m.account_kind, m.moment < %(starts_at)s AND NOT m.is_late AS is_before,
        coalesce(sum(m.amount) FILTER (WHERE m.side = 'debit'), 0) AS debits,
        coalesce(sum(m.amount) FILTER (WHERE m.side = 'credit'), 0) AS credits
    FROM (
        SELECT a.subject_id AS account_of, a.kind AS account_kind, e.kind AS entry_kind, e.subject_id,
            l.reservation_id AS lease_of, c.reservation_id AS change_of, p.side, p.amount,
            coalesce(h.starts_at, {MOMENT}) AS moment,
            CASE WHEN h.id IS NULL THEN {ENTRY_IS_LATE} ELSE {HOUR_IS_LATE} END AS is_late,
            CASE WHEN h.id IS NULL THEN {ENTRY_IS_IN_TIME} ELSE {HOUR_IS_IN_TIME} END AS is_in_time
        FROM billing_account a
        JOIN billing_posting p ON p.account_id = a.id JOIN billing_entry e ON e.id = p.entry_id
        LEFT JOIN billing_earnedhour h ON h.entry_id = e.id
        LEFT JOIN scheduler_lease l ON l.id = e.subject_id
        LEFT JOIN scheduler_change c ON c.id = e.subject_id
        WHERE a.organization_id = %(organization)s AND a.kind = ANY(%(accounts)s)
            AND a.currency = ANY(%(currencies)s)
            AND (a.kind NOT IN ('wallet', 'hold', 'refund_payable', 'receivable')
                OR e.kind = ANY(%(entries)s))
        UNION ALL
        SELECT r.id, 'tax_payable', e.kind, e.subject_id, NULL, NULL, tax.side, tax.amount, {MOMENT},
            {ENTRY_IS_LATE}, {ENTRY_IS_IN_TIME}
        FROM scheduler_reservation r
        JOIN billing_taxline n ON n.reservation_id = r.id AND NOT n.is_relief
        JOIN billing_entry e ON e.id = n.entry_id
        LEFT JOIN scheduler_lease l ON l.id = e.subject_id
        CROSS JOIN LATERAL (
            VALUES ('credit', n.tax_charged_minor), ('debit', n.tax_refunded_minor)
        ) tax (side, amount)
        WHERE r.organization_id = %(organization)s AND n.currency = ANY(%(currencies)s)
    ) m
    WHERE m.moment < %(ends_at)s AND m.is_in_time
        AND (m.moment >= %(starts_at)s OR m.is_late OR m.account_kind IN ('deferred', 'u_open'))
    GROUP BY 1, 2, 3, 4
"""  # noqa: S608 - constants of this file


@dataclass(slots=True, kw_only=True)
class Movements:
    """One reservation in one month, in minor units and GPU-seconds.

    `opening + charged = earned + refunded + fees + closing`, all without tax; credits are beyond the price.
    For GPU-seconds `opening_seconds + bought = busy + idle + undelivered + released + closing_seconds`.
    """

    opening: int = 0
    charged: int = 0
    earned: int = 0
    refunded: int = 0
    fees: int = 0
    credits: int = 0
    tax_charged: int = 0
    tax_refunded: int = 0
    closing: int = 0
    opening_seconds: int = 0
    bought: int = 0
    busy: int = 0
    idle: int = 0
    undelivered: int = 0
    released: int = 0
    closing_seconds: int = 0


def in_month(*, organization: Organization, window: Window, currency: str) -> dict[str, Movements]:
    """Return what moved for each reservation that had anything in the books; two queries."""
    found: dict[str, Movements] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            _MOVEMENTS,
            {
                "organization": organization.pk,
                "accounts": [kind.value for kind in _ACCOUNT_KINDS],
                "entries": [kind.value for kind in _PRICE_ENTRIES],
                "currencies": [currency, GPU_SECONDS],
                "starts_at": window.starts_at,
                "ends_at": window.ends_at,
                **cutoffs(organization=organization, window=window),
            },
        )
        for reservation_id, entry, account, is_before, debited, credited in cursor.fetchall():
            row = found.setdefault(reservation_id, Movements())
            _add(
                row,
                entry=entry,
                account=account,
                is_before=is_before,
                debited=int(debited),
                credited=int(credited),
            )
    for reservation_id, refunded in _corrected(organization=organization, window=window):
        # What a correction gives back was earned before; what it takes again had been given back. What it
        # moved in the wallet beyond that, a credit or what the market bears, stands among the credits.
        row = found[reservation_id]
        row.earned -= refunded
        row.refunded += refunded
        row.credits -= refunded
    return found


def _add(
    row: Movements, *, entry: str, account: str, is_before: bool, debited: int, credited: int
) -> None:
    gained = credited - debited
    match account:
        case AccountKind.DEFERRED:
            row.closing += gained
            if is_before:
                row.opening += gained
            else:
                _price(row, entry=entry, gained=gained)
        case (
            AccountKind.WALLET
            | AccountKind.HOLD
            | AccountKind.REFUND_PAYABLE
            | AccountKind.RECEIVABLE
        ):
            _give_back(row, entry=entry, debited=debited, credited=credited)
        case AccountKind.TAX_PAYABLE:
            _tax(row, entry=entry, charged=credited, refunded=debited)
        case AccountKind.U_OPEN:
            row.closing_seconds -= gained
            row.opening_seconds -= gained if is_before else 0
        case AccountKind.U_BOUGHT:
            row.bought += gained
        case AccountKind.U_BUSY:
            row.busy -= gained
        case AccountKind.U_IDLE:
            row.idle -= gained
        case AccountKind.U_UNDELIVERED:
            row.undelivered -= gained
        case _:
            assert account == AccountKind.U_RELEASED, account
            row.released -= gained


def _price(row: Movements, *, entry: str, gained: int) -> None:
    """Take what a movement of the deferred price means, before what the tenant got of it is known."""
    match entry:
        case EntryKind.PURCHASE | EntryKind.BALANCE:
            row.charged += gained
        case EntryKind.EARNING | EntryKind.SETTLEMENT:
            row.earned -= gained
        case EntryKind.CHANGE | EntryKind.FEE_SHARE:
            row.fees -= gained
        case EntryKind.REFUND:
            pass  # the other leg says the same
        case _:
            row.refunded -= gained


def _tax(row: Movements, *, entry: str, charged: int, refunded: int) -> None:
    """Take out what `_give_back` takes for the price: a wallet pays and gets the tax with it."""
    row.tax_charged += charged
    row.tax_refunded += refunded
    match entry:
        case EntryKind.CHANGE:
            row.charged -= charged
            row.refunded -= refunded
            row.fees -= charged - refunded
        case EntryKind.SETTLEMENT:
            row.refunded -= refunded
            row.earned += refunded
        case EntryKind.REFUND:
            row.refunded -= refunded
        case EntryKind.CORRECTION:
            row.credits += charged - refunded


def _give_back(row: Movements, *, entry: str, debited: int, credited: int) -> None:
    """Take what came out of the wallet and went back, and leave to the others what is theirs."""
    match entry:
        case EntryKind.CHANGE:
            row.charged += debited
            row.refunded += credited
            row.fees -= credited - debited
        case EntryKind.SETTLEMENT:
            row.refunded += credited - debited
            row.earned -= credited - debited
        case EntryKind.REFUND:
            row.refunded += credited - debited
        case _:
            row.credits += credited - debited


def _corrected(*, organization: Organization, window: Window) -> list[tuple[str, int]]:
    cut = cutoffs(organization=organization, window=window)
    return list(
        Correction.objects.filter(
            of_entries(window=window, cut=cut),
            settlement__lease__reservation__organization=organization,
        )
        .values_list("settlement__lease__reservation")
        .annotate(refunded=Sum("refunded_minor"))
        .order_by()
    )


def cutoffs(*, organization: Organization, window: Window) -> dict[str, dt.datetime | None]:
    """Return between which instants something was recorded to belong to whole months of UTC; one query.

    `opened_at` is when the month before the window was closed, `closed_at` when its last one was, by the
    clock of the database; `opened_by` and `closed_by` by the closing's own. None: it has not been closed, or
    the window does not begin or end with a month.
    """
    before, last = (
        f"{at.astimezone(dt.UTC) - dt.timedelta(microseconds=1):%Y-%m}" if _is_first(at) else ""
        for at in (window.starts_at, window.ends_at)
    )
    closed = {
        month: (recorded_at, closed_at)
        for month, recorded_at, closed_at in MonthClose.objects.filter(
            organization=organization, month__in=[before, last]
        ).values_list("month", "recorded_at", "closed_at")
    }
    opened_at, opened_by = closed.get(before, (None, None))
    closed_at, closed_by = closed.get(last, (None, None))
    return {
        "opened_at": opened_at,
        "opened_by": opened_by,
        "closed_at": closed_at,
        "closed_by": closed_by,
    }


def of_entries(*, window: Window, cut: Mapping[str, dt.datetime | None]) -> Q:
    """Return which rows, with an `entry` that belongs to its own instant, a window with these cutoffs has."""
    belongs = Q(entry__effective_at__gte=window.starts_at)
    if cut["opened_at"] is not None:
        belongs |= Q(entry__recorded_at__gte=cut["opened_at"])
    if cut["closed_at"] is not None:
        belongs &= Q(entry__recorded_at__lt=cut["closed_at"])
    return belongs & Q(entry__effective_at__lt=window.ends_at)


def holds(
    *,
    moment: dt.datetime,
    recorded_at: dt.datetime,
    window: Window,
    cut: Mapping[str, dt.datetime | None],
) -> bool:
    """Say whether what belongs to a moment, and was recorded at an instant, is of a window; see `cutoffs`."""
    opened_at, closed_at = cut["opened_at"], cut["closed_at"]
    if moment >= window.ends_at or (closed_at is not None and recorded_at >= closed_at):
        return False
    return moment >= window.starts_at or (opened_at is not None and recorded_at >= opened_at)


def _is_first(at: dt.datetime) -> bool:
    """Say whether a month of UTC begins at an instant."""
    return at.astimezone(dt.UTC) == at.astimezone(dt.UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )


def moment_of_lease(*, ends_at: dt.datetime, closed_at: dt.datetime) -> dt.datetime:
    """Return to which instant the settlement of a lease belongs, as `MOMENT` has it."""
    return min(ends_at, closed_at) - dt.timedelta(microseconds=1)


def closes_at(*, ends_at: dt.datetime) -> dt.datetime:
    """Return when the documents of a month that ends at an instant are issued."""
    return ends_at + dt.timedelta(seconds=settings.MONTH_CLOSE_DELAY_SECONDS)


def filed_at(*, moment: dt.datetime, at: dt.datetime) -> dt.datetime:
    """Return in which month something is filed that is posted at an instant, for a moment before it.

    Its own month while that is open, else the first one that is. Offices are told by this alone: whoever's
    month is closed late does not change what was filed.
    """
    filed = moment
    while at >= closes_at(ends_at=(end := _month_of(filed).ends_at)):
        filed = end
    return filed


def _month_of(at: dt.datetime) -> Window:
    return month_window(month=f"{at.astimezone(dt.UTC):%Y-%m}")


def month_window(*, month: str) -> Window:
    """Return the month of UTC that `YYYY-MM` names.

    :raises ValueError: when it names none.
    """
    starts_at = dt.datetime.strptime(month, "%Y-%m").replace(tzinfo=dt.UTC)
    if f"{starts_at:%Y-%m}" != month:
        raise ValueError(month)
    if starts_at.year == dt.MAXYEAR:
        raise ValueError(month)
    return Window(starts_at, (starts_at + dt.timedelta(days=32)).replace(day=1))
