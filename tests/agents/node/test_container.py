"""The container provisioner against a program that behaves like podman: every verb, every unhappy path."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.node.config import BadSetting, parse_settings
from agents.node.provision import Found, Presence, ProvisionAgain, ProvisionFailed
from agents.node.provision.container import ContainerProvisioner, Machine, Options
from agents.node.provision.container.options import BadOption, parse_options
from agents.protocol import DesiredState, Grant
from tests.fakes.podman import FakePodman

AT = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFqkZ0Jm3dYh0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0mZ0m tenant@example"
IMAGE = "registry.example/cuda@sha256:" + "a" * 64
GPUS = ["GPU-0000", "GPU-1111"]
NAME = "headroom-lease-1-3"
GRANT = Grant(
    lease_id="lease-1",
    lease_epoch=3,
    gpu_uuids=GPUS[:1],
    not_before=AT,
    not_after=AT + dt.timedelta(hours=1),
    desired_state=DesiredState.RUN,
    ssh_public_keys=[KEY],
)
MACHINE = Machine(
    cpu_count=64, memory_bytes=512 * 1024**3, open_files_max=1024, locked_bytes_max=-1
)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Bench:
    """A provisioner with its fake runtime, whose time passes when it sleeps."""

    def __init__(self, directory: Path, *, runtime: str = "podman") -> None:
        (directory / "runtime").mkdir()
        (directory / "cdi").mkdir()
        self.podman = FakePodman(directory=directory / "runtime", name=runtime)
        self.podman.change(images=[IMAGE])
        self.state = directory / "leases"
        self.cdi = directory / "cdi"
        self.name_devices(*GPUS)
        port = a_free_port()
        self.options = Options(
            runtime=str(self.podman.path),
            ssh_host="node-1.example",
            image=IMAGE,
            image_prefixes=("registry.example/team/",),
            ports=range(port, port + 1),
        )
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def name_devices(self, *names: str) -> None:
        devices = [{"name": name} for name in names]
        spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
        (self.cdi / "nvidia.json").write_text(json.dumps(spec))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        on_sleep, self.on_sleep = self.on_sleep, lambda: None
        on_sleep()
        # The fake's sshd needs a moment of real time to listen.
        subprocess.run(["sleep", "0.05"], check=True)

    def provisioner(self, *, seconds_max: float = 30.0, **options: Any) -> ContainerProvisioner:
        return ContainerProvisioner(
            options=replace(self.options, **options),
            directory=self.state,
            machine=MACHINE,
            cdi_directories=[self.cdi],
            monotonic=lambda: self.now,
            sleep=self.sleep,
            seconds_max=seconds_max,
        )

    def left(self) -> tuple[list[str], list[str], list[str]]:
        """Return what is left of all leases: containers, networks, directories."""
        state = self.podman.state
        kept = [path.name for path in self.state.glob("*")]
        return list(state["containers"]), state["networks"], kept


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.podman.close()


def option(call: list[str], name: str) -> list[str]:
    return [call[i + 1] for i, word in enumerate(call) if word == name]


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


class TestUnhappyHandover:
    def test_without_a_cdi_device_says_how_to_make_one(self, bench: Bench) -> None:
        bench.name_devices("GPU-other")
        with pytest.raises(ProvisionFailed, match=r"no CDI device for GPU-0000.*nvidia-ctk"):
            bench.provisioner().prepare(grant=GRANT)
        assert bench.left() == ([], [], [])

    def test_of_a_device_that_the_runtime_does_not_find_fails(self, bench: Bench) -> None:
        bench.name_devices("GPU-absent")
        grant = replace(GRANT, gpu_uuids=["GPU-absent"])
        provisioner = bench.provisioner()
        provisioner.prepare(grant=grant)
        with pytest.raises(ProvisionFailed, match="unresolvable CDI devices"):
            provisioner.start(grant=grant)
        assert bench.left()[0] == []

    def test_fetches_an_image_that_is_not_here(self, bench: Bench) -> None:
        grant = replace(GRANT, image="registry.example/team/train:1")
        bench.provisioner().prepare(grant=grant)
        assert bench.podman.state["images"] == [IMAGE, grant.image]

    def test_of_an_image_that_cannot_be_fetched_fails(self, bench: Bench) -> None:
        bench.podman.change(images=[])
        bench.podman.fail("pull", status=125, errors="Error: manifest unknown\n")
        with pytest.raises(ProvisionFailed, match="cannot be fetched: Error: manifest unknown"):
            bench.provisioner().prepare(grant=GRANT)

    def test_waits_for_a_long_fetch_between_calls_and_not_for_ever(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agents.node.provision.container.provisioner.PULL_LOOK_SECONDS", 0.05)
        bench.podman.change(images=[])
        bench.podman.hang("pull")
        provisioner = bench.provisioner()
        for _ in range(3):
            with pytest.raises(ProvisionAgain, match="fetches the image"):
                provisioner.prepare(grant=GRANT)
        bench.now += 1801
        with pytest.raises(ProvisionFailed, match="was not fetched in 1800 s"):
            provisioner.prepare(grant=GRANT)
        assert bench.podman.verbs().count("pull") == 1

    def test_ends_a_fetch_for_a_lease_that_is_destroyed(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agents.node.provision.container.provisioner.PULL_LOOK_SECONDS", 0.05)
        bench.podman.change(images=[])
        bench.podman.hang("pull")
        provisioner = bench.provisioner()
        with pytest.raises(ProvisionAgain):
            provisioner.prepare(grant=GRANT)
        provisioner.destroy(grant=GRANT)
        assert bench.left() == ([], [], [])

    @pytest.mark.parametrize(
        "image",
        [
            "elsewhere.example/x",
            "registry.example/teamwork",
            "--privileged",
            "registry.example/team/a b",
        ],
    )
    def test_of_an_image_that_the_owner_does_not_allow_fails(
        self, bench: Bench, image: str
    ) -> None:
        with pytest.raises(ProvisionFailed, match=r"does not allow|not the name of an image"):
            bench.provisioner().prepare(grant=replace(GRANT, image=image))

    def test_without_any_image_fails(self, bench: Bench) -> None:
        with pytest.raises(ProvisionFailed, match="no image"):
            bench.provisioner(image="").prepare(grant=GRANT)

    @pytest.mark.parametrize("key", ["", "nonsense", f"{KEY}\n{KEY}", 'command="x" ' + KEY])
    def test_of_what_is_no_public_key_fails(self, bench: Bench, key: str) -> None:
        with pytest.raises(ProvisionFailed, match="not an ssh public key"):
            bench.provisioner().prepare(grant=replace(GRANT, ssh_public_keys=[key]))

    def test_for_nobody_who_could_log_in_fails(self, bench: Bench) -> None:
        with pytest.raises(ProvisionFailed, match="names no ssh public key"):
            bench.provisioner().prepare(grant=replace(GRANT, ssh_public_keys=[]))

    @pytest.mark.parametrize("lease_id", ["../etc", "a/b", "", "-rm", "x" * 200])
    def test_of_an_id_that_is_no_name_fails(self, bench: Bench, lease_id: str) -> None:
        with pytest.raises(ProvisionFailed, match="cannot name a container"):
            bench.provisioner().prepare(grant=replace(GRANT, lease_id=lease_id))

    def test_finds_its_name_taken_by_its_own_earlier_call(self, bench: Bench) -> None:
        """The call before was answered late: the second `run` fails with 125, and the first one serves."""
        first, second = sorted((a_free_port(), a_free_port()))
        provisioner = bench.provisioner(ports=range(first, second + 1))
        provisioner.prepare(grant=GRANT)
        access = provisioner.start(grant=GRANT)
        state = bench.podman.state
        bench.podman.fail("container", status=125, errors="Error: no such container\n")
        assert provisioner.start(grant=GRANT).port == access.port
        assert bench.podman.state == state

    def test_takes_another_port_when_one_is_taken(self, bench: Bench) -> None:
        first, second = sorted((a_free_port(), a_free_port()))
        provisioner = bench.provisioner(ports=range(first, second + 1))
        bench.podman.fail("run", status=126, errors="Error: bind: address already in use\n")
        provisioner.prepare(grant=GRANT)
        access = provisioner.start(grant=GRANT)
        tried = [option(c, "--publish")[0] for c in bench.podman.calls if c[0] == "run"]
        assert len(tried) == len(set(tried)) == 2
        assert tried[1] == f"{access.port}:2222"

    def test_without_any_free_port_fails(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        taken = socket.create_server(("", bench.options.ports.start))
        with taken, pytest.raises(ProvisionFailed, match="no free port"):
            provisioner.start(grant=GRANT)

    def test_that_fails_to_run_leaves_no_container(self, bench: Bench) -> None:
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        bench.podman.fail("run", status=126, errors="Error: OCI permission denied\n")
        with pytest.raises(ProvisionFailed, match="does not start: Error: OCI permission denied"):
            provisioner.start(grant=GRANT)
        assert bench.left()[0] == []

    def test_that_ends_at_once_says_what_it_wrote(self, bench: Bench) -> None:
        bench.podman.mute()
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        bench.on_sleep = lambda: bench.podman.exit(NAME)
        with pytest.raises(ProvisionFailed, match="ended before anybody could log in: sshd: no"):
            provisioner.start(grant=GRANT)

    def test_waits_for_sshd_and_not_for_ever(self, bench: Bench) -> None:
        bench.podman.mute()
        provisioner = bench.provisioner()
        provisioner.prepare(grant=GRANT)
        with pytest.raises(ProvisionAgain, match="waits for sshd"):
            provisioner.start(grant=GRANT)
        bench.now += 91
        with pytest.raises(ProvisionFailed, match="did not answer in 90 s"):
            provisioner.start(grant=GRANT)

    def test_without_the_runtime_fails(self, bench: Bench) -> None:
        provisioner = bench.provisioner(runtime=str(bench.podman.directory / "podman-absent"))
        with pytest.raises(ProvisionFailed, match="cannot be run: No such file"):
            provisioner.prepare(grant=GRANT)
        assert "cannot be run" in provisioner.probe().problem

    @pytest.mark.parametrize("version", ["3.4.4", "4.0.0"])
    def test_with_a_runtime_that_is_too_old_fails(self, bench: Bench, version: str) -> None:
        (bench.podman.directory / "version").write_text(version)
        with pytest.raises(ProvisionFailed, match=rf"{version} is too old.*4\.1 is needed"):
            bench.provisioner().prepare(grant=GRANT)
        assert "too old" in bench.provisioner().probe().problem

    def test_with_a_runtime_that_hangs_fails_in_time(self, bench: Bench) -> None:
        provisioner = bench.provisioner(seconds_max=1.0)
        provisioner.prepare(grant=GRANT)
        bench.podman.hang("container")
        with pytest.raises(ProvisionFailed, match="container took longer than 1 s"):
            provisioner.start(grant=GRANT)


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


class TestOptions:
    def parse(self, **given: str) -> Options:
        values = {"runtime": "/bin/podman-x", **given}
        return parse_options(given=lambda name: values.get(name, ""), name="node-1")

    @pytest.fixture(autouse=True)
    def _runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: name if "absent" not in name else None)

    def test_are_read_from_the_settings(self) -> None:
        options = self.parse(
            image=IMAGE, runtime_flags="--root '/x y'", port_range="4000-4001", entry="/init ssh",
            image_prefixes="a.example/, b.example/",
        )  # fmt: skip
        assert options.ssh_host == "node-1"
        assert options.runtime_flags == ("--root", "/x y")
        assert options.entry == ("/init", "ssh")
        assert options.ports == range(4000, 4002)
        assert options.image_prefixes == ("a.example/", "b.example/")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("runtime", "lxc"),
            ("runtime", "podman-absent"),
            ("port_range", "1-2"),
            ("port_range", "5000-4000"),
            ("port_range", "x"),
            ("runtime_flags", "'open"),
            ("run_flags", "--privileged"),
            ("run_flags", "--privileged=true"),
            ("run_flags", "--ipc=host"),
            ("run_flags", "--ipc host"),
            ("run_flags", "--cap-add SYS_ADMIN"),
            ("run_flags", "--security-opt=seccomp=unconfined"),
        ],
    )
    def test_that_cannot_be_used_are_refused_by_name(self, name: str, text: str) -> None:
        with pytest.raises(BadOption, match="--" + name.replace("_", "-")):
            self.parse(**{name: text})

    def test_of_an_owner_may_tune_a_container(self) -> None:
        assert (
            self.parse(run_flags="--cpuset-cpus 0-31 --ipc=private").run_flags[0] == "--cpuset-cpus"
        )


class TestSettings:
    SERVER = ("--server", "https://market.example.com", "--state-dir", "/nonexistent")

    def test_ask_for_containers(self, bench: Bench) -> None:
        settings = parse_settings(
            arguments=[*self.SERVER, "--provisioner", "container", "--image", IMAGE],
            environment={"HEADROOM_RUNTIME": str(bench.podman.path), "HEADROOM_NAME": "n1"},
        )
        options = settings.container()
        assert options is not None
        assert options.image == IMAGE
        assert options.ssh_host == "n1"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--provisioner", "lxc"],
            ["--provisioner", "hook"],
            ["--provisioner", "container", "--hook", "/bin/true"],
            ["--provisioner", "container", "--simulate", "h100x1"],
            ["--provisioner", "container", "--runtime", "/nonexistent/podman"],
        ],
    )
    def test_that_contradict_each_other_are_refused(self, arguments: list[str]) -> None:
        with pytest.raises(BadSetting):
            parse_settings(arguments=[*self.SERVER, *arguments], environment={})
