"""The idle rule against eight workloads of days, and rules of thumb that must fail where it does not."""

import pytest

from agents.node import idle
from tests.agents.node import traces

DAYS = 3.0


class TestTheScripts:
    """What the figures below rest on."""

    @pytest.mark.parametrize(
        "name", ["training with gaps", "inference, hourly", "pipeline rank", "parked memory"]
    )
    def test_hold_the_gpu_all_the_time(self, name: str) -> None:
        score = traces.rate(workload=traces.WORKLOADS[name], rule=traces.OurRule(), days=1)
        assert score.held_looks == score.looks

    def test_leave_a_batch_queue_idle_for_about_two_fifths_of_the_time(self) -> None:
        score = traces.rate(
            workload=traces.batch_queue, rule=traces.RULES_OF_THUMB["no process now"](), days=7
        )
        assert 35 <= score.truly_idle_percent <= 45
        assert score.short_offers_per_day >= 15, "a queue has short gaps between its jobs"


class TestTheRule:
    def test_reaches_every_bar(self) -> None:
        assert traces.broken_bars(rule=traces.OurRule, days=DAYS) == []

    @pytest.mark.slow
    def test_reaches_every_bar_over_a_whole_week(self) -> None:
        assert traces.broken_bars(rule=traces.OurRule, days=7) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(2, 6))
    def test_finds_the_gaps_of_other_queues_too(self, seed: int) -> None:
        score = traces.rate(workload=traces.batch_queue, rule=traces.OurRule(), days=7, seed=seed)
        assert score.offered_held_looks == 0
        assert score.found_percent is not None
        assert score.found_percent >= traces.BATCH_FOUND_PERCENT_MIN

    @pytest.mark.parametrize(
        ("thumb", "words"),
        [
            ("load == 0 now", "training with gaps: offered while held"),
            ("load < 5 % in 5 looks", "inference, 5-minute gaps: offered while held"),
            ("load <= 1 % for 30 min", "pipeline rank: offered while held"),
            ("highest load <= 1 % for 30 min", "inference, hourly: offered while held"),
            ("no process now", "batch queue: 20.0 short offers a day"),
        ],
    )
    def test_is_needed_because_a_rule_of_thumb_breaks_a_bar(self, thumb: str, words: str) -> None:
        broken = traces.broken_bars(rule=traces.RULES_OF_THUMB[thumb], days=2)
        assert any(line.startswith(words) for line in broken), broken

    def test_shows_forgotten_memory_as_parked(self) -> None:
        rule = traces.OurRule()
        traces.rate(workload=traces.parked_memory, rule=rule, days=0.1)
        assert rule.parked

    def test_finds_a_latch_only_because_it_is_cured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(idle, "CURES_MAX", 0)
        score = traces.rate(workload=traces.ghost_latch, rule=traces.OurRule(), days=DAYS)
        assert score.found_percent is not None
        assert score.found_percent < 20

    def test_reads_lists_of_processes_about_once_a_minute(self) -> None:
        rule = traces.OurRule()
        traces.rate(workload=traces.really_idle, rule=rule, days=1)
        assert rule.lists <= 24 * 60 + 2
