"""What a benchmark is, and what becomes of its samples. Pure.

    case     one thing that is measured; `run` measures it once and returns its series
    series   named measurements of one run: a single rate, say, or the latency of every round trip
    figure   one number made of a series over all runs, and its unit
    group    the cases that are compared with each other; its first case of ours is what peers are compared with, but
             for those that name another one (`versus`)

A figure is the median, over the runs, of a quantile of each run's series; a pooled one is the quantile over the
measurements of all runs together, for what is too rare to have quantiles in a single run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

Series = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Scale:
    """How much is measured in one run. Counts are given for a whole run and shrink with `fraction`."""

    directory: Path  # for run directories and sockets; its disk is what level `power` waits for
    fraction: float = 1.0
    timeout: float = 120.0  # of one run of one case

    def count(self, whole: int, least: int = 1) -> int:
        return max(least, round(whole * self.fraction))

    def seconds(self, whole: float, least: float) -> float:
        return max(least, whole * self.fraction)


@dataclass(frozen=True)
class Figure:
    name: str
    series: str
    unit: str
    quantile: float = 0.5
    less_is_better: bool = True
    pooled: bool = False

    def of(self, runs: Sequence[Series]) -> Summary:
        """Of at least one run."""
        values = [quantile(run[self.series], self.quantile) for run in runs]
        value = statistics.median(values)
        if self.pooled:
            value = quantile([one for run in runs for one in run[self.series]], self.quantile)
        return Summary(value, min(values), max(values), self.unit)


RATE = Figure("rate", "rate", "msg/s", less_is_better=False)
P50 = Figure("p50", "trips", "us", 0.5)
P99 = Figure("p99", "trips", "us", 0.99)


class Summary(msgspec.Struct, frozen=True):
    """A figure's value, and its smallest and largest value in a single run."""

    value: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    run: Callable[[Scale], Series]
    figures: tuple[Figure, ...] = (RATE,)
    ours: bool = False
    missing: str = ""  # why it cannot be measured here
    versus: str = ""  # name of the case of ours, in the same group, that this peer is compared with

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


class Outcome(msgspec.Struct, frozen=True):
    """All that was measured of one case."""

    group: str
    name: str
    ours: bool
    skipped: str
    figures: dict[str, Summary]
    ratios: dict[str, float]  # figure -> how many times better ours is
    samples: list[dict[str, list[float]]]  # run by run
    versus: str = ""  # key of the case of ours that the ratios are to


@dataclass
class Sampled:
    """A case with the runs it had so far."""

    case: Case
    runs: list[Series] = field(default_factory=list)
    failed: str = ""


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest measured value that at least this part of them does not exceed; the median is interpolated."""
    if q == 0.5:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def outcomes(sampled: Iterable[Sampled]) -> list[Outcome]:
    found = list(sampled)
    figures = {one.case.key: {f.name: f.of(one.runs) for f in one.case.figures} for one in found if one.runs}
    reference: dict[str, str] = {}
    for one in found:
        if one.case.ours and one.runs:
            reference.setdefault(one.case.group, one.case.key)
    results = []
    for one in found:
        case, ratios = one.case, {}
        versus = f"{case.group}/{case.versus}" if case.versus else reference.get(case.group, "")
        mine = figures.get(case.key, {})
        if not case.ours:
            for figure in case.figures:
                if figure.name in mine and figure.name in figures.get(versus, {}):
                    a, b = figures[versus][figure.name].value, mine[figure.name].value
                    ratios[figure.name] = b / a if figure.less_is_better else a / b
        samples = [{name: list(values) for name, values in run.items()} for run in one.runs]
        why = case.missing or one.failed
        results.append(Outcome(case.group, case.name, case.ours, why, mine, ratios, samples, versus if ratios else ""))
    return results
