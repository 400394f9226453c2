"""The verbs of a lease's container: each may be called again at any point and ends in the same state."""

from __future__ import annotations

import hashlib
import logging
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.node.provision import (
    Capabilities,
    Found,
    Presence,
    ProvisionAgain,
    ProvisionFailed,
)
from agents.node.provision.container import cdi, keys
from agents.node.provision.container.argv import (
    LABEL,
    NAME_PREFIX,
    SSH_USER,
    digest_of,
    image_of,
    name_of,
    network_argv,
    run_argv,
)
from agents.node.provision.container.cli import Cli, Done, end, failed
from agents.node.provision.container.machine import Machine
from agents.node.provision.container.options import Options
from agents.node.provision.container.seen import ABSENT, Seen, look
from agents.protocol import Access, Grant

logger = logging.getLogger(__name__)

CALL_SECONDS_MAX = 60.0  # a verb of the runtime that works on what is on the disk
RUN_SECONDS_MAX = 120.0  # the slowest device hooks known take 25 s without persistence
PULL_SECONDS_MAX = 1800.0
PULL_LOOK_SECONDS = 5.0  # how long one call of `prepare` waits for a pull
STOP_GRACE_SECONDS = 20  # from TERM to KILL
SSHD_SECONDS_MAX = 90.0
SSHD_LOOKS_PER_CALL, SSHD_LOOK_SECONDS = 20, 0.1
PORT_TRIES_MAX = 8
LOG_LINES = 5  # of a container that ended at once, as the reason for the owner

_NAME_TAKEN = ("already in use by", "is already in use", "name is already used")
_PORT_TAKEN = ("address already in use", "port is already allocated", "bind: ")
_NETWORK_THERE = ("already exists", "already used")


@dataclass(slots=True, kw_only=True)
class _Pull:
    process: subprocess.Popen[str]
    began: float


