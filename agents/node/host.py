"""Facts of the machine and the agent's own key: what says that a node is the one it was yesterday."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from agents.node import ed25519

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class StateUnusable(Exception):
    """The state directory cannot be used; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKey:
    """The private key of this node. The seed never leaves the state directory and is not printed."""

    seed: bytes = field(repr=False)

    @property
    def public_key(self) -> str:
        """Return the public key as base64url without padding, as enrolment wants it."""
        raw = ed25519.public_key(seed=self.seed)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def sign(self, *, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        return ed25519.sign(seed=self.seed, message=message)


def open_state(*, directory: Path) -> IO[str]:
    """Make the state directory, private to its owner, and lock it; the lock lives as long as the file.

    :raises StateUnusable: when it cannot be written, or another agent runs on it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise StateUnusable(
            f"cannot use the state directory {directory}: {error.strerror}"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateUnusable(f"another agent runs on the state directory {directory}") from None
    return lock


def load_key(*, directory: Path) -> NodeKey:
    """Return the key of this node; make one, readable by its owner alone, at the first start.

    :raises StateUnusable: when the file cannot be read or written, or holds no key.
    """
    path = directory / "node.key"
    try:
        if not path.exists():
            write_private(path, secrets.token_bytes(ed25519.SEED_BYTES).hex())
    except OSError as error:
        raise StateUnusable(f"cannot use the key file {path}: {error.strerror}") from None
    return read_key(path=path)


def read_key(*, path: Path) -> NodeKey:
    """Return the key in a file.

    :raises StateUnusable: when the file cannot be read, or holds no key.
    """
    try:
        seed = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise StateUnusable(f"cannot use the key file {path}: {error.strerror}") from None
    except ValueError:
        seed = b""
    if len(seed) != ed25519.SEED_BYTES:
        raise StateUnusable(f"{path} holds no key; remove it and enrol again with a new token")
    return NodeKey(seed=seed)


def simulated_machine_id(*, directory: Path) -> str:
    """Return the id of a simulated machine: drawn once, so that two on one host are two.

    :raises StateUnusable: when the file cannot be read or written.
    """
    path = directory / "simulated-machine-id"
    try:
        if not path.exists():
            write_private(path, secrets.token_hex(16))
        return f"simulated-{path.read_text().strip()}"
    except OSError as error:
        raise StateUnusable(f"cannot use {path}: {error.strerror}") from None


def machine_id() -> str | None:
    """Return a stable id of this machine, or `None` where it has none.

    The machine id of systemd is confidential (machine-id(5)), so it is hashed together with our own name.
    """
    for path in _MACHINE_ID_FILES:
        text = _read(path)
        if text:
            return hashlib.sha256(f"headroom-node/{text}".encode()).hexdigest()[:32]
    return None


def boot_id() -> str:
    """Return the id that the kernel drew when the machine started."""
    return _read(_BOOT_ID_FILE) or "unknown"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # not there, or not for this user: the caller has a second choice


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 that is either whole or not there."""
    draft = path.with_name(f"{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
