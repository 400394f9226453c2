"""A real podman, a real sshd and a real agent on a stand-in for NVML: a lease from grant to receipts."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node.attribution import ProcessOwner, owner_by_cgroup
from agents.node.child import ChildReader
from agents.node.provision import Presence
from agents.node.provision.container import ContainerProvisioner, Options, measure
from agents.protocol import Access, DesiredState, Grant, LeaseState, ReceiptKind
from tests.agents.node import containers
from tests.agents.node.conftest import skip_or_fail
from tests.agents.node.containers import CDI_DIRECTORY, IMAGE, RUN_FLAGS, Podman
from tests.agents.node.rig import Rig
from tests.agents.node.scenes import by_kind, enrolled, grant, last_states
from tests.fakes import nvml
from tests.fakes.market import FakeMarket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOTHING = {"containers": [], "networks": ["podman"], "volumes": []}
AT = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    containers.require()
    # One at a time: bridges and their addresses are the machine's. Podman wants a short path.
    lock = Path(tempfile.gettempdir()) / "headroom-podman.lock"
    with lock.open("w") as held, tempfile.TemporaryDirectory(prefix="pod-") as name:
        fcntl.flock(held, fcntl.LOCK_EX)
        podman = Podman(directory=Path(name))
        podman.build_image(directory=Path(name))
        if problem := podman.why_not():
            skip_or_fail(f"podman runs no container here: {problem}")
        yield podman
        podman.close()


@pytest.fixture
def cdi(gpu_uuids: list[str], tmp_path: Path) -> Iterator[Path]:
    """A specification under a name of its own, where podman looks for it; it is taken away again."""
    made = not CDI_DIRECTORY.exists()
    path = CDI_DIRECTORY / f"headroom-test-{os.getpid()}.json"
    containers.name_devices(path=path, gpu_uuids=gpu_uuids, shown=tmp_path)
    yield path
    path.unlink()
    if made:
        CDI_DIRECTORY.rmdir()


@pytest.fixture
def gpu_uuids(journal: nvml.Journal) -> list[str]:
    reader = ChildReader(boottime_seconds=time.monotonic)
    try:
        return [identity.uuid for identity in reader.identify()]
    finally:
        reader.close()


@pytest.fixture
def tenant(tmp_path: Path) -> Path:
    """The tenant's private key; its public one lies beside it."""
    key = tmp_path / "tenant"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


@pytest.fixture
def provisioner(podman: Podman, cdi: Path, tmp_path: Path) -> ContainerProvisioner:
    options = Options(
        runtime="podman",
        ssh_host="127.0.0.1",
        image=IMAGE,
        runtime_flags=podman.flags,
        run_flags=RUN_FLAGS,
    )
    return ContainerProvisioner(options=options, directory=tmp_path / "leases", machine=measure())


def log_in(access: Access, key: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-i", str(key), "-p", str(access.port), "-o", "IdentitiesOnly=yes",
         "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
         "-o", "LogLevel=ERROR", f"{access.username}@{access.host}", command],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def a_grant(gpu_uuids: list[str], tenant: Path, *, lease_id: str = "lease-1") -> Grant:
    return Grant(
        lease_id=lease_id,
        lease_epoch=1,
        gpu_uuids=gpu_uuids,
        not_before=AT,
        not_after=AT + dt.timedelta(hours=1),
        desired_state=DesiredState.RUN,
        ssh_public_keys=[tenant.with_suffix(".pub").read_text().strip()],
    )


def hand_over(provisioner: ContainerProvisioner, grant: Grant) -> Access:
    provisioner.prepare(grant=grant)
    return provisioner.start(grant=grant)


