"""What a run of the benchmarks leaves: one record for machines, one table for people, and the floors. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.table import Table

from tests.bench.machine import Machine, Revision
from tests.bench.measure import Outcome

FORMAT = 1


@dataclass(frozen=True)
class Floor:
    """A figure that must not get worse than this. `against`: it is the ratio to this peer that counts."""

    text: str
    key: str  # group/name of a case of ours
    figure: str
    limit: float
    at_least: bool
    against: str = ""


FLOORS = (
    Floor("raw 64 B, C ring, times pyzmq PAIR", "raw, 64 B/ring, C", "rate", 8, True, "pyzmq PAIR, ipc"),
    Floor("tell at memory, msg/s", "tell, 3 fields/memory", "rate", 800_000, True),
    Floor("tell at process, msg/s", "tell, 3 fields/process", "rate", 600_000, True),
    Floor("kill to next message, p99, ms", "kill to next message/process", "p99", 100, False),
    Floor("ILM in memory over a Unix socket, msg/s", "ILM, 64 B each/memory", "rate", 100_000, True),
    Floor("ILM journalled over a Unix socket, msg/s", "ILM, 64 B each/journal, process", "rate", 50_000, True),
    Floor("ILM, first message, p50, us", "ILM, first message/memory network", "p50", 1_000, False),
    Floor(
        "recovery of a million pending messages, ms",
        "recovery of 1,000,000 messages/process",
        "all of it",
        1_000,
        False,
    ),
    Floor("8 idle workers, % of one processor", "8 idle workers/process", "CPU of the workers", 1, False),
)


class Verdict(msgspec.Struct, frozen=True):
    floor: str
    limit: float
    value: float | None  # None: it was not measured
    passed: bool | None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON output. New keys may be added; `format` grows when one changes its meaning."""

    format: int = FORMAT
    at: str  # UTC
    took_seconds: float
    machine: Machine
    versions: dict[str, str]
    revision: Revision
    options: dict[str, float]
    load: list[float]  # at the beginning of each run, and at the end
    cases: list[Outcome]
    floors: list[Verdict]


def verdicts(outcomes: Sequence[Outcome], floors: Sequence[Floor] = FLOORS) -> list[Verdict]:
    return [_verdict({f"{one.group}/{one.name}": one for one in outcomes}, floor) for floor in floors]


def _verdict(outcomes: dict[str, Outcome], floor: Floor) -> Verdict:
    one = outcomes.get(floor.key)
    value: float | None = None
    if one is not None and floor.against:
        peer = outcomes.get(f"{one.group}/{floor.against}")
        value = peer.ratios.get(floor.figure) if peer is not None else None
    elif one is not None and floor.figure in one.figures:
        value = one.figures[floor.figure].value
    passed = None if value is None else (value >= floor.limit if floor.at_least else value <= floor.limit)
    return Verdict(f"{floor.text} {'>=' if floor.at_least else '<='} {number(floor.limit)}", floor.limit, value, passed)


def table(outcomes: Sequence[Outcome]) -> Table:
    shown = Table(title="Medians over the runs; lowest and highest run. Times: how many times better ringleader is.")
    for title in ("work", "with", "figure"):
        shown.add_column(title)
    for title in ("median", "lowest", "highest", "times"):
        shown.add_column(title, justify="right")
    shown.add_column("unit")
    group = ""
    for one in sorted(outcomes, key=lambda one: [other.group for other in outcomes].index(one.group)):
        if one.group != group:
            shown.add_section()
        name, style = one.name, "bold" if one.ours else None
        title, group = (one.group if one.group != group else ""), one.group
        if one.skipped:
            shown.add_row(title, name, f"not measured: {one.skipped.splitlines()[-1]}", style="dim")
        for figure, summary in one.figures.items():
            ratio = one.ratios.get(figure)
            numbers = [number(summary.value), number(summary.low), number(summary.high)]
            times = "" if ratio is None else f"{number(ratio)} x"
            shown.add_row(title, name, figure, *numbers, times, summary.unit, style=style)
            title = name = ""
    return shown


def lines(floors: Sequence[Verdict]) -> list[str]:
    """One for each floor. None of them decides how the program ends: a busy machine is not a defect."""
    words = {None: "not measured", True: "pass", False: "FAIL"}
    return [
        f"{words[one.passed]:12} {one.floor}" + ("" if one.value is None else f": {number(one.value)}")
        for one in floors
    ]


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
