"""Every invariant of the capacity, over what is stored: a second opinion beside the constraints.

Each check is a query for breaches; a sound market returns no row from any. They trust neither the constraint
nor the verbs. The index of the calendar is compared with the allocations in memory.
"""

import datetime as dt
from dataclasses import dataclass

from django.db import connection, transaction

from agents.models import SLOTS_PER_NODE
from marketplace.core.windows import format_instant
from scheduler import reindexing
from scheduler.leases import HANDOVER_DEADLINE_SECONDS, RETURN_GRACE_SECONDS
from scheduler.replacements import PATIENCE_SECONDS

# What is due is done within seconds. Ten minutes cover a restart of everything.
OVERDUE_SECONDS = 600
# A GPU that failed is replaced or its tenant released within this time; after it nothing may be sold on it.
UNHEALTHY_SECONDS_MAX = PATIENCE_SECONDS + OVERDUE_SECONDS
# Turn-rounds that are over are dropped when the calendar is pruned, nightly: twice may fail.
FORGOTTEN_SECONDS_MAX = 3 * 86_400
BREACHES_SHOWN_MAX = 5  # enough to begin the search with; the count says how many there are
GUARDS = ("calendar_mark_added", "calendar_mark_changed", "calendar_mark_removed")


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant and whether it holds; `detail` says what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """All invariants at one instant, of one snapshot of the database."""

    at: dt.datetime
    ok: bool
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Invariant:
    """A sentence that must hold, and the query that returns one line of text per breach."""

    name: str
    sentence: str
    breaches: str


