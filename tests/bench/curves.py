"""What is drawn: curves made of the record that a run leaves. Pure; `plots` draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.measure import Outcome, quantile
from tests.bench.payloads import TITLES

POINTS = 120  # of a distribution
BATCH = 256  # records at once, where the raw groups do not say


@dataclass(frozen=True)
class Curve:
    label: str
    points: tuple[tuple[float, float], ...]
    ours: bool


@dataclass(frozen=True)
class Plot:
    name: str  # of the file
    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    logarithmic: str = "xy"
    ticks: Mapping[float, str] = field(default_factory=dict)  # of the x axis


def plots(outcomes: Sequence[Outcome]) -> list[Plot]:
    """Those for which anything was measured."""
    found = [
        _sizes(outcomes, False),
        _sizes(outcomes, True),
        _batches(outcomes),
        _latency(outcomes),
        _workers(outcomes),
    ]
    return [one for one in found if one.curves]


def _measured(outcomes: Sequence[Outcome], figure: str) -> Iterator[tuple[Outcome, float]]:
    for one in outcomes:
        if figure in one.figures:
            yield one, one.figures[figure].value


def _curves(points: Mapping[str, list[tuple[float, float]]], ours: set[str]) -> tuple[Curve, ...]:
    made = [Curve(label, tuple(sorted(some)), label in ours) for label, some in points.items() if len(some) > 1]
    return tuple(sorted(made, key=lambda one: not one.ours))


# ------------------------------------------------------------------------------------------------ sizes
def _sizes(outcomes: Sequence[Outcome], in_bytes: bool) -> Plot:
    sizes = {title: size for size, title in TITLES.items()}
    points: dict[str, list[tuple[float, float]]] = {}
    ours: set[str] = set()
    for one, rate in _measured(outcomes, "rate"):
        kind, _, title = one.group.partition(", ")
        if kind not in {"raw", "payload"} or title not in sizes or one.name == "power":
            continue
        label = f"handlers, {one.name}" if one.name in {"memory", "process"} else one.name
        size = sizes[title]
        points.setdefault(label, []).append((size, rate * size if in_bytes else rate))
        if one.ours or one.name.startswith("ring"):
            ours.add(label)
    ticks = {float(size): title for size, title in TITLES.items()}
    if in_bytes:
        return Plot("bytes", "Bytes against message size", "message", "bytes/s", _curves(points, ours), ticks=ticks)
    return Plot("size", "Throughput against message size", "message", "messages/s", _curves(points, ours), ticks=ticks)


# ------------------------------------------------------------------------------------------------ batches
def _batches(outcomes: Sequence[Outcome]) -> Plot:
    points: dict[str, list[tuple[float, float]]] = {}
    ours: set[str] = set()
    for one, rate in _measured(outcomes, "rate"):
        _, _, most = one.group.partition("batches of ")
        if one.group.endswith("by transaction"):
            level = one.group.split()[3].rstrip(",")
            label, size = f"handlers, {level}, in one transaction", int(one.name.split()[0])
        elif most or (one.group == "raw, 64 B" and one.name in {"ring, C", "faster-fifo"}):
            label, size = f"{one.name}, in one call", int(most) if most else BATCH
        else:
            continue
        points.setdefault(label, []).append((size, rate))
        if one.ours:
            ours.add(label)
    sizes = sorted({int(x) for made in points.values() for x, _ in made})
    ticks = {float(size): str(size) for size in sizes if size != BATCH}
    curves = _curves(points, ours)
    return Plot("batch", "Throughput of 64 B against batch", "messages at once", "messages/s", curves, ticks=ticks)


# ------------------------------------------------------------------------------------------------ latency
def _latency(outcomes: Sequence[Outcome]) -> Plot:
    curves = []
    for one in outcomes:
        temperature = one.group.removeprefix("round trip, ")
        if temperature != one.group and (one.ours or "doorbell" in one.name or one.name == "multiprocessing.Pipe"):
            trips = [value for run in one.samples for value in run["trips"]]
            curves.append(_distribution(f"{temperature}: {one.name}", trips, one.ours))
        if one.group == "kill to next message":
            kills = [value * 1e3 for run in one.samples for value in run["kills"]]
            curves.append(_distribution("kill to next message", kills, True))
    ticks = {10.0**power: text for power, text in enumerate(("1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms"))}
    shown = tuple(sorted((one for one in curves if one.points), key=lambda one: not one.ours))
    return Plot("latency", "Latency: part of all that took at most so long", "", "part of all", shown, "x", ticks)


def _distribution(label: str, values: Sequence[float], ours: bool) -> Curve:
    parts = [number / POINTS for number in range(1, POINTS + 1)]
    return Curve(label, tuple((quantile(values, part), part) for part in parts) if values else (), ours)


# ------------------------------------------------------------------------------------------------ workers
def _workers(outcomes: Sequence[Outcome]) -> Plot:
    points: dict[str, list[tuple[float, float]]] = {}
    for one, rate in _measured(outcomes, "rate"):
        if one.group.startswith("chain of workers"):
            workers = int(one.name.split()[0])
            points.setdefault("messages through the whole chain", []).append((workers, rate))
            points.setdefault("hops, of all workers together", []).append((workers, rate * (workers - 1)))
            points.setdefault("hops in a second of one processor", []).append(
                (workers, one.figures["hops per core"].value)
            )
    ticks = {x: str(int(x)) for made in points.values() for x, _ in made}
    return Plot(
        "workers", "A chain of workers, process", "workers", "per second", _curves(points, set(points)), "", ticks
    )
