"""Draws what a run has measured: `python -m tests.bench.plots [RESULTS.json]` writes SVG files. The same record makes
the same bytes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.channels import without
from tests.bench.curves import Plot, plots
from tests.bench.machine import ROOT
from tests.bench.report import Results

PLACE = ROOT / "tests" / "bench" / "plots"
SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "ringleader",  # otherwise ids differ from run to run
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
OURS = ("#0b5fa5", "#d1495b", "#2e8b57", "#7b4fa3", "#c77d0a", "#1b998b", "#444444")
PEERS = ("#888888", "#a0a0c0", "#b08968", "#8aa29e", "#c0a0a0", "#999933")
MARKERS = "os^Dv<"


def draw(results: Results, place: Path) -> list[Path]:
    """The files written."""
    import matplotlib as mpl

    mpl.use("svg")
    place.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        return [_draw(plot, place) for plot in plots(results.cases)]


def _draw(plot: Plot, place: Path) -> Path:
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator

    figure, axes = pyplot.subplots(figsize=(7.2, 3.9), layout="constrained")
    numbers = {True: 0, False: 0}
    for curve in plot.curves:
        number = numbers[curve.ours]
        numbers[curve.ours] += 1
        colour = OURS[number % len(OURS)] if curve.ours else PEERS[number % len(PEERS)]
        x, y = zip(*curve.points, strict=True)
        style: dict[str, Any] = {"linewidth": 1.8} if curve.ours else {"linewidth": 1.2, "linestyle": "--"}
        if len(curve.points) < 20:
            style |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(x, y, color=colour, label=curve.label, **style)
    if "x" in plot.logarithmic:
        axes.set_xscale("log")
    if "y" in plot.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif plot.name != "latency":
        axes.set_ylim(bottom=0)
    if plot.name != "latency":
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    if plot.ticks:
        axes.set_xticks(list(plot.ticks), list(plot.ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    figure.legend(loc="outside right upper")
    path = place / f"{plot.name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plots", description="Draws what was measured.")
    parser.add_argument("results", type=Path, nargs="?", help="a record (the newest in bench-results)")
    parser.add_argument("--output", type=Path, default=PLACE, help="directory of the SVG files (tests/bench/plots)")
    options = parser.parse_args(arguments)
    missing = without("matplotlib", "matplotlib")
    path = options.results or max(Path("bench-results").glob("*.json"), default=None)
    if missing or path is None:
        print(f"error: {missing or 'there is nothing in bench-results: run `make bench` first'}", file=sys.stderr)
        return 2
    for written in draw(msgspec.json.decode(path.read_bytes(), type=Results), options.output):
        print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