INVARIANTS = (
    Invariant(
        "guards_stand",
        "The exclusion constraint and the triggers of the index are in place.",
        """
        SELECT 'allocation_no_overlap is missing' WHERE NOT EXISTS (
            SELECT FROM pg_constraint
            WHERE conname = 'allocation_no_overlap' AND contype = 'x' AND convalidated)
        UNION ALL
        SELECT name || ' is missing or disabled' FROM unnest(%(guards)s::text[]) AS guard (name)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgname = guard.name AND tgenabled <> 'D')
        """,
    ),
    Invariant(
        "gpus_are_promised_once",
        "No GPU is in two live allocations of one instant, nor in one while it turns round after another.",
        """
        SELECT 'slot ' || slot || ' is promised twice at ' || starts_at FROM (
            SELECT slot, starts_at,
                lag(free_at) OVER (PARTITION BY slot ORDER BY starts_at) AS before
            FROM (
                SELECT slots, lower(period) AS starts_at, CASE WHEN live
                    THEN upper(period) + make_interval(secs => turnaround_seconds)
                    ELSE free_at END AS free_at
                FROM scheduler_allocation WHERE live OR free_at IS NOT NULL
            ) AS held
            CROSS JOIN LATERAL generate_series(lower(slots), upper(slots) - 1) AS slot
        ) AS place WHERE before > starts_at
        """,
    ),
    Invariant(
        "allocations_lie_on_their_nodes",
        "Every live allocation is of GPUs that its node has.",
        """
        SELECT 'allocation ' || a.id || ' has slot ' || place.slot || ', no GPU of ' || a.node_id
        FROM scheduler_allocation a
        CROSS JOIN LATERAL generate_series(lower(a.slots), upper(a.slots) - 1) AS place (slot)
        LEFT JOIN agents_gpu g ON g.slot = place.slot AND g.node_id = a.node_id
        WHERE a.live AND g.id IS NULL
        """,
    ),
    Invariant(
        "promises_have_their_gpus",
        "Every promise that is to be kept has all its GPUs, and no other has any.",
        """
        SELECT promise.id || ' is ' || promise.status || ' and has ' || coalesce(held.gpus, 0)
            || ' of ' || promise.gpus || ' GPUs'
        FROM scheduler_reservation promise
        LEFT JOIN (
            SELECT reservation_id, sum(upper(slots) - lower(slots)) AS gpus
            FROM scheduler_allocation WHERE live GROUP BY 1
        ) AS held ON held.reservation_id = promise.id
        WHERE CASE
            WHEN promise.status IN ('payment_pending', 'scheduled')
                THEN coalesce(held.gpus, 0) <> promise.gpus
            WHEN promise.status = 'active' THEN coalesce(held.gpus, 0) > promise.gpus
            ELSE held.gpus > 0 END
        UNION ALL
        SELECT q.id || ' is ' || q.status || ' and holds ' || coalesce(held.gpus, 0)
            || ' of ' || q.gpus || ' GPUs'
        FROM scheduler_quote q
        LEFT JOIN (
            SELECT quote_id, sum(upper(slots) - lower(slots)) AS gpus
            FROM scheduler_allocation WHERE live AND quote_id IS NOT NULL GROUP BY 1
        ) AS held ON held.quote_id = q.id
        WHERE (q.status = 'open' AND q.hold AND coalesce(held.gpus, 0) <> q.gpus)
           OR (q.status <> 'open' AND held.gpus > 0)
        """,
    ),
    Invariant(
        "kept_hours_are_held",
        "Behind a promise that has not begun, and beside it, nothing is kept but what waits to be paid for.",
        """
        SELECT 'allocation ' || a.id || ' of ' || r.id || ' reaches to ' || upper(a.period)
            || ', its window to ' || r.ends_at
        FROM scheduler_allocation a JOIN scheduler_reservation r ON r.id = a.reservation_id
        LEFT JOIN scheduler_extensionhold h ON h.reservation_id = r.id
            AND h.dropped_at IS NULL AND h.made_at IS NULL
        LEFT JOIN scheduler_changequote q ON q.id = h.quote_id AND h.kept_id IS NULL
        WHERE a.live AND r.status IN ('payment_pending', 'scheduled')
            AND upper(a.period) <> coalesce(q.ends_at, r.ends_at)
        UNION ALL
        SELECT 'quote ' || q.id || ' is ' || q.status || ' and holds a window for ' || h.id
            || ', which was ' || CASE WHEN h.made_at IS NULL THEN 'dropped' ELSE 'made' END
        FROM scheduler_extensionhold h JOIN scheduler_quote q ON q.id = h.kept_id
        WHERE q.status = 'open' AND (h.made_at IS NOT NULL OR h.dropped_at IS NOT NULL)
        """,
    ),
    Invariant(
        "sold_is_healthy",
        "Nothing is in use on a GPU that has long failed, and no more is sold than there are GPUs.",
        """
        SELECT 'GPU ' || g.id || ' failed at ' || o.starts_at || ' and ' || l.id || ' still runs on it'
        FROM agents_outage o JOIN agents_gpu g ON g.id = o.gpu_id
        JOIN scheduler_lease l ON l.node_id = g.node_id AND g.uuid = ANY(l.gpu_uuids)
        WHERE o.ends_at IS NULL AND o.starts_at < %(unhealthy_since)s
          AND l.status IN ('provisioning', 'active') AND l.created_at < o.starts_at
        UNION ALL
        SELECT node.id || ' has ' || sold.gpus || ' GPUs in use, and ' || count(g.id)
            FILTER (WHERE g.present) || ' in its inventory'
        FROM (
            SELECT node_id, sum(cardinality(gpu_uuids)) AS gpus FROM scheduler_lease
            WHERE status IN ('provisioning', 'active') AND starts_at <= %(at)s GROUP BY 1
        ) AS sold
        JOIN agents_node node ON node.id = sold.node_id
        LEFT JOIN agents_gpu g ON g.node_id = node.id
        WHERE node.last_report_at >= %(unhealthy_since)s
        GROUP BY node.id, sold.gpus HAVING sold.gpus > count(g.id) FILTER (WHERE
            g.present OR EXISTS (
                SELECT FROM agents_outage o
                WHERE o.gpu_id = g.id AND o.starts_at >= %(unhealthy_since)s))
        """,
    ),
    Invariant(
        "nothing_is_late",
        "No quote, reservation or lease is in a state for longer than its limit.",
        """
        SELECT 'quote ' || id || ' should have expired at ' || expires_at FROM scheduler_quote
        WHERE status = 'open' AND expires_at < %(overdue_since)s
        UNION ALL
        SELECT id || ' should have been paid by ' || payment_due_at FROM scheduler_reservation
        WHERE status = 'payment_pending' AND payment_due_at < %(overdue_since)s
        UNION ALL
        SELECT id || ' should have been paid by ' || held_until FROM scheduler_extensionhold
        WHERE dropped_at IS NULL AND made_at IS NULL AND held_until < %(overdue_since)s
        UNION ALL
        SELECT id || ' should have started at ' || starts_at FROM scheduler_reservation
        WHERE status = 'scheduled' AND starts_at < %(overdue_since)s
        UNION ALL
        SELECT id || ' should have ended at ' || ends_at FROM scheduler_reservation
        WHERE status = 'active'
          AND ends_at < %(overdue_since)s - make_interval(secs => %(grace)s + %(patience)s)
        UNION ALL
        SELECT id || ' should have been handed over since ' || greatest(starts_at, created_at)
        FROM scheduler_lease WHERE status = 'provisioning'
          AND greatest(starts_at, created_at)
              < %(overdue_since)s - make_interval(secs => %(handover)s)
        UNION ALL
        SELECT id || ' should have been asked back at ' || ends_at FROM scheduler_lease
        WHERE status IN ('active', 'reclaiming')
          AND ends_at < %(overdue_since)s - make_interval(secs => %(grace)s)
        UNION ALL
        SELECT l.id || ' has been returning since ' || max(t.at)
        FROM scheduler_lease l JOIN scheduler_leasetransition t ON t.lease_id = l.id
        WHERE l.status = 'returning' AND t.to_status = 'returning'
        GROUP BY l.id HAVING max(t.at) < %(overdue_since)s - make_interval(secs => %(grace)s)
        UNION ALL
        SELECT lease_id || ' should have been sought a replacement at ' || due_at
        FROM scheduler_replacement WHERE closed_at IS NULL AND due_at < %(overdue_since)s
        UNION ALL
        SELECT r.lease_id || ' should have been taken back by its owner at ' || r.due_at
        FROM scheduler_reclaim r JOIN scheduler_lease l ON l.id = r.lease_id
        WHERE r.stopped_at IS NULL AND r.due_at < %(overdue_since)s
          AND l.status IN ('active', 'reclaiming')
        UNION ALL
        SELECT 'the turn-round of allocation ' || id || ' should be forgotten since ' || free_at
        FROM scheduler_allocation WHERE free_at < %(forgotten_since)s
        """,
    ),
    Invariant(
        "released_places_weigh_what_changes_say",
        "What a change left for a fee is worth, by the lots that it had, what its owners share the fee by.",
        """
        SELECT c.id || ' left ' || coalesce(w.left_worth::text, 'nothing') || ' of an owner, whose weight is '
            || coalesce(w.weight, 'none')
        FROM scheduler_change c
        CROSS JOIN LATERAL (
            SELECT o.worth AS left_worth, said.value AS weight
            FROM jsonb_each_text(c.given_back_by_owner) said FULL JOIN (
                SELECT n.organization_id AS owner, sum((upper(p.slots) - lower(p.slots))
                    * (priced ->> 2)::numeric * greatest(0,
                        least((priced ->> 1)::bigint, floor(extract(epoch FROM upper(p.period))))
                        - greatest((priced ->> 0)::bigint, floor(extract(epoch FROM lower(p.period))))
                    )) AS worth
                FROM scheduler_releasedplace p JOIN agents_node n ON n.id = p.node_id
                CROSS JOIN LATERAL jsonb_array_elements(c.from_lots -> p.lot::int -> 'tariff') priced
                WHERE p.change_id = c.id GROUP BY n.organization_id
            ) o ON o.owner = said.key
        ) w
        WHERE c.from_lots <> '[]' AND w.left_worth IS DISTINCT FROM w.weight::numeric
        """,
    ),
)


