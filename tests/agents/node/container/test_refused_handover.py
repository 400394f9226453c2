"""Every way in which a container lease does not come to be, and what it says of it."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from agents.node.provision import ProvisionAgain, ProvisionFailed
from tests.agents.node.container.bench import GRANT, IMAGE, KEY, NAME, Bench, a_free_port, option


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
