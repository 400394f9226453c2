"""Whatever part of the market is killed in the middle of a lease, it ends once and settles once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

PROJECT = Path(__file__).resolve().parents[2]
PARTS = ("web", "worker", "beat", "broker", "postgres")
START_SECONDS_MAX = 180
STORY_SECONDS_MAX = 420
HEAL_SECONDS_MAX = 60
STOP_SECONDS_MAX = 90
POLL_SECONDS = 0.5
# What the suite sets for itself must not reach a market of its own.
OF_THE_SUITE = (
    "DATABASE_URL",
    "CELERY_BROKER_URL",
    "SECRET_KEY",
    "ALLOWED_HOSTS",
    "HEADROOM_PROFILE",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(START_SECONDS_MAX + STORY_SECONDS_MAX + 300)]


@dataclass(frozen=True)
class RunningMarket:
    """A market that `manage.py up` runs in a directory of its own."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    base_url: str
    log: Path

    def run_record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return record

    def pid_of(self, part: str) -> int | None:
        """Return a part's process, `None` while it is being started again."""
        pid: int | None = self.run_record()["pids"].get(part)
        return pid

    def owner_api(self) -> httpx.Client:
        keys = json.loads((self.data_dir / "demo.json").read_text())
        headers = {"Authorization": f"Bearer {keys['owner']['api_key']}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30, trust_env=False)


def wait_for(what: str, probe: Callable[[], Any], *, seconds_max: float) -> Any:
    began = time.monotonic()
    while time.monotonic() - began < seconds_max:
        if found := probe():
            return found
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {seconds_max:.0f} s for {what}, in vain")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_THE_SUITE}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def market(tmp_path: Path) -> Iterator[RunningMarket]:
    data_dir, log, port = tmp_path / "market", tmp_path / "up.log", free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--data-dir", str(data_dir), "--port", str(port)],
            cwd=PROJECT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = RunningMarket(process, data_dir, f"http://127.0.0.1:{port}", log)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return (data_dir / "run.json").exists() and bool(running.run_record()["is_ready"])

    try:
        wait_for("the market to start", is_ready, seconds_max=START_SECONDS_MAX)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=STOP_SECONDS_MAX)


def kill_and_see_it_replaced(market: RunningMarket, part: str) -> None:
    old = market.pid_of(part)
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_for(
        f"a new {part}",
        lambda: market.pid_of(part) not in (old, None),
        seconds_max=HEAL_SECONDS_MAX,
    )
    wait_for(
        "the market to be ready again", lambda: answers_ready(market), seconds_max=HEAL_SECONDS_MAX
    )


def answers_ready(market: RunningMarket) -> bool:
    try:
        return (
            httpx.get(f"{market.base_url}/readyz", timeout=10, trust_env=False).status_code == 200
        )
    except httpx.TransportError:
        return False


def test_each_part_may_die_in_the_middle_of_a_lease(market: RunningMarket, tmp_path: Path) -> None:
    story_log = tmp_path / "story.log"
    with story_log.open("wb") as output:
        story = subprocess.Popen(
            [sys.executable, "manage.py", "demo", "--data-dir", str(market.data_dir)],
            cwd=PROJECT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait_for(
        "the purchase",
        lambda: "pays from its wallet" in story_log.read_text() or story.poll() is not None,
        seconds_max=STORY_SECONDS_MAX,
    )

    for part in PARTS:
        kill_and_see_it_replaced(market, part)
    story.wait(timeout=STORY_SECONDS_MAX)

    assert story.returncode == 0, story_log.read_text()
    assert "The books balance" in story_log.read_text()
    with market.owner_api() as owner:
        payouts = owner.get("/v1/payouts", params={"limit": "200"}).json()["data"]
    leases = [payout["lease_id"] for payout in payouts]
    assert len(leases) == len(set(leases)) == 1

    pids = market.run_record()["pids"].values()
    market.process.send_signal(signal.SIGTERM)
    assert market.process.wait(timeout=STOP_SECONDS_MAX) == 0
    assert not [pid for pid in pids if is_alive(pid)]


def test_a_killed_up_leaves_nothing_running_and_the_next_one_recovers(
    market: RunningMarket,
) -> None:
    parts = dict(market.run_record()["pids"])

    market.process.kill()
    market.process.wait(timeout=STOP_SECONDS_MAX)

    wait_for(
        f"the end of {parts}",
        lambda: not any(is_alive(pid) for pid in parts.values()),
        seconds_max=HEAL_SECONDS_MAX,
    )
    check = subprocess.run(
        [sys.executable, "manage.py", "check_books", "--data-dir", str(market.data_dir)],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
