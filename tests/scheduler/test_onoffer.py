"""Why a GPU is or is not on offer: each reason alone, and the same answer in SQL, in words and in pools."""

import datetime as dt
import itertools
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from agents import inventory, supply
from agents.models import SLOTS_PER_NODE, Alarm, Gpu, Node, Outage
from agents.states import AlarmKind
from marketplace.models import Listing, Organization
from scheduler import onoffer, pools
from scheduler.onoffer import Code
from tests.scheduler.factories import (
    NOW,
    hours,
    make_lease,
    make_listing,
    make_node,
    make_organization,
    make_pool,
    make_quote,
    seconds,
    window_in,
)

pytestmark = pytest.mark.django_db
AT = NOW + seconds(30)
WHEN_IDLE = {"mode": "when_idle", "idle_for_seconds": 600, "rolling_seconds": 86_400}


@pytest.fixture
def owner() -> Organization:
    return make_organization()


def offers(at: dt.datetime = AT) -> list[onoffer.Offer]:
    """Return the offers of all GPUs by slot, after a look whether SQL says the same."""
    rows = onoffer.annotated(gpus=Gpu.objects.select_related("node").order_by("slot"), at=at)
    found = onoffer.read(gpus=rows, at=at)
    for gpu in rows:
        assert vars(gpu)["on_offer"] == found[gpu.pk].on_offer, found[gpu.pk].reasons
    assert supplied(at) == set(inventory.sellable_gpus(at=at).values_list("slot", flat=True))
    return [found[gpu.pk] for gpu in rows]


def supplied(at: dt.datetime) -> set[int]:
    """Return the slots that may be sold, by the reading in bulk."""
    owners = list(Organization.objects.values_list("pk", flat=True))
    has = supply.read(gpu_model_id=None, region=None, organization_ids=owners, at=at)
    reported = {block for machines in has.machines for block in machines.blocks.tolist()}
    return {
        block * SLOTS_PER_NODE + bit
        for model in has.blocks
        for block, mask in zip(has.blocks[model].tolist(), has.masks[model].tolist(), strict=True)
        for bit in range(SLOTS_PER_NODE)
        if mask >> bit & 1 and block in reported
    }


def codes(at: dt.datetime = AT) -> list[Code]:
    """Return what stands against the only GPU."""
    (offer,) = offers(at)
    return [reason.code for reason in offer.reasons]


def words(at: dt.datetime = AT) -> str:
    (offer,) = offers(at)
    return "; ".join(reason.detail for reason in offer.reasons)


