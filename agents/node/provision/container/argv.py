"""The argument lists of a lease's container, as pure functions of the grant, the settings and the machine."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from agents.node.provision import ProvisionFailed
from agents.node.provision.container.machine import Machine
from agents.node.provision.container.options import Options
from agents.protocol import Grant, canonical_json

NAME_PREFIX = "headroom-"
LABEL = "headroom"
SSH_PORT = 2222  # inside; above 1024, so that sshd needs no capability to listen there
SSH_USER = "root"  # of the container: a tenant installs packages
KEYS_INSIDE = "/run/headroom"

# What sshd needs to log a user in (change user and root, own a terminal, end a session) and a tenant to
# install packages; none of them reaches out of the container.
CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SYS_CHROOT",
)  # fmt: skip
# One part in so many of the memory stays with the host: page cache, driver, agent.
HOST_MEMORY_PART = 16
MEMORY_BYTES_MIN = 512 * 1024**2
# Half of the memory, as tmpfs has by default: data loaders share batches through it.
SHM_PART = 2
PROCESSES_PER_GPU = 8192  # data loaders and compilers; a fork bomb ends here
_LEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", flags=re.ASCII)
_DEVICE = re.compile(r"(?:GPU|MIG)-[A-Za-z0-9-]{1,80}", flags=re.ASCII)


def name_of(*, lease_id: str, lease_epoch: int) -> str:
    """Return the name of a lease's container, network and directory.

    :raises ProvisionFailed: when the id cannot be part of a name.
    """
    if not _LEASE_ID.fullmatch(lease_id):
        raise ProvisionFailed(f"the lease's id cannot name a container: {lease_id[:100]!r}")
    return f"{NAME_PREFIX}{lease_id}-{lease_epoch}"


def image_of(*, grant: Grant, options: Options) -> str:
    """Return the image of a lease: the tenant's where the owner allows it, else the owner's.

    :raises ProvisionFailed: when there is none, or the owner does not allow it.
    """
    image = grant.image or options.image
    if not image:
        raise ProvisionFailed("no image: neither the lease nor the node's settings name one")
    if image.startswith("-") or any(c.isspace() for c in image):
        raise ProvisionFailed(f"not the name of an image: {image[:100]!r}")
    allowed = (options.image, *options.image_prefixes) if options.image else options.image_prefixes
    # A prefix ends at a border of the name, so that `example.com/cuda` lets no `example.com/cuda-evil` in.
    if not any(
        image == p or image.startswith(p if p.endswith("/") else (f"{p}/", f"{p}:", f"{p}@"))
        for p in allowed
    ):
        raise ProvisionFailed(f"the owner of this node does not allow the image {image[:200]}")
    return image


def entry_of(*, options: Options) -> tuple[str, ...]:
    """Return the command that serves ssh: the owner's, else the sshd of the image."""
    return options.entry or (
        "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(SSH_PORT),
        "-h", f"{KEYS_INSIDE}/host_key",
        "-o", f"AuthorizedKeysFile={KEYS_INSIDE}/authorized_keys",
        "-o", "PasswordAuthentication=no", "-o", "KbdInteractiveAuthentication=no",
        "-o", "PermitRootLogin=prohibit-password", "-o", "PidFile=none",
        "-o", "Subsystem=sftp internal-sftp",
    )  # fmt: skip


def run_argv(
    *,
    grant: Grant,
    options: Options,
    machine: Machine,
    gpu_count: int,
    home: str,
    keys: Path,
    port: int,
) -> list[str]:
    """Return the arguments of `run`, after the runtime's own flags.

    CPU and memory are the share of the machine that the lease's GPUs are of its `gpu_count` GPUs.

    :raises ProvisionFailed: when a GPU's name or the image cannot be used.
    """
    name = name_of(lease_id=grant.lease_id, lease_epoch=grant.lease_epoch)
    for device in grant.gpu_uuids:
        if not _DEVICE.fullmatch(device):
            raise ProvisionFailed(f"not the UUID of a GPU: {device[:100]!r}")
    image = image_of(grant=grant, options=options)
    share = min(1.0, len(grant.gpu_uuids) / max(1, gpu_count))
    lettable = machine.memory_bytes - machine.memory_bytes // HOST_MEMORY_PART
    memory = max(MEMORY_BYTES_MIN, int(lettable * share))
    files, locked = machine.open_files_max, machine.locked_bytes_max
    arguments = ["run", "--detach", "--pull", "never", "--name", name, "--hostname", name[:63]]
    for key, value in labels(grant=grant, home=home, port=port).items():
        arguments += ["--label", f"{key}={value}"]
    for device in grant.gpu_uuids:
        arguments += ["--device", f"nvidia.com/gpu={device}"]
    arguments += ["--cap-drop", "all"]
    for capability in CAPABILITIES:
        arguments += ["--cap-add", capability]
    arguments += ["--security-opt", "no-new-privileges", "--restart", "no"]
    arguments += ["--stop-signal", "TERM", "--network", name]
    arguments += ["--publish", f"{port}:{SSH_PORT}"]
    arguments += ["--cpus", f"{max(0.5, machine.cpu_count * share):.2f}"]
    arguments += ["--memory", str(memory), "--shm-size", str(memory // SHM_PART)]
    arguments += ["--pids-limit", str(PROCESSES_PER_GPU * max(1, len(grant.gpu_uuids)))]
    arguments += ["--ulimit", f"nofile={files}:{files}", "--ulimit", f"memlock={locked}:{locked}"]
    arguments += ["--volume", f"{keys}:{KEYS_INSIDE}:ro", "--tmpfs", "/run/sshd:mode=0755"]
    arguments += options.run_flags
    return [*arguments, image, *entry_of(options=options)]


def labels(*, grant: Grant, home: str, port: int) -> dict[str, str]:
    """Return what a container says of itself; `home` tells the agents of one machine apart."""
    return {
        f"{LABEL}.home": home,
        f"{LABEL}.lease": grant.lease_id,
        f"{LABEL}.epoch": str(grant.lease_epoch),
        f"{LABEL}.gpus": ",".join(grant.gpu_uuids),
        f"{LABEL}.port": str(port),
    }


def network_argv(*, grant: Grant, options: Options, home: str) -> list[str]:
    """Return the arguments that make a lease's own network, from which no other container is reached."""
    name = name_of(lease_id=grant.lease_id, lease_epoch=grant.lease_epoch)
    apart = (
        ["--opt", "com.docker.network.bridge.enable_icc=false"]
        if options.kind == "docker"
        else ["--opt", "isolate=true", "--disable-dns"]
    )
    return ["network", "create", *apart, "--label", f"{LABEL}.home={home}", name]


def digest_of(*, arguments: list[str]) -> str:
    """Return the SHA-256 of an argument list, which a receipt carries."""
    return hashlib.sha256(canonical_json(arguments)).hexdigest()
