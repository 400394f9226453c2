"""Tell systemd how the agent is (sd_notify(3)): that it has started, and that its loop still turns."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"
SEND_SECONDS_MAX = 1.0  # systemd reads its socket at once; a full one must not hold the loop


class Notifier:
    """Writes to the socket that the service manager named, or nowhere."""

    def __init__(self, *, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is one of the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False

    def tell(self, state: str) -> None:
        """Send one state; a service manager that cannot be reached is no reason to end."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_SECONDS_MAX)
                sock.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._failed:
                logger.warning("the service manager cannot be told %s: %s", state, error)
            self._failed = True
