"""How the idle rule does on eight workloads, beside rules of thumb: scripts at 1 s, looked at every 15 s.

    python -m tests.bench.bench_idle [--days 7]

Prints for each rule and workload: the share of the time in which the GPU is offered while somebody holds it,
the share of its true idle time that is found, and how many offers a day were taken back within ten minutes.
"""

import argparse
import sys
import time
from collections.abc import Callable

from tests.agents.node import traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=float, default=7)
    days = parser.parse_args().days
    rules: dict[str, Callable[[], traces.Rule]] = {
        "the agent's rule": traces.OurRule,
        **traces.RULES_OF_THUMB,
    }
    workloads = {**traces.WORKLOADS, **traces.IDLE_WORKLOAD}
    for rule_name, rule in rules.items():
        _write(f"\n{rule_name}, {days:g} days")
        _write(
            f"  {'workload':<26}{'idle %':>8}{'held+offered %':>16}{'found %':>9}{'short/day':>11}"
        )
        began_at = time.perf_counter()
        for name, workload in workloads.items():
            score = traces.rate(workload=workload, rule=rule(), days=days)
            found = score.found_percent
            _write(
                f"  {name:<26}{score.truly_idle_percent:>8.1f}"
                f"{score.offered_while_held_percent:>16.2f}"
                f"{'-' if found is None else f'{found:.1f}':>9}{score.short_offers_per_day:>11.1f}"
            )
        seconds = time.perf_counter() - began_at
        _write(f"  {seconds:.1f} s for {len(workloads) * days:g} days")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