class ContainerProvisioner:
    """Gives each lease a container of its own, with its share of the machine."""

    blocking = True

    def __init__(
        self,
        *,
        options: Options,
        directory: Path,
        machine: Machine,
        cdi_directories: Iterable[Path] = cdi.DIRECTORIES,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        seconds_max: float = CALL_SECONDS_MAX,
    ) -> None:
        self._options = options
        self._directory = directory
        self._machine = machine
        self._cdi_directories = tuple(cdi_directories)
        self._monotonic = monotonic
        self._sleep = sleep
        self._seconds_max = seconds_max
        self._home = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        self._cli = Cli(program=options.runtime, kind=options.kind, flags=options.runtime_flags)
        self._version = ""
        self._pulls: dict[str, _Pull] = {}
        self._pulling = threading.Lock()  # two leases may want one image
        self._started: dict[str, float] = {}

    # --- what there is ----------------------------------------------------------------------------

    def probe(self) -> Capabilities:
        """Say which runtime is here and which GPUs it can be asked for."""
        devices = cdi.devices(directories=self._cdi_directories)
        try:
            version = self._checked_version()
        except ProvisionFailed as error:
            return Capabilities(kind="container", devices=devices, problem=str(error))
        return Capabilities(
            kind="container", version=f"{self._options.kind} {version}", devices=devices
        )

    def list_leases(self) -> Sequence[Found]:
        """Return every lease of this agent that has a container, or a directory, here.

        :raises ProvisionFailed: when the runtime does not answer.
        """
        found: dict[str, Found] = {}
        for path in sorted(self._directory.glob(f"{NAME_PREFIX}*")):
            lease_id, _, epoch = path.name.removeprefix(NAME_PREFIX).rpartition("-")
            if lease_id and epoch.isdigit():
                found[path.name] = Found(lease_id=lease_id, lease_epoch=int(epoch))
        ids = self._call(
            "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}.home={self._home}"
        ).output.split()
        for container_id in ids:
            seen = self._look(container_id)
            if seen is None:
                continue  # it went away since `ps`
            said = seen.labels
            lease_id, epoch = said.get(f"{LABEL}.lease", ""), said.get(f"{LABEL}.epoch", "")
            if lease_id and epoch.isdigit():
                gpus = [uuid for uuid in said.get(f"{LABEL}.gpus", "").split(",") if uuid]
                lease = Found(lease_id=lease_id, lease_epoch=int(epoch), gpu_uuids=gpus)
                found[name_of(lease_id=lease_id, lease_epoch=int(epoch))] = lease
        return list(found.values())

    def inspect(self, *, grant: Grant) -> Presence:
        """Say how the lease's container is."""
        name = _name(grant)
        seen = self._look(name)
        if seen is None:
            return Presence.PREPARING if (self._directory / name).exists() else Presence.ABSENT
        if seen.runs:
            return Presence.RUNNING
        if seen.status in ("exited", "stopped"):
            return Presence.EXITED
        return Presence.FAILED if seen.status == "dead" else Presence.PREPARING

    def cgroup_marks(self) -> Mapping[str, str]:
        """Return the leases by the ids of their containers, which the names of control groups hold."""
        marks: dict[str, str] = {}
        for path in self._directory.glob(f"{NAME_PREFIX}*/{keys.ID_FILE}"):
            lease_id = path.parent.name.removeprefix(NAME_PREFIX).rpartition("-")[0]
            try:
                marks[path.read_text(encoding="ascii")] = lease_id
            except (
                OSError,
                UnicodeDecodeError,
            ) as error:  # it is being destroyed, or the disk is ill
                logger.warning("cannot tell the container of %s: %s", lease_id, error)
        return {mark: lease_id for mark, lease_id in marks.items() if mark}

    def config_sha256(self, *, grant: Grant) -> str | None:
        """Return the digest of the arguments that the running container was started with."""
        seen = self._look(_name(grant))
        if seen is None:
            return None
        return digest_of(arguments=self._arguments(grant, seen.port))

    # --- handover -----------------------------------------------------------------------------------

    def prepare(self, *, grant: Grant) -> None:
        """Fetch the image, make the network and the keys.

        :raises ProvisionAgain: while the image is being fetched.
        """
        name = _name(grant)
        self._checked_version()
        missing = set(grant.gpu_uuids) - cdi.devices(directories=self._cdi_directories)
        if missing:
            raise ProvisionFailed(
                f"no CDI device for {', '.join(sorted(missing))}:"
                " run `nvidia-ctk cdi generate --device-name-strategy=uuid`"
            )
        keys.write(directory=self._keys(name), public_keys=grant.ssh_public_keys)
        with self._pulling:
            self._fetch(image_of(grant=grant, options=self._options))
        if self._try("network", "inspect", name).status == 0:
            return
        done = self._try(*network_argv(grant=grant, options=self._options, home=self._home))
        if done.status and not done.says(_NETWORK_THERE):
            raise failed(what="the lease's network cannot be made", done=done)

    def start(self, *, grant: Grant) -> Access:
        """Run the container, unless it runs, and wait until its sshd answers.

        :raises ProvisionAgain: while sshd does not answer yet.
        """
        name = _name(grant)
        seen = self._look(name)
        if seen is not None and not seen.runs:
            # Of an earlier boot, or of a start that was cut short: nobody was let in yet.
            self._call("rm", "--force", "--volumes", name)
            seen = None
        if seen is None:
            seen = self._run(grant, name)
        keys.remember_container(directory=self._keys(name), container_id=seen.container_id)
        if not self._answers(seen.port):
            self._not_yet(name)
        self._started.pop(name, None)
        return Access(
            host=self._options.ssh_host,
            port=seen.port,
            username=SSH_USER,
            host_key_fingerprint=keys.fingerprint(directory=self._keys(name)),
        )

    # --- return ---------------------------------------------------------------------------------------

    def stop(self, *, grant: Grant) -> None:
        """End the container: TERM, and KILL after the grace time.

        :raises ProvisionFailed: when it still runs.
        """
        name = _name(grant)
        seen = self._look(name)
        if seen is None or not seen.runs:
            return
        grace = ("--time", str(STOP_GRACE_SECONDS))
        done = self._try("stop", *grace, name, seconds_max=STOP_GRACE_SECONDS + self._seconds_max)
        seen = self._look(name)
        if seen is not None and seen.runs:
            done = self._try("kill", "--signal", "KILL", name)
            seen = self._look(name)
        if seen is not None and seen.runs:
            raise failed(what=f"the container {name} does not stop", done=done)

    def destroy(self, *, grant: Grant) -> None:
        """Remove container, volumes, network and keys.

        :raises ProvisionFailed: when something is left.
        """
        name = _name(grant)
        self._forget_pull(grant)
        self._started.pop(name, None)
        done = self._try("rm", "--force", "--volumes", name)
        if self._look(name) is not None:
            raise failed(what=f"the container {name} cannot be removed", done=done)
        if self._try("network", "inspect", name).status == 0:
            done = self._try("network", "rm", name)
            if done.status and not done.says(ABSENT):
                raise failed(what=f"the network {name} cannot be removed", done=done)
        keys.remove(directory=self._directory / name)

    # --- steps ----------------------------------------------------------------------------------------

    def _run(self, grant: Grant, name: str) -> Seen:
        for port in self._ports(grant):
            done = self._try(*self._arguments(grant, port), seconds_max=RUN_SECONDS_MAX)
            if done.status == 0:
                self._started[name] = self._monotonic()
                break
            if done.says(_NAME_TAKEN):  # another call of ours was quicker
                break
            self._try("rm", "--force", "--volumes", name)  # what was made before it failed
            if not done.says(_PORT_TAKEN):
                raise failed(what="the container does not start", done=done)
        else:
            raise ProvisionFailed(
                f"no free port for ssh after {PORT_TRIES_MAX} tries in"
                f" {self._options.ports.start}-{self._options.ports.stop - 1}"
            )
        seen = self._look(name)
        if seen is None:
            raise ProvisionFailed(f"the container {name} went away as it started")
        return seen

    def _not_yet(self, name: str) -> None:
        """Say why nobody can log in: the container ended, or sshd needs more time, or had enough.

        :raises ProvisionFailed: when it will not come.
        :raises ProvisionAgain: when it may.
        """
        seen = self._look(name)
        if seen is None or not seen.runs:
            log = self._try("logs", "--tail", str(LOG_LINES), name)
            told = Done(status=log.status, output="", errors=log.output + log.errors)
            raise failed(what="the container ended before anybody could log in", done=told)
        began = self._started.setdefault(name, self._monotonic())
        if self._monotonic() - began > SSHD_SECONDS_MAX:
            raise ProvisionFailed(f"sshd in the container did not answer in {SSHD_SECONDS_MAX:g} s")
        raise ProvisionAgain("waits for sshd in the container", after_seconds=1.0)

    def _answers(self, port: int) -> bool:
        """Return whether an ssh server greets on the published port; a mere connection is a proxy's."""
        for tries in range(SSHD_LOOKS_PER_CALL):
            if tries:
                self._sleep(SSHD_LOOK_SECONDS)
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                    if connection.recv(4) == b"SSH-":
                        return True
            except OSError:
                continue  # nobody listens yet: the next look tells
        return False

    def _fetch(self, image: str) -> None:
        """Have the image here; a pull that takes long goes on between the calls."""
        pull = self._pulls.get(image)
        if pull is None:
            if self._try("image", "inspect", "--format", "{{.Id}}", image).status == 0:
                return
            logger.info("fetching the image %s", image)
            process = self._cli.start(arguments=["pull", "--quiet", image])
            pull = self._pulls[image] = _Pull(process=process, began=self._monotonic())
        try:
            output, errors = pull.process.communicate(timeout=PULL_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if self._monotonic() - pull.began <= PULL_SECONDS_MAX:
                raise ProvisionAgain(f"fetches the image {image}", after_seconds=1.0) from None
            end(process=self._pulls.pop(image).process)
            raise ProvisionFailed(
                f"the image {image} was not fetched in {PULL_SECONDS_MAX:g} s"
            ) from None
        self._pulls.pop(image, None)
        if pull.process.returncode:
            done = Done(status=pull.process.returncode, output=output, errors=errors)
            raise failed(what=f"the image {image} cannot be fetched", done=done)

    def _forget_pull(self, grant: Grant) -> None:
        with self._pulling:
            pull = self._pulls.pop(grant.image or self._options.image, None)
            if pull is not None:
                end(process=pull.process)  # another lease that waits for it begins anew

    # --- the runtime ----------------------------------------------------------------------------------

    def _arguments(self, grant: Grant, port: int) -> list[str]:
        return run_argv(
            grant=grant,
            options=self._options,
            machine=self._machine,
            gpu_count=sum(
                device.startswith("GPU-")
                for device in cdi.devices(directories=self._cdi_directories)
            ),
            home=self._home,
            keys=self._keys(_name(grant)).resolve(),
            port=port,
        )

    def _ports(self, grant: Grant) -> list[int]:
        """Return the ports to try, from one that the lease draws on; ports in use are left out."""
        ports = self._options.ports
        first = zlib.crc32(_name(grant).encode())
        tries = (ports[(first + i) % len(ports)] for i in range(len(ports)))
        free: list[int] = []
        for port in tries:
            if len(free) == min(PORT_TRIES_MAX, len(ports)):
                break
            if _is_free(port):
                free.append(port)
        return free

    def _keys(self, name: str) -> Path:
        return self._directory / name

    def _checked_version(self) -> str:
        self._version = self._version or self._cli.version(seconds_max=self._seconds_max)
        return self._version

    def _look(self, name: str) -> Seen | None:
        return look(cli=self._cli, name=name, seconds_max=self._seconds_max)

    def _try(self, *arguments: str, seconds_max: float | None = None) -> Done:
        return self._cli.run(
            arguments=arguments,
            seconds_max=self._seconds_max if seconds_max is None else seconds_max,
        )

    def _call(self, *arguments: str) -> Done:
        done = self._try(*arguments)
        if done.status:
            raise failed(what=f"{self._options.kind} {arguments[0]} failed", done=done)
        return done


def _name(grant: Grant) -> str:
    return name_of(lease_id=grant.lease_id, lease_epoch=grant.lease_epoch)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
