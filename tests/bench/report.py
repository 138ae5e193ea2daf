"""What a run of the benchmarks leaves: one record for machines, and two tables for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.table import Table

from tests.bench.machine import Machine, Revision
from tests.bench.measure import Outcome
from tests.bench.targets import Verdict, number

FORMAT = 1


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


def table(outcomes: Sequence[Outcome]) -> Table:
    """Everything that was measured."""
    shown = _table("Medians over the runs; lowest and highest run.", "work", "with", "figure")
    _numbers(shown, "median", "lowest", "highest")
    shown.add_column("unit")
    group = ""
    for one in _by_group(outcomes):
        if one.group != group:
            shown.add_section()
        name, style = one.name, "bold" if one.ours else None
        title, group = (one.group if one.group != group else ""), one.group
        if one.skipped:
            shown.add_row(title, name, f"not measured: {one.skipped.splitlines()[-1]}", style="dim")
        for figure, summary in one.figures.items():
            numbers = [number(summary.value), number(summary.low), number(summary.high)]
            shown.add_row(title, name, figure, *numbers, summary.unit, style=style)
            title = name = ""
    return shown


def ratios(outcomes: Sequence[Outcome]) -> Table:
    """Ours next to each peer. Above one, ours is better."""
    shown = _table("Ratios. Times: how many times better ringleader is.", "work", "ringleader", "peer", "figure")
    _numbers(shown, "ours", "peer's")
    shown.add_column("unit")
    shown.add_column("times", justify="right", style="bold")
    by_key = {f"{one.group}/{one.name}": one for one in outcomes}
    group = ""
    for one in _by_group(outcomes):
        if one.ours or not (one.ratios or one.skipped):
            continue
        if one.group != group:
            shown.add_section()
        title, group = (one.group if one.group != group else ""), one.group
        if one.skipped:
            shown.add_row(title, "", one.name, f"not measured: {one.skipped.splitlines()[-1]}", style="dim")
            continue
        ours, peer = by_key[one.versus], one.name
        name = ours.name
        for figure, ratio in one.ratios.items():
            mine, its = ours.figures[figure], one.figures[figure]
            numbers = [number(mine.value), number(its.value), its.unit, f"{number(ratio)} x"]
            shown.add_row(title, name, peer, figure, *numbers)
            title = name = peer = ""
    return shown


def _by_group(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Modules of cases share groups."""
    groups = [one.group for one in outcomes]
    return sorted(outcomes, key=lambda one: groups.index(one.group))


def _table(title: str, *columns: str) -> Table:
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column)
    return shown


def _numbers(shown: Table, *columns: str) -> None:
    for column in columns:
        shown.add_column(column, justify="right")
