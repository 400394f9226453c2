"""Every rule by which a GPU becomes suspect, quarantined or lost, and how each of that ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agents.node import health
from agents.node.health import BlamedXid, HealthTrack
from agents.node.reader import Sample, Xid, lost_sample
from agents.protocol import (
    Cause,
    EventSource,
    GpuCounters,
    Health,
    HealthPolicy,
    Verdict,
    decode,
    encode,
    policy_problems,
)
from agents.protocol.policy import IdlePolicy, NodePolicy

START = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
UUID = "GPU-1"
CLEAN = GpuCounters(
    gpu_uuid=UUID,
    ecc_enabled=True,
    ecc_pending=True,
    ecc_uncorrected=0,
    sram_ecc_uncorrected_aggregate=0,
    nvlinks_active=18,
    nvlinks_inactive=0,
    pcie_width=16,
    pcie_width_max=16,
    recovery_action=0,
    fabric_state=3,
    fabric_status=0,
)
BUSY = 90
DAY = dt.timedelta(days=1)


def after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def xid(
    code: int, *, at: dt.datetime = START, cause: Cause | None = None, lease: str | None = None
) -> BlamedXid:
    told = Xid(gpu_uuid=UUID, xid=code, at=at, source=EventSource.KERNEL_LOG)
    return BlamedXid(xid=told, cause=cause or Cause.HARDWARE, lease_id=lease)


def tenant_xid(lease: str = "lease-1", *, at: dt.datetime = START, code: int = 31) -> BlamedXid:
    return xid(code, at=at, cause=Cause.TENANT, lease=lease)


def look(
    track: HealthTrack | None = None,
    *,
    at: dt.datetime = START,
    counters: GpuCounters | None = None,
    xids: Sequence[BlamedXid] = (),
    policy: HealthPolicy | None = None,
    lost: bool = False,
    gone: bool = False,
    **sample: Any,
) -> HealthTrack:
    values: dict[str, Any] = {"gpu_uuid": UUID, "measured_at": at, "utilization_percent": 0}
    seen: Sample | None = Sample(**{**values, **sample})
    if lost:
        seen = lost_sample(gpu_uuid=UUID, measured_at=at)
    return health.step(
        track=track or HealthTrack(boot_id="boot-1"),
        sample=None if gone else seen,
        counters=counters,
        xids=xids,
        policy=policy or HealthPolicy(),
        at=at,
    )


COUNTER_RULES = [
    ({"ecc_uncorrected": 1}, {}, Health.QUARANTINED, "uncorrectable memory"),
    ({"sram_ecc_uncorrected_aggregate": 2}, {}, Health.QUARANTINED, "on-chip"),
    ({"dram_ecc_corrected_aggregate": 20_000_000}, {}, Health.HEALTHY, ""),
    ({"dram_ecc_corrected_aggregate": 20_000_001}, {}, Health.SUSPECT, "corrected errors"),
    ({"row_remap_pending": True}, {}, Health.SUSPECT, "waits for a reset"),
    ({"row_remap_failed": True}, {}, Health.QUARANTINED, "could not be remapped"),
    ({"remapped_rows_uncorrected": 512}, {}, Health.HEALTHY, ""),
    ({"remapped_rows_uncorrected": 513}, {}, Health.QUARANTINED, "513 remapped"),
    ({"nvlinks_active": 17, "nvlinks_inactive": 1}, {}, Health.SUSPECT, "17 of 18 NVLinks"),
    ({"nvlinks_active": 0, "nvlinks_inactive": 18}, {}, Health.HEALTHY, ""),  # no bridge at all
    ({"fabric_state": 3, "fabric_status": 5}, {}, Health.SUSPECT, "fabric"),
    ({"fabric_state": 1}, {}, Health.HEALTHY, ""),  # never was in one
    ({"ecc_enabled": True, "ecc_pending": False}, {}, Health.SUSPECT, "switched off"),
    ({"pcie_width": 8}, {"utilization_percent": BUSY}, Health.SUSPECT, "8 of 16 lanes"),
    ({"pcie_width": 8}, {"utilization_percent": 0}, Health.HEALTHY, ""),  # the link sleeps
    ({"pcie_width": 8}, {"utilization_percent": None}, Health.HEALTHY, ""),
    ({"pcie_generation": 1, "pcie_generation_max": 5}, {"utilization_percent": BUSY}, Health.HEALTHY, ""),
    ({"recovery_action": 1}, {}, Health.QUARANTINED, "a reset of the GPU"),
    ({"recovery_action": 2}, {}, Health.QUARANTINED, "a reboot"),
    ({"recovery_action": 40}, {}, Health.HEALTHY, ""),  # no policy speaks of it
]  # fmt: skip


class TestCounters:
    @pytest.mark.parametrize(("counted", "sample", "outcome", "words"), COUNTER_RULES)
    def test_make_a_gpu_what_the_policy_says(
        self, counted: dict[str, Any], sample: dict[str, Any], outcome: Health, words: str
    ) -> None:
        track = look(counters=replace(CLEAN, **counted), **sample)
        assert track.health is outcome
        assert words in track.reason
        assert bool(track.reason) is (outcome is not Health.HEALTHY)

    @pytest.mark.parametrize(
        ("rule", "counted"),
        [
            ("ecc_uncorrected", {"ecc_uncorrected": 1}),
            ("sram_uncorrected", {"sram_ecc_uncorrected_aggregate": 1}),
            ("dram_corrected", {"dram_ecc_corrected_aggregate": 10**9}),
            ("row_remap_pending", {"row_remap_pending": True}),
            ("row_remap_failed", {"row_remap_failed": True}),
            ("remapped_rows", {"remapped_rows_uncorrected": 600}),
            ("nvlink_inactive", {"nvlinks_inactive": 2}),
            ("fabric_incomplete", {"fabric_status": 1}),
            ("ecc_mode_pending", {"ecc_pending": False}),
            ("pcie_width_reduced", {"pcie_width": 1}),
        ],
    )
    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_are_judged_by_the_owners_verdict(
        self, rule: str, counted: dict[str, Any], verdict: Verdict
    ) -> None:
        changes: dict[str, Any] = {rule: verdict}
        policy = replace(HealthPolicy(), **changes)
        track = look(counters=replace(CLEAN, **counted), policy=policy, utilization_percent=BUSY)
        expected = {
            Verdict.IGNORE: Health.HEALTHY,
            Verdict.SUSPECT: Health.SUSPECT,
            Verdict.QUARANTINE: Health.QUARANTINED,
        }
        assert track.health is expected[verdict]

    def test_that_nobody_could_read_say_nothing(self) -> None:
        unknown = GpuCounters(gpu_uuid=UUID, unread={"ecc_uncorrected": "not_supported"})
        assert look(counters=unknown, utilization_percent=BUSY).health is Health.HEALTHY

    def test_the_drivers_own_verdict_comes_first_in_the_reason(self) -> None:
        track = look(counters=replace(CLEAN, recovery_action=2, ecc_uncorrected=1))
        assert track.reason.startswith("the driver asks for a reboot")
        assert "uncorrectable" in track.reason

    def test_the_gravest_reason_comes_before_a_lighter_one(self) -> None:
        track = look(counters=replace(CLEAN, row_remap_pending=True, row_remap_failed=True))
        assert track.reason.index("could not be remapped") < track.reason.index("waits for")

    def test_a_link_that_was_up_once_is_missed(self) -> None:
        track = look(counters=CLEAN)
        track = look(track, at=after(60), counters=replace(CLEAN, nvlinks_active=0))
        assert (track.health, track.reason) == (Health.SUSPECT, "0 of 18 NVLinks are up")

    def test_a_fabric_that_was_complete_once_is_missed(self) -> None:
        track = look(counters=CLEAN)
        track = look(track, at=after(60), counters=replace(CLEAN, fabric_state=1))
        assert track.health is Health.SUSPECT

    def test_a_recovery_that_the_driver_wants_after_a_tenants_error_is_the_tenants(self) -> None:
        track = look(xids=[tenant_xid()])
        track = look(track, at=after(60), counters=replace(CLEAN, recovery_action=1))
        assert (track.health, track.cause) == (Health.QUARANTINED, Cause.TENANT)
        track = look(track, at=after(900), counters=replace(CLEAN, recovery_action=1))
        assert track.cause is Cause.TENANT, "it stays what it was when the errors are long past"

    def test_a_recovery_that_the_driver_wants_out_of_the_blue_is_nobodys(self) -> None:
        track = look(counters=replace(CLEAN, recovery_action=1))
        assert (track.health, track.cause) == (Health.QUARANTINED, Cause.UNKNOWN)


class TestXids:
    @pytest.mark.parametrize(
        ("code", "outcome"),
        [
            (79, Health.QUARANTINED), (48, Health.QUARANTINED), (109, Health.QUARANTINED),
            (119, Health.QUARANTINED), (64, Health.QUARANTINED), (63, Health.HEALTHY),
            (154, Health.HEALTHY), (92, Health.HEALTHY), (9_000, Health.HEALTHY),
        ],
    )  # fmt: skip
    def test_make_a_gpu_what_the_catalogue_says(self, code: int, outcome: Health) -> None:
        assert look(xids=[xid(code)]).health is outcome

    @pytest.mark.parametrize(
        ("rule", "outcome"),
        [
            ("suspect", Health.SUSPECT),
            ("quarantine", Health.QUARANTINED),
            ("watch", Health.HEALTHY),
        ],
    )
    def test_are_judged_by_the_owners_table(self, rule: str, outcome: Health) -> None:
        policy = HealthPolicy(xid_rules={"63": rule})
        track = look(xids=[xid(63)], policy=policy)
        assert (track.health, "Xid 63" in track.reason) == (outcome, outcome is not Health.HEALTHY)

    def test_a_tenants_error_alone_says_nothing_about_the_gpu(self) -> None:
        track = look(xids=[tenant_xid(), tenant_xid(at=after(1)), tenant_xid(at=after(2))])
        assert track.health is Health.HEALTHY

    def test_the_same_under_three_leases_makes_the_gpu_itself_suspect(self) -> None:
        track = look(xids=[tenant_xid("a")])
        track = look(track, at=START + DAY, xids=[tenant_xid("b", at=START + DAY)])
        assert track.health is Health.HEALTHY
        track = look(track, at=START + 2 * DAY, xids=[tenant_xid("c", at=START + 2 * DAY)])
        assert (track.health, track.cause) == (Health.SUSPECT, Cause.HARDWARE)
        assert track.reason == "application errors under 3 different leases"

    def test_leases_of_long_ago_do_not_count(self) -> None:
        track = look(xids=[tenant_xid("a"), tenant_xid("b")])
        at = START + 31 * DAY
        assert look(track, at=at, xids=[tenant_xid("c", at=at)]).health is Health.HEALTHY

    def test_an_application_error_of_the_owners_own_program_counts_for_nothing(self) -> None:
        foreign = [xid(31, cause=Cause.UNKNOWN, at=after(n)) for n in range(5)]
        assert look(xids=foreign).health is Health.HEALTHY


class TestSamples:
    def test_a_value_that_failed_makes_suspect_and_one_that_does_not_exist_says_nothing(
        self,
    ) -> None:
        assert look(unread={"energy_millijoules": "not_supported"}).health is Health.HEALTHY
        track = look(unread={"power_draw_milliwatts": "error(999)"})
        assert (track.health, track.cause) == (Health.SUSPECT, Cause.UNKNOWN)
        assert "power_draw_milliwatts: error(999)" in track.reason

    @pytest.mark.parametrize(
        ("bits", "slowed"), [(0x8, True), (0x40, True), (0x80, True), (0x4, False), (0x1, False)]
    )
    def test_a_hardware_slowdown_counts_and_a_power_cap_does_not(
        self, *, bits: int, slowed: bool
    ) -> None:
        track: HealthTrack | None = None
        for number in range(20):
            track = look(track, at=after(15 * number), clocks_event_reasons=bits)
        assert track is not None
        assert (track.health is Health.SUSPECT) is slowed

    def test_a_slowdown_now_and_then_is_no_defect(self) -> None:
        track: HealthTrack | None = None
        for number in range(200):
            bits = 0x8 if number % 20 == 0 else 0
            track = look(track, at=after(15 * number), clocks_event_reasons=bits)
            assert track.health is Health.HEALTHY

    def test_a_few_looks_do_not_make_a_share(self) -> None:
        track: HealthTrack | None = None
        for number in range(9):
            track = look(track, at=after(15 * number), clocks_event_reasons=0x8)
            assert track.health is Health.HEALTHY


class TestSuspicion:
    def test_ends_when_nothing_renewed_it_for_long_enough(self) -> None:
        track = look(unread={"power_draw_milliwatts": "error(1)"})
        assert look(track, at=after(599)).health is Health.SUSPECT
        assert look(track, at=after(600)).health is Health.HEALTHY

    def test_is_renewed_by_each_new_reason(self) -> None:
        track = look(unread={"power_draw_milliwatts": "error(1)"})
        track = look(track, at=after(500), unread={"power_draw_milliwatts": "error(1)"})
        assert look(track, at=after(1_000)).health is Health.SUSPECT
        assert look(track, at=after(1_100)).health is Health.HEALTHY


class TestQuarantine:
    def test_does_not_end_by_time_or_by_clean_counters_alone(self) -> None:
        track = look(xids=[xid(119)])
        for day in range(1, 10):
            track = look(track, at=START + day * DAY, counters=CLEAN)
        assert track.health is Health.QUARANTINED

    def test_ends_after_a_reboot_with_clean_counters(self) -> None:
        track = look(xids=[xid(119)], counters=CLEAN)
        track = health.begin(track=track, boot_id="boot-2", at=after(300))
        track = look(track, at=after(315))
        assert track.health is Health.QUARANTINED, "nobody has looked at the counters yet"
        assert look(track, at=after(330), counters=CLEAN).health is Health.HEALTHY

    def test_goes_on_after_a_reboot_that_cured_nothing(self) -> None:
        track = look(xids=[xid(119)])
        track = health.begin(track=track, boot_id="boot-2", at=after(300))
        bad = replace(CLEAN, row_remap_failed=True)
        assert look(track, at=after(330), counters=bad).health is Health.QUARANTINED

    def test_goes_on_while_the_counters_cannot_be_read(self) -> None:
        track = look(xids=[xid(119)])
        track = health.begin(track=track, boot_id="boot-2", at=after(300))
        blind = GpuCounters(gpu_uuid=UUID, unread={"ecc_uncorrected": "error(999)"})
        assert look(track, at=after(330), counters=blind).health is Health.QUARANTINED

    def test_goes_on_over_a_restart_of_the_agent_in_the_same_boot(self) -> None:
        track = decode(HealthTrack, encode(look(xids=[xid(119)])))
        track = health.begin(track=track, boot_id="boot-1", at=after(60))
        assert look(track, at=after(75), counters=CLEAN).health is Health.QUARANTINED

    def test_ends_after_the_driver_was_loaded_anew(self) -> None:
        track = look(xids=[xid(119)], energy_millijoules=10**9)
        track = look(track, at=after(60), energy_millijoules=500, counters=CLEAN)
        assert track.health is Health.HEALTHY

    def test_the_second_within_a_week_ends_by_the_owners_word_alone(self) -> None:
        track = look(xids=[xid(119)])
        track = health.begin(track=track, boot_id="boot-2", at=START + DAY)
        track = look(track, at=START + DAY, counters=CLEAN)
        assert track.health is Health.HEALTHY
        again = START + 2 * DAY
        track = look(track, at=again, xids=[xid(95, at=again)])
        assert "the second quarantine within 7 days" in track.reason
        track = health.begin(track=track, boot_id="boot-3", at=START + 3 * DAY)
        track = look(track, at=START + 3 * DAY, counters=CLEAN)
        assert track.health is Health.QUARANTINED
        track = health.vouch(track=track, vouched_at=START + 4 * DAY)
        assert look(track, at=START + 4 * DAY, counters=CLEAN).health is Health.HEALTHY

    def test_several_xids_of_one_incident_are_one(self) -> None:
        track = look(xids=[xid(48), xid(64, at=after(2)), xid(95, at=after(3))])
        track = health.begin(track=track, boot_id="boot-2", at=START + DAY)
        assert look(track, at=START + DAY, counters=CLEAN).health is Health.HEALTHY

    def test_a_second_one_after_more_than_a_week_is_a_first_one(self) -> None:
        track = look(xids=[xid(119)])
        track = health.begin(track=track, boot_id="boot-2", at=START + DAY)
        track = look(track, at=START + DAY, counters=CLEAN)
        later = START + 8 * DAY
        track = look(track, at=later, xids=[xid(119, at=later)])
        track = health.begin(track=track, boot_id="boot-3", at=START + 9 * DAY)
        assert look(track, at=START + 9 * DAY, counters=CLEAN).health is Health.HEALTHY


class TestVouching:
    def test_forgives_counts_as_they_stand_and_not_what_comes_later(self) -> None:
        bad = replace(CLEAN, ecc_uncorrected=5, sram_ecc_uncorrected_aggregate=1)
        track = health.vouch(track=look(counters=bad), vouched_at=after(10))
        track = look(track, at=after(60), counters=bad)
        assert track.health is Health.HEALTHY
        worse = replace(bad, ecc_uncorrected=6)
        track = look(track, at=after(120), counters=worse)
        assert track.reason == "1 uncorrectable memory errors"

    def test_before_the_first_look_at_the_counters_forgives_that_look(self) -> None:
        track = health.vouch(track=look(xids=[xid(48)]), vouched_at=after(10))
        track = look(track, at=after(60), counters=replace(CLEAN, ecc_uncorrected=5))
        assert track.health is Health.HEALTHY

    def test_does_not_forgive_what_the_driver_still_asks_for(self) -> None:
        bad = replace(CLEAN, recovery_action=1)
        track = health.vouch(track=look(counters=bad), vouched_at=after(10))
        assert look(track, at=after(60), counters=bad).health is Health.QUARANTINED

    def test_repeated_by_every_answer_forgives_nothing_new(self) -> None:
        track = health.vouch(track=look(), vouched_at=after(10))
        track = look(track, at=after(20), xids=[xid(119, at=after(20))])
        assert health.vouch(track=track, vouched_at=after(10)) == track

    def test_does_not_forgive_an_xid_that_came_later(self) -> None:
        track = look(at=after(20), xids=[xid(119, at=after(20))])
        assert health.vouch(track=track, vouched_at=after(10)).health is Health.QUARANTINED

    def test_lets_an_xid_from_before_that_comes_late_pass(self) -> None:
        track = health.vouch(track=look(), vouched_at=after(10))
        assert look(track, at=after(20), xids=[xid(119, at=after(5))]).health is Health.HEALTHY


class TestLoss:
    @pytest.mark.parametrize("how", ["lost", "gone"])
    def test_lasts_until_the_gpu_answers(self, how: str) -> None:
        track = look(look(), at=after(15), lost=how == "lost", gone=how == "gone")
        assert (track.health, track.cause) == (Health.LOST, Cause.UNKNOWN)
        track = look(track, at=after(9_000), lost=how == "lost", gone=how == "gone")
        assert track.health is Health.LOST
        track = look(track, at=after(9_015))
        assert (track.health, track.reason) == (Health.SUSPECT, "it was lost and answers again")
        assert look(track, at=after(9_615)).health is Health.HEALTHY

    def test_by_an_xid_of_the_hardware_becomes_a_quarantine_when_it_answers(self) -> None:
        track = look(lost=True, xids=[xid(79)])
        assert (track.health, track.cause) == (Health.LOST, Cause.HARDWARE)
        assert "fell off the bus" in track.reason
        assert look(track, at=after(60)).health is Health.QUARANTINED

    def test_is_the_hardwares_when_its_xid_comes_after_it(self) -> None:
        track = look(lost=True)
        track = look(track, at=after(15), lost=True, xids=[xid(79, at=after(2))])
        assert (track.health, track.cause) == (Health.LOST, Cause.HARDWARE)

    def test_right_after_a_tenants_error_is_the_tenants(self) -> None:
        track = look(xids=[tenant_xid()])
        assert look(track, at=after(60), lost=True).cause is Cause.TENANT
        assert look(track, at=after(600), lost=True).cause is Cause.UNKNOWN

    def test_by_both_is_the_hardwares(self) -> None:
        track = look(lost=True, xids=[tenant_xid(), xid(79, at=after(1))])
        assert track.cause is Cause.HARDWARE

    def test_is_not_ended_by_clean_counters_of_the_same_look(self) -> None:
        track = look(lost=True, xids=[xid(79)])
        track = health.begin(track=track, boot_id="boot-2", at=after(60))
        track = look(track, at=after(75), counters=CLEAN)
        assert track.health is Health.QUARANTINED
        assert look(track, at=after(135), counters=CLEAN).health is not Health.QUARANTINED


class TestPolicies:
    def test_the_defaults_make_sense(self) -> None:
        assert policy_problems(NodePolicy()) == []

    @pytest.mark.parametrize(
        ("policy", "pointer"),
        [
            (NodePolicy(idle=IdlePolicy(free_after_seconds=119)), "/idle/free_after_seconds"),
            (NodePolicy(idle=IdlePolicy(free_after_seconds=86_401)), "/idle/free_after_seconds"),
            (NodePolicy(health=HealthPolicy(tenant_xid_leases=1)), "/health/tenant_xid_leases"),
            (NodePolicy(health=HealthPolicy(xid_rules={"79": "shrug"})), "/health/xid_rules/79"),
            (NodePolicy(health=HealthPolicy(xid_rules={"x": "watch"})), "/health/xid_rules/x"),
            (NodePolicy(health=HealthPolicy(xid_rules={"079": "watch"})), "/health/xid_rules/079"),
            (
                NodePolicy(health=HealthPolicy(recovery_verdicts={"0": "ignore"})),
                "/health/recovery",
            ),
        ],
    )
    def test_say_which_field_makes_no_sense(self, policy: NodePolicy, pointer: str) -> None:
        (problem,) = policy_problems(policy)
        assert problem.startswith(pointer)
