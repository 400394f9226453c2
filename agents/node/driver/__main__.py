"""`python -m agents.node.driver EVENTS`: be the child; EVENTS is the descriptor to write events to."""

from __future__ import annotations

import os
import sys
from functools import partial

from agents.node.driver.service import Service, serve
from agents.node.nvml import Driver


def main() -> None:
    """Serve the parent."""
    write_event = partial(os.write, int(sys.argv[1]))
    serve(
        service=Service(driver=Driver(), write_event=write_event),
        requests=sys.stdin.buffer,
        answers=sys.stdout.buffer,
    )


if __name__ == "__main__":
    main()