class TestPodman:
    def test_lets_the_tenant_in_and_nobody_else(
        self, provisioner: ContainerProvisioner, podman: Podman, gpu_uuids: list[str],
        tenant: Path, tmp_path: Path,
    ) -> None:  # fmt: skip
        grant = a_grant(gpu_uuids[:1], tenant)
        access = hand_over(provisioner, grant)
        try:
            inside = log_in(access, tenant, "id -u; ls /given")
            assert inside.stdout == f"0\n{gpu_uuids[0]}\n", inside.stderr
            scanned = subprocess.run(
                ["ssh-keyscan", "-t", "ed25519", "-p", str(access.port), access.host],
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            shown = subprocess.run(
                ["ssh-keygen", "-l", "-f", "-"], input=scanned.stdout, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            assert access.host_key_fingerprint in shown.stdout.split()
            stranger = tmp_path / "stranger"
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True
            )
            assert log_in(access, stranger, "id").returncode != 0
        finally:
            provisioner.stop(grant=grant)
            provisioner.destroy(grant=grant)
        assert podman.left() == NOTHING
        assert list((tmp_path / "leases").glob("*")) == []

    def test_shuts_the_tenant_in(
        self, provisioner: ContainerProvisioner, gpu_uuids: list[str], tenant: Path
    ) -> None:
        grant = a_grant(gpu_uuids[:1], tenant)
        access = hand_over(provisioner, grant)
        try:
            status = log_in(access, tenant, "cat /proc/1/status").stdout
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert facts["NoNewPrivs"].strip() == "1"
            sys_admin = 1 << 21
            assert int(facts["CapBnd"], 16) & sys_admin == 0
            wrote = log_in(access, tenant, "echo x > /run/headroom/authorized_keys")
            assert wrote.returncode != 0
        finally:
            provisioner.stop(grant=grant)
            provisioner.destroy(grant=grant)

    def test_keeps_tenants_apart(
        self, provisioner: ContainerProvisioner, podman: Podman, gpu_uuids: list[str], tenant: Path
    ) -> None:
        grants = [
            a_grant([uuid], tenant, lease_id=f"lease-{number}")
            for number, uuid in enumerate(gpu_uuids)
        ]
        try:
            first, _ = (hand_over(provisioner, grant) for grant in grants)
            other = "headroom-lease-1-1"
            address = podman.run(
                "inspect",
                "--format",
                "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                other,
            ).strip()
            from_the_host = subprocess.run(
                ["ssh-keyscan", "-p", "2222", address], capture_output=True, text=True, timeout=30,
                check=True,
            )  # fmt: skip
            assert "ssh-ed25519" in from_the_host.stdout  # somebody does listen there
            reached = log_in(first, tenant, f"wget -q -T 3 -O - http://{address}:2222/")
            assert reached.returncode != 0
            assert "SSH-" not in reached.stdout + reached.stderr
        finally:
            for grant in grants:
                provisioner.stop(grant=grant)
                provisioner.destroy(grant=grant)
        assert podman.left() == NOTHING

    def test_finds_every_container_again(
        self, provisioner: ContainerProvisioner, gpu_uuids: list[str], tenant: Path
    ) -> None:
        grant = a_grant(gpu_uuids, tenant)
        access = hand_over(provisioner, grant)
        try:
            (found,) = provisioner.list_leases()
            assert (found.lease_id, found.lease_epoch) == ("lease-1", 1)
            assert found.gpu_uuids == gpu_uuids
            assert provisioner.inspect(grant=grant) is Presence.RUNNING
            assert provisioner.start(grant=grant) == access
        finally:
            provisioner.stop(grant=grant)
            provisioner.stop(grant=grant)
            provisioner.destroy(grant=grant)
            provisioner.destroy(grant=grant)
        assert provisioner.list_leases() == []


class TestAgent:
    @pytest.fixture
    def rig(
        self, rig: Rig, provisioner: ContainerProvisioner, journal: nvml.Journal
    ) -> Iterator[Rig]:
        rig.provisioner = provisioner
        rig.reader = reader = ChildReader(boottime_seconds=time.monotonic)
        yield rig
        for found in provisioner.list_leases() or ():
            over = Grant(
                lease_id=found.lease_id, lease_epoch=found.lease_epoch, gpu_uuids=[], not_before=AT,
                not_after=AT, desired_state=DesiredState.STOP,
            )  # fmt: skip
            provisioner.stop(grant=over)
            provisioner.destroy(grant=over)
        reader.close()

    def test_lives_through_a_whole_lease(
        self, rig: Rig, market: FakeMarket, podman: Podman, provisioner: ContainerProvisioner,
        journal: nvml.Journal, tenant: Path,
    ) -> None:  # fmt: skip
        enrolled(rig)
        key = tenant.with_suffix(".pub").read_text().strip()
        market.grants = [replace(grant(market), ssh_public_keys=[key])]
        rig.live(seconds=60)
        given = by_kind(market)[ReceiptKind.HANDOVER]
        assert given.access is not None
        assert given.access.host_key_fingerprint
        assert given.evidence is not None
        assert given.evidence.container_sha256
        assert all(check.passed is not False for check in given.evidence.checks)
        assert log_in(given.access, tenant, "id -u").stdout == "0\n"

        (pid,) = podman.run("inspect", "--format", "{{.State.Pid}}", "headroom-lease-1-1").split()
        journal.start_process(0, pid=int(pid), memory_bytes=40 << 30)
        owner_of = owner_by_cgroup(lease_ids_by_mark=provisioner.cgroup_marks())
        assert owner_of(int(pid)) == ProcessOwner(lease_id="lease-1")
        assert owner_of(os.getpid()) == ProcessOwner(lease_id=None)

        rig.restart()  # the container outlives the agent
        rig.live(seconds=30)
        assert log_in(given.access, tenant, "id -u").stdout == "0\n"

        journal.set(0, power_limit=300_000)
        rig.live(seconds=115)
        assert podman.left() == NOTHING
        assert last_states(market)["lease-1", 1][0] is LeaseState.STOPPING
        journal.end_process(0)  # the driver lets go
        rig.live(seconds=30)
        returned = by_kind(market)[ReceiptKind.RETURN]
        assert returned.at == market.grants[0].not_after
        assert returned.clean, returned.detail
        assert last_states(market)["lease-1", 1] == (LeaseState.ENDED, "")

    def test_ends_what_no_book_tells_of(
        self, rig: Rig, market: FakeMarket, podman: Podman, provisioner: ContainerProvisioner,
        gpu_uuids: list[str], tenant: Path,
    ) -> None:  # fmt: skip
        hand_over(provisioner, a_grant(gpu_uuids, tenant, lease_id="lease-of-yesterday"))
        enrolled(rig)
        assert podman.left() == NOTHING
        assert provisioner.list_leases() == []
