"""The keys of this node: the one that signs, and another one while the market changes between them.

`node.key` signs. `node.key.next` is made before the market is asked to know the node by it; `node.key.old` is
what signed before. Both stay until a report under the new key was taken, because nobody can tell from a lost
answer which key the market knows: when one is refused, the other one is tried. A process that dies between
any two steps leaves both files, and its successor finds out in the same way.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from agents.node import ed25519
from agents.node.host import (
    NodeKey,
    StateUnusable,
    load_key,
    read_key,
    sync_directory,
    write_private,
)

_WISH = "rotate-key"

logger = logging.getLogger(__name__)


class KeyRing:
    """One or two keys in the state directory."""

    def __init__(self, *, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "node.key"
        self._next = directory / "node.key.next"
        self._old = directory / "node.key.old"
        self._main = load_key(directory=directory)
        self._other = self._found(self._next) or self._found(self._old)
        self._signing = self._main

    @property
    def public_key(self) -> str:
        """Return the public key of the key that signs, as base64url without padding."""
        return self._signing.public_key

    def sign(self, *, message: bytes) -> bytes:
        """Return the signature by the key that signs now."""
        return self._signing.sign(message=message)

    # --- changing -----------------------------------------------------------------------------------

    def is_change_wished(self) -> bool:
        """Return whether somebody asked for a new key by hand."""
        return (self._directory / _WISH).exists()

    def candidate(self) -> NodeKey:
        """Return the key that shall sign next; it is on the disk before anybody hears of it.

        :raises StateUnusable: when it cannot be written.
        """
        made = self._found(self._next)
        if made is None:
            try:
                write_private(self._next, secrets.token_bytes(ed25519.SEED_BYTES).hex())
            except OSError as error:
                raise StateUnusable(f"cannot write {self._next}: {error.strerror}") from None
            made = read_key(path=self._next)
        self._other = made
        return made

    def promote(self) -> None:
        """Sign with the candidate from now on; the key before it stays beside it.

        :raises StateUnusable: when the files cannot be renamed; the old key then is still in its place.
        """
        try:
            self._old.unlink(missing_ok=True)
            os.link(self._path, self._old)
            self._next.replace(self._path)
            sync_directory(self._directory)
            (self._directory / _WISH).unlink(missing_ok=True)
        except OSError as error:
            raise StateUnusable(f"cannot change the key: {error}") from None
        self._other, self._main = self._main, read_key(path=self._path)
        self._signing = self._main

    def was_refused(self) -> bool:
        """Sign with the other key, if there is one: the market does not know the one that signed."""
        if self._other is None:
            return False
        self._signing = self._other if self._signing is self._main else self._main
        logger.warning("the market does not know the key of this node; its other key is tried")
        return True

    def was_taken(self) -> None:
        """Keep the key that the market has just taken in its place.

        :raises StateUnusable: when the files cannot be renamed.
        """
        if self._other is None:
            return
        try:
            if self._signing is not self._main:
                if self._next.exists():
                    self.promote()
                    logger.info("the market knows this node by its new key")
                else:
                    self._old.replace(self._path)
                    sync_directory(self._directory)
                    self._main = self._signing
                    logger.warning("the market knows this node by its former key")
            self._old.unlink(missing_ok=True)
        except OSError as error:
            raise StateUnusable(f"cannot change the key: {error}") from None
        # A candidate that the market has not heard of stays for the next try.
        self._other = self._found(self._next)

    @staticmethod
    def _found(path: Path) -> NodeKey | None:
        return read_key(path=path) if path.exists() else None


def wish_change(*, directory: Path) -> None:
    """Ask the agent of this state directory for a new key, whether it runs or not.

    :raises StateUnusable: when the directory cannot be written.
    """
    try:
        (directory / _WISH).touch(mode=0o600)
    except OSError as error:
        raise StateUnusable(
            f"cannot use the state directory {directory}: {error.strerror}"
        ) from None