def check(*, at: dt.datetime) -> CapacityReport:
    """Check every invariant on one snapshot of the database."""
    parameters: dict[str, dt.datetime | list[str] | int] = {
        "at": at,
        "guards": list(GUARDS),
        "overdue_since": at - dt.timedelta(seconds=OVERDUE_SECONDS),
        "unhealthy_since": at - dt.timedelta(seconds=UNHEALTHY_SECONDS_MAX),
        "forgotten_since": at - dt.timedelta(seconds=FORGOTTEN_SECONDS_MAX),
        "grace": RETURN_GRACE_SECONDS,
        "handover": HANDOVER_DEADLINE_SECONDS,
        "patience": PATIENCE_SECONDS,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        if not connection.savepoint_ids:
            # Between two statements of READ COMMITTED a booking may commit; of one snapshot it cannot.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        checks = []
        for invariant in INVARIANTS:
            cursor.execute(
                f"SELECT count(*) OVER (), breach FROM ({invariant.breaches}) AS found (breach)"  # noqa: S608
                f" LIMIT {BREACHES_SHOWN_MAX}",
                parameters,
            )
            rows = cursor.fetchall()
            checks.append(
                _judge(
                    name=invariant.name,
                    sentence=invariant.sentence,
                    breaches=[text for _, text in rows],
                    count=rows[0][0] if rows else 0,
                )
            )
        checks.append(_check_index(at=at))
    return CapacityReport(at=at, ok=all(each.ok for each in checks), checks=checks)


def _check_index(*, at: dt.datetime) -> Check:
    found = reindexing.compare(at=at, limit=BREACHES_SHOWN_MAX)
    return _judge(
        name="index_equals_its_source",
        sentence="The calendar's index says what the allocations say.",
        breaches=[
            f"slots from {each.block * SLOTS_PER_NODE} at {format_instant(each.hour)}:"
            f" indexed {each.indexed:016b}, allocated {each.allocated:016b}"
            for each in found
        ],
        count=len(found),
    )


def _judge(*, name: str, sentence: str, breaches: list[str], count: int) -> Check:
    if not breaches:
        return Check(name, ok=True, detail=sentence)
    rest = f"; and {count - len(breaches)} more" if count > len(breaches) else ""
    return Check(name, ok=False, detail="; ".join(breaches) + rest)
