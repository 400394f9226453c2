"""Run the stand-in as a program: `python -m tests.fakes.stripe --port 0 --webhook-url …`."""

import argparse
from pathlib import Path

from tests.fakes.stripe.server import SECRET, StandIn


def main() -> None:
    """Read the options and answer until the process is ended."""
    parser = argparse.ArgumentParser(prog="tests.fakes.stripe", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path, help="where what was done is kept")
    parser.add_argument("--webhook-url", help="where events are delivered")
    parser.add_argument("--webhook-secret", default=SECRET)
    options = parser.parse_args()
    stand_in = StandIn(port=options.port, journal=options.journal, secret=options.webhook_secret)
    stand_in.serve(webhook_url=options.webhook_url)


if __name__ == "__main__":
    main()
