"""A node changes its key: whatever dies in between, the market and the node still know each other."""

from __future__ import annotations

import logging
from pathlib import Path
from pkgutil import resolve_name

import pytest

from agents.node import keys
from agents.node.__main__ import main
from agents.node.host import StateUnusable, load_key
from agents.node.keys import KeyRing
from agents.node.reporting import ROTATE_RETRY_SECONDS
from agents.protocol import ReceiptKind
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import assert_meters_fill_the_lease, by_kind, enrolled, grant
from tests.fakes.market import FakeMarket, problem


class Killed(BaseException):
    """The process dies here."""


def works(rig: Rig, market: FakeMarket) -> None:
    """The market hears of the node again, and the node has come to rest with one key."""
    before = len(market.reports)
    rig.live(seconds=120)
    assert len(market.reports) > before + 5
    left = sorted(path.name for path in rig.directory.glob("node.key*"))
    assert left == ["node.key"]


class TestRotation:
    def test_is_done_when_the_market_asks(self, rig: Rig, market: FakeMarket) -> None:
        enrolled(rig)
        before = load_key(directory=rig.directory).public_key
        market.rotate_key = True
        rig.live(seconds=30)
        after = load_key(directory=rig.directory)
        assert after.public_key != before
        assert len(market.former_keys) == 1
        assert (rig.directory / "node.key").stat().st_mode & 0o777 == 0o600
        works(rig, market)
        rig.restart()
        works(rig, market)

    def test_is_done_when_a_person_asks(
        self, rig: Rig, market: FakeMarket, capsys: pytest.CaptureFixture[str]
    ) -> None:
        enrolled(rig)
        assert main(["--rotate-key", "--state-dir", str(rig.directory)]) == 0
        assert "next report" in capsys.readouterr().out
        rig.live(seconds=60)
        assert len(market.former_keys) == 1, "once"
        works(rig, market)

    def test_leaves_receipts_valid_that_the_old_key_signed(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.grants = [grant(market)]
        rig.live(seconds=30)
        market.rotate_key = True
        rig.live(seconds=400)
        assert len(market.former_keys) == 1
        assert set(by_kind(market)) == {ReceiptKind.HANDOVER, ReceiptKind.RETURN}
        assert_meters_fill_the_lease(market)

    @pytest.mark.parametrize(
        ("place", "name"),
        [
            ("agents.node.keys", "write_private"),
            ("agents.node.sender:Sender", "rotate"),
            ("agents.node.keys:KeyRing", "promote"),
            ("os", "link"),
            ("pathlib:Path", "replace"),
            ("agents.node.keys", "sync_directory"),
            ("agents.node.keys:KeyRing", "was_taken"),
        ],
    )
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_survives_a_kill_at_every_step(
        self,
        rig: Rig,
        market: FakeMarket,
        monkeypatch: pytest.MonkeyPatch,
        place: str,
        name: str,
        when: str,
    ) -> None:
        enrolled(rig)
        owner = resolve_name(place)
        whole = getattr(owner, name)
        died = []

        def die(*arguments: object, **named: object) -> object:
            if when == "after":
                whole(*arguments, **named)
            died.append(name)
            raise Killed

        market.rotate_key = True
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, die)
            with pytest.raises(Killed):
                rig.live(seconds=60)
        assert died
        rig.restart()
        rig.live(seconds=60)
        assert len(market.former_keys) == 1
        works(rig, market)

    def test_finds_the_key_that_the_market_knows_when_the_answer_was_lost(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)

        def lose() -> None:
            market.lose_answers = 1

        market.instead_of_rotation = lose
        market.rotate_key = True
        rig.live(seconds=60)
        assert len(market.former_keys) == 1
        market.instead_of_rotation = lambda: None
        works(rig, market)

    def test_goes_back_to_the_old_key_when_the_market_forgot_the_new_one(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        old = market.public_key
        market.rotate_key = True
        # The market's books are set back right after its answer.
        rotate = market._rotate

        def forget(*arguments: object) -> object:
            answer = rotate(*arguments)  # type: ignore[arg-type]
            market.former_keys.append(market.public_key)  # type: ignore[arg-type]
            market.public_key = old
            return answer

        monkeypatch.setattr(market, "_rotate", forget)
        works(rig, market)

    def test_does_not_ask_on_and_on_when_it_is_refused(
        self, rig: Rig, market: FakeMarket, caplog: pytest.LogCaptureFixture
    ) -> None:
        enrolled(rig)
        asked = []

        def refuse() -> tuple[int, bytes, dict[str, str]]:
            asked.append(1)
            return problem(422, "malformed_report")

        market.instead_of_rotation = refuse
        market.rotate_key = True
        with caplog.at_level(logging.WARNING):
            rig.live(seconds=ROTATE_RETRY_SECONDS - 60)
        assert len(asked) == 1
        assert any("the key of this node is not changed" in r.message for r in caplog.records)
        market.instead_of_rotation = lambda: None
        rig.live(seconds=120)
        works(rig, market)

    def test_tries_again_while_the_market_does_not_answer_it(
        self, rig: Rig, market: FakeMarket
    ) -> None:
        enrolled(rig)
        market.instead_of_rotation = lambda: (503, b"", {})
        market.rotate_key = True
        rig.live(seconds=60)
        assert not market.former_keys
        candidate = (rig.directory / "node.key.next").read_text()
        market.instead_of_rotation = lambda: None
        works(rig, market)
        assert (rig.directory / "node.key").read_text() == candidate

    def test_does_not_end_the_agent_when_the_disk_is_full(
        self, rig: Rig, market: FakeMarket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enrolled(rig)
        market.rotate_key = True

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(keys, "write_private", full)
            before = len(market.reports)
            rig.live(seconds=60)
        assert len(market.reports) > before + 5
        assert not market.former_keys


class TestKeyRing:
    def test_has_no_other_key_to_try_most_of_the_time(self, tmp_path: Path) -> None:
        ring = KeyRing(directory=tmp_path)
        public = ring.public_key
        assert not ring.was_refused()
        ring.was_taken()
        assert ring.public_key == public

    def test_makes_one_candidate_however_often_it_is_asked(self, tmp_path: Path) -> None:
        ring = KeyRing(directory=tmp_path)
        candidate = ring.candidate()
        assert KeyRing(directory=tmp_path).candidate() == candidate
        assert (tmp_path / "node.key.next").stat().st_mode & 0o777 == 0o600

    def test_keeps_a_candidate_that_the_market_has_not_heard_of(self, tmp_path: Path) -> None:
        ring = KeyRing(directory=tmp_path)
        candidate = ring.candidate()
        ring.was_taken()
        assert ring.candidate() == candidate

    def test_names_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(StateUnusable, match="state directory"):
            keys.wish_change(directory=tmp_path / "nowhere")