class TestReasons:
    def test_are_none_for_a_gpu_that_is_on_offer(self, owner: Organization) -> None:
        make_node(owner=owner, gpus=1)
        make_listing(owner=owner)
        assert codes() == []

    @pytest.mark.parametrize(
        ("changes", "code", "detail"),
        [
            ({"gpu_present": False}, Code.ABSENT, "last inventory"),
            ({"gpu_mig_enabled": True}, Code.MIG_ENABLED, "MIG has cut it"),
            ({"gpu_virtualization_mode": "host_vgpu"}, Code.VGPU_HOST, "vGPU"),
            (
                {"gpu_health": "suspect", "gpu_health_reason": "latched"},
                Code.UNHEALTHY,
                "suspect: latched",
            ),
            ({"gpu_health": "lost"}, Code.UNHEALTHY, "lost"),
            (
                {"gpu_quarantined_by_market": "return_unconfirmed"},
                Code.QUARANTINED_BY_MARKET,
                "return_unconfirmed",
            ),
            ({"status": "draining"}, Code.NODE_DRAINING, "draining"),
            ({"status": "revoked"}, Code.NODE_REVOKED, "revoked"),
            ({"last_report_at": None}, Code.NODE_STALE, "never reported"),
            ({"last_report_at": NOW - hours(2)}, Code.NODE_STALE, "2026-11-23T10:00:00Z"),
            ({"reader_hung_since": NOW}, Code.READER_HUNG, "since 2026-11-23T12:00:00Z"),
        ],
    )
    def test_name_what_stands_against_the_machine_or_the_device(
        self, owner: Organization, changes: dict[str, Any], code: Code, detail: str
    ) -> None:
        make_node(owner=owner, gpus=1, **changes)
        make_listing(owner=owner)
        assert codes() == [code]
        assert detail in words()

    def test_name_a_product_that_the_catalogue_does_not_know(self, owner: Organization) -> None:
        make_node(owner=owner, gpus=1, gpu_gpu_model_id=None, gpu_product_name="NVIDIA X")
        assert codes() == [Code.NOT_IN_CATALOGUE, Code.NOT_LISTED]
        assert "NVIDIA X" in words()

    @override_settings(ALLOW_SIMULATED_HARDWARE=False)
    def test_name_simulated_hardware_where_only_real_gpus_are_sold(
        self, owner: Organization
    ) -> None:
        make_node(owner=owner, gpus=1)
        make_listing(owner=owner)
        assert codes() == [Code.SIMULATED_HARDWARE]

    def test_name_an_alarm_of_the_gpu_or_of_its_node(self, owner: Organization) -> None:
        node = make_node(owner=owner, gpus=2)
        make_listing(owner=owner)
        first = node.gpus.order_by("slot")[0]
        alarm = Alarm.objects.create(
            node=node,
            kind=AlarmKind.GPU_CLAIMED_TWICE,
            gpu_uuid=first.uuid,
            detail="claimed twice",
            raised_at=NOW,
        )
        claimed, other = offers()
        assert [r.code for r in claimed.reasons] == [Code.ALARM]
        assert other.on_offer
        Alarm.objects.filter(pk=alarm.pk).update(gpu_uuid="", kind=AlarmKind.NODE_CLONED)
        assert not any(offer.on_offer for offer in offers())
        Alarm.objects.filter(pk=alarm.pk).update(settled_at=NOW)
        assert all(offer.on_offer for offer in offers())

    def test_name_an_outage_that_no_reading_shows_yet(self, owner: Organization) -> None:
        node = make_node(owner=owner, gpus=2)
        make_listing(owner=owner)
        first = node.gpus.order_by("slot")[0]
        outage = Outage.objects.create(
            gpu=first, health="lost", cause="host", reason="fell off the bus", starts_at=NOW
        )
        lost, other = offers()
        assert [(r.code, r.detail) for r in lost.reasons] == [
            (Code.OUTAGE, "lost: fell off the bus")
        ]
        assert other.on_offer
        Outage.objects.filter(pk=outage.pk).update(ends_at=NOW)
        assert all(offer.on_offer for offer in offers())

    @pytest.mark.parametrize(
        "changes",
        [
            {"status": "draft"},
            {"status": "retired"},
            {"region": "us-east"},
            {"fabric": "ib-2"},
            {"labels": {"rack": "a2"}},
            {"starts_at": NOW + hours(1)},
            {"ends_at": NOW},
            {"gpu_model_id": "l40s-48gb"},
            {"currency": "eur"},
        ],
        ids=str,
    )
    def test_name_that_no_listing_selects_it(
        self, owner: Organization, changes: dict[str, Any]
    ) -> None:
        make_node(owner=owner, gpus=1)
        make_listing(owner=owner, **changes)
        make_listing(owner=make_organization())  # another owner's
        assert codes() == [Code.NOT_LISTED]

    def test_name_the_listings_that_are_paused(self, owner: Organization) -> None:
        make_node(owner=owner, gpus=1)
        make_listing(owner=owner, status="paused", name="Night shift")
        assert codes() == [Code.LISTING_PAUSED]
        assert words() == "paused: Night shift"

    def test_do_not_speak_of_idleness_when_a_listing_sells_always(
        self, owner: Organization
    ) -> None:
        make_node(owner=owner, gpus=1, gpu_idle_state="busy", gpu_idle_since=None)
        make_listing(owner=owner, **WHEN_IDLE)
        make_listing(owner=owner)
        assert codes() == []

    @pytest.mark.parametrize(
        ("state", "code"),
        [
            ("unknown", Code.IDLENESS_UNKNOWN),
            ("busy", Code.BUSY),
            ("parked", Code.PARKED),
            ("free", Code.OWNER_SCHEDULER),
        ],
    )
    def test_repeat_the_agents_words_for_a_gpu_that_is_not_offerable(
        self, owner: Organization, state: str, code: Code
    ) -> None:
        make_node(owner=owner, gpus=1, gpu_idle_state=state, gpu_idle_reason="so it says")
        make_listing(owner=owner, **WHEN_IDLE)
        assert (codes(), words()) == ([code], "so it says")
        Gpu.objects.update(idle_reason="")  # an agent of the first protocol has no words
        assert codes() == [code]
        assert words()

    def test_name_how_long_the_most_patient_listing_still_waits(self, owner: Organization) -> None:
        make_node(owner=owner, gpus=1, gpu_idle_since=AT - seconds(599))
        make_listing(owner=owner, **WHEN_IDLE)
        make_listing(owner=owner, **{**WHEN_IDLE, "idle_for_seconds": 3600})
        assert (codes(), words()) == ([Code.NOT_IDLE_LONG_ENOUGH], "idle for 599 of 600 s")
        assert codes(AT + seconds(1)) == []

    def test_name_when_a_gpu_that_comes_and_goes_is_offered_again(
        self, owner: Organization
    ) -> None:
        make_node(
            owner=owner,
            gpus=1,
            gpu_withdrawals=2,
            gpu_withdrawn_on=NOW.date(),
            gpu_offered_again_at=AT + seconds(5),
        )
        make_listing(owner=owner, **WHEN_IDLE)
        assert codes() == [Code.COOLING_DOWN]
        assert words().startswith(
            "withdrawn 2 times on 2026-11-23: offered again 2026-11-23T12:00:35Z"
        )
        assert codes(AT + seconds(5)) == []

    def test_name_a_lease_and_do_not_call_its_work_the_owners(self, owner: Organization) -> None:
        make_pool(gpus=1)
        lease = make_lease(window=window_in(0, length=2), gpus=1)
        Gpu.objects.update(idle_state="busy", idle_since=None, idle_reason="a lease has it")
        Listing.objects.update(**WHEN_IDLE)
        assert lease.gpu_uuids
        assert codes() == [Code.LEASED]

    def test_name_a_promise_for_this_hour_but_not_one_for_later(self) -> None:
        make_pool(gpus=2)
        make_quote(window=window_in(0), gpus=1, hold=True)
        make_quote(window=window_in(5), gpus=2, hold=True)
        first, second = sorted(offers(), key=lambda offer: offer.on_offer)
        assert [reason.code for reason in first.reasons] == [Code.BOOKED]
        assert second.on_offer


