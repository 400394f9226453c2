"""Pictures of a backtest: the price and the use of every hour. Needs matplotlib, unlike the server."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scheduler.backtest.demand import Demand
from scheduler.backtest.engine import Outcome
from scheduler.backtest.scenes import CALM_HOURS, SHOCK_HOURS, Scene

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZE_INCHES = (8.0, 5.0)
DPI = 70  # small files: these are looked at on a page
DAY = 24
METADATA = {"Software": None}  # no version in the file: the same run gives the same bytes


def draw_scene(scene: Scene, *, path: Path) -> None:
    """Draw a scene's rates above, its use below."""
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=SIZE_INCHES, height_ratios=(2, 1)
    )
    days = np.arange(len(scene.firm)) / DAY
    above.step(days, scene.firm, where="post", label="firm, the running hour", linewidth=1.2)
    above.plot(days, scene.ahead, label="firm, mean of the next 7 days", linewidth=1.0)
    above.step(
        days, scene.reclaimable, where="post", label="reclaimable, the running hour", linewidth=1.0
    )
    for level, name in ((scene.cap, "cap"), (scene.base, "base"), (scene.floor, "floor")):
        above.axhline(level, color="grey", linewidth=0.6, linestyle=":")
        # In the margin, where no curve runs through it.
        above.annotate(
            name,
            (1.01, level),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            color="grey",
            va="center",
            annotation_clip=False,
        )
    above.set_ylabel("per GPU-hour")
    above.set_ylim(0, scene.cap * 1.08)
    above.legend(fontsize=7, loc="upper right", bbox_to_anchor=(0.97, 0.96))
    below.fill_between(days, scene.sold / scene.capacity, step="post", alpha=0.5)
    below.set_ylim(0, 1)
    below.set_ylabel("firm use")
    below.set_xlabel("day")
    end = (CALM_HOURS + SHOCK_HOURS if scene.name == "shock" else len(scene.firm)) / DAY
    for axes in (above, below):
        axes.axvspan(CALM_HOURS / DAY, end, color="orange", alpha=0.15, linewidth=0)
    above.set_title(
        "Demand five times as high for two days" if scene.name == "shock" else "No demand any more",
        fontsize=9,
    )
    _save(figure, path=path)


def draw_prices(outcomes: Sequence[tuple[str, Outcome]], *, demand: Demand, path: Path) -> None:
    """Draw the price that each hour began with, by policy."""
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    days = np.arange(demand.horizon_hours) / DAY
    for name, outcome in outcomes:
        axes.step(days, outcome.paid_at_start, where="post", label=name, linewidth=0.9)
    axes.set_ylabel("per GPU-hour")
    axes.set_xlabel("day")
    axes.set_title(demand.name, fontsize=9)
    axes.legend(fontsize=7)
    _save(figure, path=path)


def draw_use(outcomes: Sequence[tuple[str, Outcome]], *, demand: Demand, path: Path) -> None:
    """Draw the share of the pool that was sold in each hour, by policy."""
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    days = np.arange(demand.horizon_hours) / DAY
    for name, outcome in outcomes:
        axes.step(days, outcome.sold / demand.capacity, where="post", label=name, linewidth=0.9)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the pool sold")
    axes.set_xlabel("day")
    axes.set_title(demand.name, fontsize=9)
    axes.legend(fontsize=7)
    _save(figure, path=path)


def _save(figure: Figure, *, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, metadata=METADATA)
    plt.close(figure)
