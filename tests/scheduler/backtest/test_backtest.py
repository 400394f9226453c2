"""The backtest itself: its demand, its bound, its replay, its files."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from scheduler.backtest import runs, traces
from scheduler.backtest.bounds import bounds, exact_revenue, exact_welfare
from scheduler.backtest.demand import SETS, Demand, DemandSet, generate
from scheduler.backtest.engine import replay
from scheduler.backtest.policies import Clearing, LinearSurge, Static, TimeOfWeek
from scheduler.backtest.report import Bar, bars, markdown, placement_bars, write_csv
from scheduler.backtest.rooms import CountedRoom, PackedRoom
from scheduler.backtest.spot import Spot
from scheduler.pricing import Rule

CAPACITY, HOURS = 256, 14 * 24
SMALL = DemandSet(name="small", mix="short", is_real=False, seeds=(1,))


def small_demand(*, load: float = 1.5, seed: int = 1, capacity: int = CAPACITY) -> Demand:
    return generate(SMALL, load=load, seed=seed, capacity=capacity, hours=HOURS)


def counted(demand: Demand) -> CountedRoom:
    return CountedRoom(capacity=demand.capacity, horizon_hours=demand.horizon_hours)


class TestDemand:
    def test_is_the_same_for_the_same_seed_and_another_for_another(self) -> None:
        one, same, other = small_demand(), small_demand(), small_demand(seed=2)

        assert (one.value == same.value).all()
        assert (one.starts == same.starts).all()
        assert len(one) != len(other) or (one.value != other.value).any()

    def test_offers_the_load_it_is_asked_for(self) -> None:
        calm = [
            generate(SMALL, load=1.2, seed=seed, hours=HOURS, with_shock=False) for seed in range(6)
        ]
        loads = [float((d.gpus * d.hours).sum()) / (d.capacity * HOURS) for d in calm]

        assert float(np.mean(loads)) == pytest.approx(1.2, rel=0.05)

    def test_stays_inside_its_hours(self) -> None:
        demand = small_demand()

        assert (demand.starts >= 0).all()
        assert (demand.starts + demand.hours[demand.owner] <= HOURS).all()
        assert (demand.comes_hours <= demand.starts[demand.first]).all()
        assert (demand.history.start_hours < 0).all()

    def test_of_a_real_cluster_needs_its_counts(self) -> None:
        with pytest.raises(ValueError, match="hourly counts"):
            generate(SETS["ali"], load=1.0, seed=1)


class TestBounds:
    def test_come_within_half_a_per_cent_of_the_linear_program(self) -> None:
        demand = generate(SMALL, load=1.5, seed=1, capacity=64, hours=10 * 24)
        bound = bounds(demand)

        assert 1 - 1e-9 <= bound.welfare / exact_welfare(demand) <= 1.005
        assert 0.9995 <= bound.revenue / exact_revenue(demand, segments=20) <= 1.005

    def test_are_beaten_by_nobody(self) -> None:
        demand = small_demand(load=2.0)
        bound = bounds(demand, steps=150)

        for policy in (Static(1.93), Static(2.5), LinearSurge(1.8), TimeOfWeek(2.5), Clearing()):
            outcome = replay(demand, policy=policy, room=counted(demand))
            assert outcome.welfare < bound.welfare
            assert outcome.revenue < outcome.welfare


class TestReplay:
    def test_gives_the_same_figures_to_the_digit(self, tmp_path: Path) -> None:
        job = runs.Job(
            demand_set="synthetic",
            load=0.3,
            seed=5,
            policies=("clearing", "linear_surge"),
            room="counted",
            series=None,
            with_spot=True,
        )
        for name in ("one.csv", "two.csv"):
            write_csv(runs.run(job), path=tmp_path / name)

        assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()

    def test_never_sells_more_than_there_is_and_keeps_every_limit(self) -> None:
        demand = small_demand(load=2.0)
        policy = Clearing()
        room = PackedRoom(capacity=demand.capacity, horizon_hours=demand.horizon_hours)
        outcome = replay(demand, policy=policy, room=room)

        assert int(outcome.sold.max()) <= demand.capacity
        assert outcome.use > 0.3
        assert policy.violations == 0

    def test_places_through_the_markets_own_packing(self) -> None:
        room = PackedRoom(capacity=16, horizon_hours=10)

        assert room.take(number=1, gpus=4, start=0, hours=10)
        assert room.take(number=2, gpus=8, start=0, hours=10)
        # Four GPUs are left on one node: enough by count, but a block of eight does not fit.
        room.advance(hour=5)
        assert not room.take(number=3, gpus=8, start=5, hours=2)
        assert room.take(number=4, gpus=4, start=5, hours=2)
        assert room.sold.tolist() == [12] * 5 + [16] * 2 + [12] * 3

    def test_sells_to_those_who_can_pay_and_to_nobody_else(self) -> None:
        demand = small_demand()
        outcome = replay(demand, policy=Static(100.0), room=counted(demand))

        assert (outcome.revenue, outcome.use, outcome.no_room) == (0.0, 0.0, 0.0)
        assert outcome.price_percentiles is None

    def test_counts_those_who_can_pay_and_find_no_room(self) -> None:
        demand = small_demand(load=3.0)
        outcome = replay(demand, policy=Static(0.01), room=counted(demand))

        assert outcome.no_room == pytest.approx(1 - outcome.fill_requests)

    def test_fills_idle_hours_with_reclaimable_sessions(self) -> None:
        demand = small_demand(load=0.6)
        outcome = replay(
            demand, policy=Clearing(), room=counted(demand), spot=Spot(seed=1, rule=Rule())
        )

        assert outcome.spot is not None
        assert outcome.spot.use > 0.05
        assert outcome.use + outcome.spot.use <= 1
        assert outcome.spot.price_mean is not None
        assert outcome.price_mean is not None
        assert 0.99 < outcome.spot.price_mean < outcome.price_mean

    @pytest.mark.parametrize("spoiled", [Clearing(forecast_factor=0.5), Clearing(is_flat=True)])
    def test_goes_on_with_a_spoiled_forecast(self, spoiled: Clearing) -> None:
        demand = small_demand()
        plain = replay(demand, policy=Clearing(), room=counted(demand))
        worse = replay(demand, policy=spoiled, room=counted(demand))

        assert worse.revenue != plain.revenue
        assert worse.revenue > 0.9 * plain.revenue


class TestRivals:
    def test_are_scaled_to_the_base_of_a_trace(self) -> None:
        single = runs.policy("static_single", mix="long", load=1.0, room="packed", base_rate=3.86)

        assert isinstance(single, Static)
        assert single.price == pytest.approx(2 * runs.STATIC_BEST_SINGLE)

    def test_reckon_with_holes_only_where_windows_are_placed(self) -> None:
        shares = [runs.rule_for(room).sellable_share for room in ("packed", "counted")]

        assert shares == [Rule().sellable_share, 1]
        assert shares[0] < 1


class TestReport:
    def rows(self, policies: Sequence[str], *, room: str = "counted") -> list[runs.Row]:
        return runs.run(
            runs.Job(
                demand_set="synthetic",
                load=0.3,
                seed=5,
                policies=tuple(policies),
                room=room,
                series=None,
                with_spot=False,
            )
        )

    def test_names_every_bar_and_what_was_not_run(self) -> None:
        rows = self.rows(["clearing", "static_by_load"])
        text = markdown(rows)

        assert "| revenue over linear surge |  | ≥ 0.01 | not run |" in text
        assert "| limits broken (floor, cap, pace, ratchet) | 0.0000 | ≤ 0 | reached |" in text
        assert {bar.verdict for bar in bars(rows)} <= {"reached", "MISSED", "not run"}

    def test_holds_each_room_to_the_bars_and_placement_to_its_own(self) -> None:
        counted, packed = self.rows(["clearing"]), self.rows(["clearing"], room="packed")
        text = markdown([*counted, *packed])

        assert "## Bars, counted" in text
        assert "## Bars, packed" in text
        sold, earned = placement_bars([*counted, *packed])
        assert sold.measured == packed[0].use / counted[0].use
        assert earned.measured == packed[0].revenue / counted[0].revenue
        assert {bar.verdict for bar in placement_bars(counted)} == {"not run"}

    def test_says_when_a_bar_is_missed(self) -> None:
        assert Bar(figure="x", measured=0.92, must=0.93).verdict == "MISSED"
        assert Bar(figure="x", measured=0.03, must=0.02, is_least=False).verdict == "MISSED"


class TestTraces:
    def written(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    def test_are_read_as_requests(self, tmp_path: Path) -> None:
        path = self.written(
            tmp_path,
            "arrival,start_from,start_to,duration,gpus,value\n"
            "2.5,4,12,1.5,8,3.0\n-30,-20,-20,4,2,1\n-1,1,1,2,1,2.0\n",
        )
        demand = traces.read_requests(path, capacity=16)

        assert demand.comes_hours.tolist() == [0.0, 2.5]
        assert demand.gpus.tolist() == [1, 8]
        assert demand.hours.tolist() == [2, 2]
        assert demand.starts.tolist() == [1, 4, 6, 8, 10, 12]
        assert demand.history.start_hours.tolist() == [-20]
        assert demand.horizon_hours == 14

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("arrival,gpus\n1,2\n", "no column 'duration'"),
            ("arrival,start_from,start_to,duration,gpus,value\n1,2,3,x,1,1\n", "line 2: 'x'"),
            ("arrival,start_from,start_to,duration,gpus,value\n5,2,3,1,1,1\n", "makes no sense"),
            ("arrival,start_from,start_to,duration,gpus,value\n1,2,3,1,99,1\n", "more GPUs"),
            ("arrival,start_from,start_to,duration,gpus,value\n", "no request"),
        ],
    )
    def test_that_make_no_sense_are_refused_with_the_place(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        with pytest.raises(traces.TraceUnreadable, match=message):
            traces.read_requests(self.written(tmp_path, text), capacity=16)

    def test_of_counts_need_their_column(self, tmp_path: Path) -> None:
        with pytest.raises(traces.TraceUnreadable, match="no column 'jobs'"):
            traces.read_counts(self.written(tmp_path, "hour,n\n1,2\n"))


class TestCommand:
    def test_says_how_to_get_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(CommandError, match=r"pip install '\.\[backtest\]'"):
            call_command("backtest")

    def test_replays_a_grid_into_tables_and_pictures(self, tmp_path: Path) -> None:
        call_command(
            *("backtest", "--sets", "synthetic", "--loads", "0.2", "--seeds", "3"),
            *("--policies", "clearing", "linear_surge", "clearing_flat"),
            *("--processes", "1", "--out", str(tmp_path)),
        )

        lines = (tmp_path / "results.csv").read_text().splitlines()
        assert lines[0].startswith("demand_set,load,seed,room,policy,revenue,welfare")
        assert [tuple(line.split(",")[3:5]) for line in lines[1:]] == [
            ("counted", "clearing"),
            ("counted", "linear_surge"),
            ("counted", "clearing_flat"),
            ("packed", "clearing"),
            ("packed", "linear_surge"),
        ]
        assert "## What placement costs" in (tmp_path / "summary.md").read_text()
        for name in ("price.png", "occupancy.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def test_replays_a_trace(self, tmp_path: Path) -> None:
        trace = tmp_path / "requests.csv"
        rows = [f"{hour},{hour + 1},{hour + 5},3,4,{1 + hour % 5}" for hour in range(300)]
        trace.write_text(
            "arrival,start_from,start_to,duration,gpus,value\n" + "\n".join(rows) + "\n"
        )
        call_command(
            *("backtest", "--trace", str(trace), "--gpus", "16", "--out", str(tmp_path)),
            *("--policies", "clearing", "static_by_load"),
        )

        assert "requests,0.7" in (tmp_path / "results.csv").read_text()

    def test_refuses_a_real_set_without_its_counts(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="needs --counts"):
            call_command("backtest", "--sets", "ali", "--out", str(tmp_path))