class TestRead:
    def test_asks_no_query_per_gpu(self, owner: Organization) -> None:
        make_listing(owner=owner)
        counts = []
        for _ in range(2):
            for _ in range(3):
                make_node(owner=owner, gpus=4)
            with CaptureQueriesContext(connection) as queries:
                onoffer.read(gpus=Gpu.objects.select_related("node"), at=AT)
            counts.append(len(queries))
        assert counts[0] == counts[1] == 6

    def test_agrees_with_sql_and_with_what_search_sells(self, owner: Organization) -> None:
        """Every mixture of states, healths, listings and waits: three answers to one question."""
        states = ["offerable", "free", "busy", "unknown"]
        sinces = [None, AT - seconds(599), AT - seconds(600)]
        agains = [None, AT, AT + seconds(1)]
        modes: list[dict[str, Any]] = [WHEN_IDLE, {"mode": "always"}]
        mixtures = itertools.product(states, sinces, agains, ["healthy", "suspect"], modes)
        for number, (state, since, again, health, mode) in enumerate(mixtures):
            label = {"rack": f"r{number}"}
            make_node(
                owner=owner,
                gpus=1,
                labels=label,
                gpu_idle_state=state,
                gpu_idle_since=since,
                gpu_offered_again_at=again,
                gpu_health=health,
            )
            make_listing(owner=owner, labels=label, **mode)
        found = offers()
        sold = {
            gpu.slot
            for pool in pools.read(gpu_model_id=None, region=None, tier=None, at=AT)
            for gpu in pool.gpus
        }
        slots = Gpu.objects.order_by("slot").values_list("slot", flat=True)
        assert {slot for slot, offer in zip(slots, found, strict=True) if offer.on_offer} == sold
        assert 0 < len(sold) < Node.objects.count()
