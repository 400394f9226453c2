"""A lease's own directory: the tenant's keys, a host key of its own, and the id of its container."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

from agents.node import ed25519
from agents.node.provision import ProvisionFailed

# A bare public key, without options: `command=` and the like would be the tenant's own business, but a line
# break would be a second key.
_PUBLIC_KEY = re.compile(
    r"(?:ssh-|ecdsa-sha2-|sk-)[A-Za-z0-9@.-]{1,60} [A-Za-z0-9+/=]{16,8192}(?: [^\x00-\x1f]{0,300})?",
    flags=re.ASCII,
)
ID_FILE = "container_id"
_KEY_TYPE = b"ssh-ed25519"
_BLOCK_BYTES = 8  # the padding of a private key without a cipher (PROTOCOL.key of OpenSSH)
_LINE_LENGTH = 70


def write(*, directory: Path, public_keys: Iterable[str]) -> str:
    """Write what sshd needs; return the host key's fingerprint. A second call keeps the host key.

    :raises ProvisionFailed: when a key is none, there is none, or the disk does not take them.
    """
    keys = [key.strip() for key in public_keys]
    for key in keys:
        if not _PUBLIC_KEY.fullmatch(key):
            raise ProvisionFailed(f"not an ssh public key: {key[:60]!r}")
    if not keys:
        raise ProvisionFailed("the lease names no ssh public key, so nobody could log in")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        host_key = directory / "host_key"
        if not host_key.exists():
            _write_private(host_key, _openssh_private_key(seed=secrets.token_bytes(32)))
        _write_private(directory / "authorized_keys", "".join(f"{key}\n" for key in keys))
        return fingerprint(directory=directory)
    except OSError as error:
        raise ProvisionFailed(f"cannot write the lease's keys: {error.strerror}") from None


def fingerprint(*, directory: Path) -> str:
    """Return the fingerprint of the lease's host key, as ssh prints it."""
    lines = (directory / "host_key").read_text().split("\n")
    blob = base64.b64decode("".join(line for line in lines if not line.startswith("-----")))
    start = blob.index(_string(_KEY_TYPE))
    public = blob[start : start + len(_public_blob(bytes(32)))]
    digest = hashlib.sha256(public).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def remember_container(*, directory: Path, container_id: str) -> None:
    """Write down which container the lease runs in, so that its processes are known by it.

    :raises ProvisionFailed: when the disk does not take it.
    """
    try:
        _write_private(directory / ID_FILE, container_id)
    except OSError as error:
        raise ProvisionFailed(f"cannot write the container's id: {error.strerror}") from None


def remove(*, directory: Path) -> None:
    """Remove a lease's directory; one that is not there is no mistake.

    :raises ProvisionFailed: when something of it stays.
    """
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ProvisionFailed(f"cannot remove the lease's keys: {error.strerror}") from None


def _write_private(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _public_blob(public: bytes) -> bytes:
    return _string(_KEY_TYPE) + _string(public)


def _openssh_private_key(*, seed: bytes) -> str:
    """Return an Ed25519 key without a passphrase in the format of PROTOCOL.key of OpenSSH."""
    public = ed25519.public_key(seed=seed)
    check = secrets.token_bytes(4)
    private = check + check + _public_blob(public) + _string(seed + public) + _string(b"")
    private += bytes(range(1, 1 + -len(private) % _BLOCK_BYTES))
    blob = b"openssh-key-v1\x00" + _string(b"none") + _string(b"none") + _string(b"")
    blob += struct.pack(">I", 1) + _string(_public_blob(public)) + _string(private)
    text = base64.b64encode(blob).decode()
    lines = [text[i : i + _LINE_LENGTH] for i in range(0, len(text), _LINE_LENGTH)]
    return "\n".join(
        ["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""]
    )
