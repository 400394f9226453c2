"""A container lease on its way out, and what is found of it after a restart."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node.provision import Found, Presence, ProvisionFailed
from tests.agents.node.container.bench import GPUS, GRANT, NAME, Bench, a_free_port


class TestReturn:
    def test_kills_what_does_not_stop(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        bench.podman.fail("stop", status=125, errors="Error: timed out\n")
        provisioner.stop(grant=GRANT)
        assert bench.podman.verbs()[-2:] == ["kill", "container"]
        assert provisioner.inspect(grant=GRANT) is Presence.EXITED

    def test_says_when_even_that_does_not_help(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        bench.podman.fail("stop", status=125, errors="Error: timed out\n")
        bench.podman.fail("kill", status=125, errors="Error: process in D state\n")
        with pytest.raises(ProvisionFailed, match="does not stop: Error: process in D state"):
            provisioner.stop(grant=GRANT)

    def test_says_what_cannot_be_removed(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        bench.podman.fail("rm", status=125, errors="Error: device busy\n")
        with pytest.raises(ProvisionFailed, match="cannot be removed: Error: device busy"):
            provisioner.destroy(grant=GRANT)
        bench.podman.fail("network", status=125, errors="Error: network in use\n")
        provisioner.destroy(grant=GRANT)
        assert bench.left()[0] == []

    def test_ends_only_its_own_lease(self, bench: Bench) -> None:
        first, second = sorted((a_free_port(), a_free_port()))
        provisioner = bench.provisioner(ports=range(first, second + 1))
        other = replace(GRANT, lease_epoch=4, gpu_uuids=GPUS[1:])
        for grant in (GRANT, other):
            provisioner.prepare(grant=grant)
            provisioner.start(grant=grant)
        provisioner.stop(grant=GRANT)
        provisioner.destroy(grant=GRANT)
        assert bench.left() == (["headroom-lease-1-4"],) * 3
        assert provisioner.inspect(grant=other) is Presence.RUNNING


class TestList:
    def test_names_what_is_here_after_a_restart(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        assert provisioner.list_leases() == []
        provisioner.prepare(grant=GRANT)
        assert bench.provisioner().list_leases() == [Found(lease_id="lease-1", lease_epoch=3)]
        provisioner.start(grant=GRANT)
        found = Found(lease_id="lease-1", lease_epoch=3, gpu_uuids=GPUS[:1])
        assert bench.provisioner().list_leases() == [found]
        provisioner.destroy(grant=GRANT)
        assert provisioner.list_leases() == []

    def test_leaves_out_what_another_agent_runs(self, bench: Bench, tmp_path: Path) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        bench.state = tmp_path / "another"
        assert bench.provisioner().list_leases() == []

    def test_fails_when_the_runtime_does_not_answer(self, bench: Bench) -> None:
        bench.podman.fail("ps", status=125, errors="Error: database is locked\n")
        with pytest.raises(ProvisionFailed, match="database is locked"):
            bench.provisioner().list_leases()


class TestProbe:
    def test_names_the_runtime_and_the_devices(self, bench: Bench) -> None:
        (bench.cdi / "nvidia.yaml").write_text(
            "---\ncdiVersion: 0.5.0\ncontainerEdits:\n  env:\n  - X=1\ndevices:\n"
            "- containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: GPU-yaml\n"
            "kind: nvidia.com/gpu\n"
        )
        (bench.cdi / "other.json").write_text('{"kind": "vendor.example/net", "name": "GPU-none"}')
        seen = bench.provisioner().probe()
        assert seen.kind == "container"
        assert seen.version == "podman 4.3.1"
        assert seen.problem == ""
        assert seen.devices == frozenset({*GPUS, "GPU-yaml"})


class TestMarks:
    def test_name_the_lease_by_its_container_until_nothing_of_it_is_left(
        self, bench: Bench
    ) -> None:
        provisioner = bench.provisioner()
        assert provisioner.cgroup_marks() == {}
        provisioner.prepare(grant=GRANT)
        assert provisioner.cgroup_marks() == {}
        provisioner.start(grant=GRANT)
        marks = {hashlib.sha256(NAME.encode()).hexdigest(): "lease-1"}
        assert provisioner.cgroup_marks() == marks
        assert bench.provisioner().cgroup_marks() == marks  # after a restart of the agent
        provisioner.stop(grant=GRANT)
        assert provisioner.cgroup_marks() == marks  # its last Xid may still be on its way
        provisioner.destroy(grant=GRANT)
        assert provisioner.cgroup_marks() == {}

    def test_are_none_where_nothing_was_written_and_the_others_stay(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        other = bench.state / "headroom-lease-2-1"
        other.mkdir()
        (other / "container_id").write_text("")
        assert list(provisioner.cgroup_marks().values()) == ["lease-1"]
        provisioner.destroy(grant=GRANT)
