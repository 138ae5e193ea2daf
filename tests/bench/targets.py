"""The targets, as data, and what a run says of them. Pure. None of them decides how the program ends: a busy machine is
not a defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tests.bench.measure import Outcome

MILLION = 1_000_000


@dataclass(frozen=True)
class Floor:
    """A figure that must not get worse than this. `over`: its ratio to this other one, `case: figure`, counts."""

    text: str
    key: str  # group/name of a case of ours
    figure: str
    limit: float
    at_least: bool = True
    over: str = ""


def _most(text: str, key: str, figure: str, limit: float, over: str = "") -> Floor:
    return Floor(text, key, figure, limit, False, over)


_TELL, _HOT, _COLD = "tell, 3 fields", "round trip, hot", "round trip, cold"
_KILL, _START, _FAN = "kill to next message/process", "start of 8 workers/process", "fan-out to 8 workers/process"

FLOORS = (
    Floor("raw 64 B, C ring, msg/s", "raw, 64 B/ring, C", "rate", 8 * MILLION),
    Floor("raw 64 B, times pyzmq PAIR", "raw, 64 B/ring, C", "rate", 12, over="raw, 64 B/pyzmq PAIR, ipc: rate"),
    Floor("raw 64 B, times Queue", "raw, 64 B/ring, C", "rate", 80, over="raw, 64 B/multiprocessing.Queue: rate"),
    Floor("tell at memory, msg/s", f"{_TELL}/memory", "rate", 2_300_000),
    Floor("tell at memory, batch handler, msg/s", f"{_TELL}/memory, batch handler", "rate", 3 * MILLION),
    Floor("tell at process, msg/s", f"{_TELL}/process", "rate", 2 * MILLION),
    Floor("tell at process, batch handler, msg/s", f"{_TELL}/process, batch handler", "rate", 2_500_000),
    Floor("tell at power, msg/s", f"{_TELL}/power", "rate", MILLION),
    _most("one message alone at power, times a bare fdatasync", "one message alone, power/send", "times bare", 2),
    Floor(
        "chain of four, hops per core used, times the pair's",
        "chain of workers, process/4 workers",
        "hops per core",
        0.6,
        over="chain of workers, process/2 workers: hops per core",
    ),
    _most("round trip hot, p50, us", f"{_HOT}/handlers, process", "p50", 8),
    _most(
        "round trip cold, times the bare doorbell",
        f"{_COLD}/handlers, process",
        "p50",
        1.3,
        f"{_COLD}/bare doorbell (floor): p50",
    ),
    Floor("fixed layout, batches in place, records/s", "fixed layout, 64 B/memory, 8,000 rows", "rate", 100 * MILLION),
    Floor("fixed layout, batches of 2 MB, records/s", "fixed layout, 64 B/memory", "rate", 100 * MILLION),
    Floor(
        "fixed layout, batches of 2 MB, times shared memory alone",
        "fixed layout, 64 B/memory",
        "rate",
        0.9,
        over="fixed layout, 64 B/memory alone (limit): rate",
    ),
    Floor("1 MiB payloads at memory, GB/s", "payload, 1 MiB/memory", "bytes", 5),
    _most("kill to next message, p50, ms", _KILL, "p50", 15),
    _most("kill to next message, p99, ms", _KILL, "p99", 50),
    _most("start of 8 workers, first in a program, ms", _START, "first in a program", 250),
    _most("start of 8 workers, again, ms", _START, "again", 250),
    _most("idle, % of a processor for each worker", "8 idle workers/process", "CPU of each worker", 0.1),
    _most("idle, the same of 16 workers with all edges", "64 handlers, all edges/process", "idle CPU of each", 0.1),
    _most("fan-out to 8, sender's CPU, times that to one", _FAN, "sender CPU, to 8", 2, f"{_FAN}: sender CPU, to 1"),
    Floor("ILM in memory over a Unix socket, msg/s", "ILM, 64 B each/memory", "rate", 100_000),
    Floor("ILM journalled over a Unix socket, msg/s", "ILM, 64 B each/journal, process", "rate", 50_000),
    _most("ILM, first message, p50, us", "ILM, first message/memory network", "p50", 1_000),
    _most("recovery of a million messages, ms", "recovery of 1,000,000 messages/process", "all of it", 1_000),
)

# Cases that nobody has written yet: their floors are there, and not measured. Take a key from here with its case.
AWAITED: frozenset[str] = frozenset()


class Verdict(msgspec.Struct, frozen=True):
    floor: str
    limit: float
    value: float | None  # None: it was not measured
    passed: bool | None


def verdicts(outcomes: Sequence[Outcome], floors: Sequence[Floor] = FLOORS) -> list[Verdict]:
    by_key = {f"{one.group}/{one.name}": one for one in outcomes}
    return [_verdict(by_key, floor) for floor in floors]


def _verdict(outcomes: Mapping[str, Outcome], floor: Floor) -> Verdict:
    value = _value(outcomes, floor.key, floor.figure)
    if floor.over and value is not None:
        key, _, figure = floor.over.rpartition(": ")
        other = _value(outcomes, key, figure)
        value = value / other if other else None
    passed = None if value is None else (value >= floor.limit if floor.at_least else value <= floor.limit)
    return Verdict(f"{floor.text} {'>=' if floor.at_least else '<='} {number(floor.limit)}", floor.limit, value, passed)


def _value(outcomes: Mapping[str, Outcome], key: str, figure: str) -> float | None:
    one = outcomes.get(key)
    return one.figures[figure].value if one is not None and figure in one.figures else None


def lines(floors: Sequence[Verdict]) -> list[str]:
    """One for each floor."""
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
