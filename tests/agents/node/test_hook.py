"""The owner's program: every exit status, every bad answer, and the time limit."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from agents.node.programs import EVIDENCE_LENGTH_MAX
from agents.node.provision import Found, Presence, ProvisionAgain, ProvisionFailed
from agents.node.provision.hook import VERB_SECONDS_MAX, HookProvisioner
from agents.protocol import Access, DesiredState, Grant

AT = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
GRANT = Grant(
    lease_id="lease-1",
    lease_epoch=3,
    gpu_uuids=["GPU-0"],
    not_before=AT,
    not_after=AT + dt.timedelta(hours=1),
    desired_state=DesiredState.RUN,
    ssh_public_keys=["ssh-ed25519 AAAA tenant"],
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "hook"


def hook(program: Path, script: str, **limits: float) -> HookProvisioner:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return HookProvisioner(program=program, verb_seconds_max={**VERB_SECONDS_MAX, **limits})


class TestHook:
    def test_gets_the_verb_and_the_grant_and_no_secrets(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADROOM_TOKEN", "very-secret")
        told = tmp_path / "told"
        hook(program, f'echo "$1" > {told}; cat >> {told}; env > {told}.env').prepare(grant=GRANT)
        verb, request = told.read_text().split("\n", 1)
        assert verb == "prepare"
        assert json.loads(request)["lease_id"] == "lease-1"
        assert json.loads(request)["lease_epoch"] == 3
        assert json.loads(request)["ssh_public_keys"] == GRANT.ssh_public_keys
        assert "very-secret" not in (tmp_path / "told.env").read_text()

    def test_answers_access(self, program: Path) -> None:
        answer = '{"state": "running", "host": "n1.example", "port": 22, "username": "u"}'
        access = hook(program, f"echo '{answer}'").start(grant=GRANT)
        assert access == Access(host="n1.example", port=22, username="u")

    @pytest.mark.parametrize(
        "answer", ["", "{}", '{"host": 1}', "[]", "nonsense", '{"host": "h", "port": "22"}']
    )
    def test_that_answers_no_access_fails_the_start(self, program: Path, answer: str) -> None:
        with pytest.raises(ProvisionFailed, match="answered"):
            hook(program, f"echo '{answer}'").start(grant=GRANT)

    @pytest.mark.parametrize("state", list(Presence))
    def test_answers_what_there_is(self, program: Path, state: Presence) -> None:
        answered = hook(program, f"""echo '{{"state": "{state}"}}'""").inspect(grant=GRANT)
        assert answered is state

    @pytest.mark.parametrize("script", ["echo '{}'", "exit 75", "exit 1", "echo '{\"state\": 1}'"])
    def test_that_cannot_tell_what_there_is_fails(self, program: Path, script: str) -> None:
        with pytest.raises(ProvisionFailed, match="the owner's hook"):
            hook(program, script).inspect(grant=GRANT)

    @pytest.mark.parametrize(
        ("status", "words"), [(1, "failed at stop"), (2, "refuses"), (3, "status 3"), (127, "127")]
    )
    def test_that_fails_leaves_evidence(self, program: Path, status: int, words: str) -> None:
        with pytest.raises(ProvisionFailed, match=words) as failure:
            hook(program, f"echo no such partition >&2; exit {status}").stop(grant=GRANT)
        assert "no such partition" in str(failure.value)

    def test_leaves_no_more_evidence_than_the_wire_carries(self, program: Path) -> None:
        with pytest.raises(ProvisionFailed) as failure:
            hook(program, "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").stop(grant=GRANT)
        assert str(failure.value).count("x") >= EVIDENCE_LENGTH_MAX
        assert len(str(failure.value)) <= 500

    def test_may_ask_to_be_called_again(self, program: Path) -> None:
        with pytest.raises(ProvisionAgain):
            hook(program, "exit 75").destroy(grant=GRANT)
        with pytest.raises(ProvisionAgain) as again:
            hook(program, """echo '{"state": "pending", "poll_after_s": 7}'""").prepare(grant=GRANT)
        assert again.value.after_seconds == 7

    @pytest.mark.parametrize(("given", "used"), [('"x"', 5), ("-1", 5), ("1e9", 300), ("true", 5)])
    def test_cannot_ask_for_a_silly_pause(self, program: Path, given: str, used: float) -> None:
        script = f"""echo '{{"state": "pending", "poll_after_s": {given}}}'"""
        with pytest.raises(ProvisionAgain) as again:
            hook(program, script).prepare(grant=GRANT)
        assert again.value.after_seconds == used

    def test_that_takes_too_long_is_ended_with_all_its_children(self, program: Path) -> None:
        slow = hook(program, "sleep 1000 & sleep 1000", stop=0.3)
        with pytest.raises(ProvisionFailed, match=r"longer than 0\.3 s for stop"):
            slow.stop(grant=GRANT)

    def test_that_is_no_program_fails(self, program: Path) -> None:
        program.write_text("not a script")
        program.chmod(0o755)
        with pytest.raises(ProvisionFailed, match="cannot be run"):
            HookProvisioner(program=program).prepare(grant=GRANT)


class TestList:
    def listed(self, program: Path, answer: str) -> object:
        return hook(program, f"[ $1 = list ] && echo '{answer}'").list_leases()

    def test_names_what_is_here(self, program: Path) -> None:
        answer = '{"leases": [{"lease_id": "l", "lease_epoch": 2, "gpu_uuids": ["GPU-0"]}]}'
        assert self.listed(program, answer) == [
            Found(lease_id="l", lease_epoch=2, gpu_uuids=["GPU-0"])
        ]
        assert self.listed(program, '{"leases": []}') == []

    @pytest.mark.parametrize(
        "script", ["""echo '{"state": "unimplemented"}'""", "exit 2", "exit 0"]
    )
    def test_may_be_missing(self, program: Path, script: str) -> None:
        assert hook(program, script).list_leases() is None

    @pytest.mark.parametrize(
        "answer",
        ['{"leases": 1}', '{"leases": [1]}', '{"leases": [{"lease_id": "l"}]}', '{"other": 1}'],
    )
    def test_that_is_no_list_of_leases_fails(self, program: Path, answer: str) -> None:
        with pytest.raises(ProvisionFailed, match="list"):
            self.listed(program, answer)

    @pytest.mark.parametrize("script", ["exit 75", "exit 1", "sleep 60"])
    def test_that_cannot_be_had_now_fails(self, program: Path, script: str) -> None:
        with pytest.raises(ProvisionFailed, match="the owner's hook"):
            hook(program, script, list=0.3).list_leases()

    def test_of_more_than_a_machine_can_hold_fails(self, program: Path) -> None:
        lease = '{"lease_id": "l", "lease_epoch": 1}'
        with pytest.raises(ProvisionFailed, match="without a list"):
            self.listed(program, f'{{"leases": [{", ".join([lease] * 257)}]}}')


class TestProbe:
    def test_says_when_the_program_may_not_be_executed(self, program: Path) -> None:
        assert hook(program, "exit 0").probe().problem == ""
        program.chmod(0o644)
        assert "may not be executed" in HookProvisioner(program=program).probe().problem

    def test_keeps_to_the_time_limits_that_owners_rely_on(self) -> None:
        minute = 60.0
        assert VERB_SECONDS_MAX["prepare"] == 30 * minute
        assert VERB_SECONDS_MAX["start"] == 10 * minute
        assert VERB_SECONDS_MAX["stop"] == VERB_SECONDS_MAX["destroy"] == 5 * minute
        assert VERB_SECONDS_MAX["inspect"] == VERB_SECONDS_MAX["list"] == 10.0
