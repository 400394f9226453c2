"""`manage.py backtest`: replay demand through the pricing and placement code, beside other ways to price."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from scheduler.backtest import runs, traces
from scheduler.backtest.demand import GPUS, LOADS, SETS, TUNING_SEEDS

EXTRA = ("matplotlib", "rich", "scipy")
PROCESSES_DEFAULT = 2


class Command(BaseCommand):
    help = "Replay demand through the pricing and placement code, beside other ways to price and a bound."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sets",
            nargs="+",
            choices=sorted(SETS),
            help="which demand; the made-up sets by default",
        )
        parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
        parser.add_argument("--seeds", nargs="+", type=int, help="instead of each set's own")
        parser.add_argument(
            "--policies",
            nargs="+",
            choices=[*runs.POLICIES, *runs.SPOILED],
            default=[*runs.POLICIES, *runs.SPOILED],
        )
        parser.add_argument(
            "--counts",
            type=Path,
            help="CSV of hourly request counts of a real cluster, column `jobs`",
        )
        parser.add_argument(
            "--trace",
            type=Path,
            help=f"CSV of requests to replay instead: {', '.join(traces.REQUEST_COLUMNS)}",
        )
        parser.add_argument(
            "--gpus", type=int, default=GPUS, help="of the pool a trace is replayed on"
        )
        parser.add_argument(
            "--rooms",
            nargs="+",
            choices=list(runs.ROOMS),
            default=list(runs.ROOMS),
            help="counted: an ideal divisible pool, as the bars are; packed: the market's placement, slower",
        )
        parser.add_argument("--scenes", action="store_true", help="draw the two scenes and end")
        parser.add_argument(
            "--tune",
            action="store_true",
            help="find the best prices of the rivals on the tuning seeds",
        )
        parser.add_argument("--processes", type=int, default=PROCESSES_DEFAULT)
        parser.add_argument("--out", type=Path, default=settings.DATA_DIR / "backtest")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Django's signature
        if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
            raise CommandError(
                f"The backtest needs {' and '.join(missing)}, which the server does not: "
                "install the project's extra with `pip install '.[backtest]'`."
            )
        from scheduler.backtest import cli

        out: Path = options["out"]
        out.mkdir(parents=True, exist_ok=True)
        try:
            if options["scenes"]:
                written = cli.draw_scenes(out=out)
            elif options["tune"]:
                written = cli.tune(counts=options["counts"], out=out, seeds=TUNING_SEEDS)
            elif options["trace"] is not None:
                written = cli.replay_trace(
                    trace=options["trace"],
                    capacity=options["gpus"],
                    policies=options["policies"],
                    rooms=options["rooms"],
                    out=out,
                )
            else:
                written = cli.replay_grid(
                    sets=options["sets"]
                    or [
                        name for name, each in SETS.items() if not each.is_real or options["counts"]
                    ],
                    loads=options["loads"],
                    seeds=options["seeds"],
                    policies=options["policies"],
                    counts=options["counts"],
                    rooms=options["rooms"],
                    processes=options["processes"],
                    out=out,
                )
        except (OSError, traces.TraceUnreadable) as error:
            raise CommandError(str(error)) from None
        for path in written:
            self.stdout.write(f"wrote {path}")
