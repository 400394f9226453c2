"""A container lease from grant to access, against a program that behaves like podman."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from agents.node.provision import Presence
from tests.agents.node.container.bench import GRANT, KEY, NAME, Bench, option


class TestHandover:
    def test_gives_access_and_leaves_nothing_behind(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        access = provisioner.start(grant=GRANT)
        assert (access.host, access.username) == ("node-1.example", "root")
        assert access.port in bench.options.ports
        assert provisioner.inspect(grant=GRANT) is Presence.RUNNING
        provisioner.stop(grant=GRANT)
        assert provisioner.inspect(grant=GRANT) is Presence.EXITED
        provisioner.destroy(grant=GRANT)
        assert provisioner.inspect(grant=GRANT) is Presence.ABSENT
        assert bench.left() == ([], [], [])

    def test_may_be_asked_for_every_verb_twice(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        for _ in range(2):
            provisioner.prepare(grant=GRANT)
        first = provisioner.start(grant=GRANT)
        assert provisioner.start(grant=GRANT) == first
        assert bench.podman.verbs().count("run") == 1
        for _ in range(2):
            provisioner.stop(grant=GRANT)
        for _ in range(2):
            provisioner.destroy(grant=GRANT)
        assert bench.left() == ([], [], [])

    def test_starts_a_container_that_is_shut_in(self, bench: Bench) -> None:
        provisioner = bench.provisioner(run_flags=("--ulimit", "nproc=1000:1000"))
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        (call,) = [call for call in bench.podman.calls if call[0] == "run"]
        assert option(call, "--device") == ["nvidia.com/gpu=GPU-0000"]
        assert option(call, "--cap-drop") == ["all"]
        assert option(call, "--security-opt") == ["no-new-privileges"]
        assert option(call, "--network") == [NAME]
        assert option(call, "--restart") == ["no"]
        assert option(call, "--stop-signal") == ["TERM"]
        assert option(call, "--ulimit") == ["nofile=1024:1024", "memlock=-1:-1", "nproc=1000:1000"]
        assert not {"--privileged", "--ipc"} & set(call)
        assert not {"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"} & set(option(call, "--cap-add"))
        (network,) = [c for c in bench.podman.calls if c[:2] == ["network", "create"]]
        assert option(network, "--opt") == ["isolate=true"]

    def test_gets_a_share_of_the_machine_that_is_that_of_its_gpus(self, bench: Bench) -> None:
        bench.name_devices(*(f"GPU-{n}" for n in range(8)), "0", "all")
        provisioner = bench.provisioner()
        grant = replace(GRANT, gpu_uuids=["GPU-0", "GPU-1"])
        provisioner.prepare(grant=grant)
        provisioner.start(grant=grant)
        (call,) = [call for call in bench.podman.calls if call[0] == "run"]
        assert option(call, "--cpus") == ["16.00"]
        assert option(call, "--memory") == [str(120 * 1024**3)]
        assert option(call, "--shm-size") == [str(60 * 1024**3)]

    def test_writes_the_tenants_keys_and_a_host_key_that_ssh_reads(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        access = provisioner.start(grant=GRANT)
        directory = bench.state / NAME
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "authorized_keys").read_text() == f"{KEY}\n"
        assert (directory / "host_key").stat().st_mode & 0o777 == 0o600
        if shutil.which("ssh-keygen"):
            told = subprocess.run(
                ["ssh-keygen", "-y", "-f", str(directory / "host_key")],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            blob = base64.b64decode(told.split()[1])
            digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
            assert access.host_key_fingerprint == f"SHA256:{digest}"

    def test_has_another_host_key_for_each_lease(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        other = replace(GRANT, lease_epoch=4)
        provisioner.prepare(grant=GRANT)
        provisioner.prepare(grant=other)
        one, two = ((bench.state / f"headroom-lease-1-{n}/host_key").read_text() for n in (3, 4))
        assert one != two

    def test_says_with_a_digest_how_it_was_started(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        assert provisioner.config_sha256(grant=GRANT) is None
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        digest = provisioner.config_sha256(grant=GRANT)
        assert digest is not None
        assert len(digest) == 64
        assert bench.provisioner().config_sha256(grant=GRANT) == digest
        assert bench.provisioner(entry=("/init",)).config_sha256(grant=GRANT) != digest

    def test_begins_anew_with_a_container_of_an_earlier_boot(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        bench.podman.exit(NAME)
        provisioner.prepare(grant=GRANT)
        provisioner.start(grant=GRANT)
        assert provisioner.inspect(grant=GRANT) is Presence.RUNNING
        assert bench.podman.verbs().count("run") == 2

    def test_sees_the_digest_and_the_network_of_docker(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, runtime="docker")
        (bench.podman.directory / "version").write_text("28.3.0\n")
        try:
            provisioner = bench.provisioner()
            assert provisioner.probe().version == "docker 28.3.0"
            provisioner.prepare(grant=GRANT)
            (network,) = [c for c in bench.podman.calls if c[:2] == ["network", "create"]]
            assert "com.docker.network.bridge.enable_icc=false" in network
        finally:
            bench.podman.close()
