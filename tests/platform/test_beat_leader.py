"""Of many beats one beats, on a real PostgreSQL lock."""

import os
import signal
import subprocess
import sys

import pytest

from marketplace.management.bootstrap import PROJECT
from tests.platform.waiting import read_until, wait_for_end

# Says its own process id, then stays.
BEAT = "import os, signal; print('beat', os.getpid(), flush=True); signal.pause()"


@pytest.fixture
def start():
    started = []

    def begin(code=BEAT, **environment):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "marketplace.management.beat_leader",
                sys.executable,
                "-c",
                code,
            ],
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def beat_of(process):
    return int(read_until(process, "beat ")[-1].split()[1])


class TestLeader:
    def test_only_one_of_two_beats_and_the_other_takes_over_when_it_is_killed(self, start):
        first = start()
        read_until(first, "this beat leads")
        beat = beat_of(first)
        second = start()
        read_until(second, "another beat leads")
        first.kill()
        wait_for_end([beat])
        lines = read_until(second, "this beat leads")
        assert not any(line.startswith("beat ") for line in lines)

    def test_ends_its_beat_when_it_is_asked_to_stop(self, start):
        leader = start()
        read_until(leader, "this beat leads")
        beat = beat_of(leader)
        leader.send_signal(signal.SIGTERM)
        assert leader.wait() == 0
        wait_for_end([beat])

    def test_does_not_ask_a_beat_that_may_be_in_the_middle_of_sending(self, start):
        leader = start(
            code="import signal\n"
            "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
            "print('beat 0', flush=True)\n"
            "while True: signal.pause()\n"
        )
        read_until(leader, "beat 0")
        leader.send_signal(signal.SIGTERM)
        assert leader.wait() == 0
        assert leader.stdout.read() == ""

    def test_ends_with_its_beat_so_that_the_supervisor_starts_both_again(self, start):
        leader = start(code="raise SystemExit(3)")
        read_until(leader, "beat ended with exit code 3")
        assert leader.wait() == 1

    def test_waits_for_a_database_that_is_away(self, start):
        leader = start(DATABASE_URL="postgres://postgres@/postgres?host=/no/such/directory")
        read_until(leader, "no database, so no beat: ")
        assert leader.poll() is None
        leader.send_signal(signal.SIGTERM)
        assert leader.wait() == 0
