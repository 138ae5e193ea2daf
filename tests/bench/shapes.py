"""Systems of more than two workers: chains, one to many, and all to all."""

from __future__ import annotations

import functools
import time
from itertools import pairwise
from pathlib import Path

import psutil

from actors import Topology
from bus import Field
from tests.bench.handlers import Begin, Sink, Source, Tick
from tests.bench.measure import RATE, Case, Figure, Scale, Series
from tests.bench.running import SystemFailed, collect, cpu, one_of, place_for, running
from tests.bench.shape_handlers import Node, Relay, Spray

CHAIN = 200_000  # messages
CHAINS = (2, 3, 4, 6, 8)  # workers; two are the pair that the others are compared with
FAN, RECEIVERS = 200_000, 8
NODES, HOSTS, SPRAYS = 64, 16, 50  # handlers, workers, messages from each handler to each of the others
IDLE_SECONDS, SETTLED_AFTER = 5.0, 0.5
CALL = 256  # the source's; counts are a multiple of it


def _rounded(count: int) -> int:
    return -(-count // CALL) * CALL


# ------------------------------------------------------------------------------------------------ chain
def chain(workers: int, scale: Scale) -> Series:
    """Messages of three fields through a chain of workers, one handler in each: the rate that its end sees, the hops
    in each second of processor time that any of the workers took, and how many processors they kept busy."""
    count = _rounded(scale.count(CHAIN, 1_000))
    with place_for(scale) as place:
        app = Topology("bench-chain", directory=place / "run")
        names = ["source", *(f"relay{number}" for number in range(workers - 2)), "sink"]
        for name in names:
            specs = {"source": Source.spec, "sink": Sink.spec}
            app.worker(f"worker-{name}", **{name: specs.get(name, Relay.spec)(count, place / name)})
        for name, following in pairwise(names):
            app.route(name, Tick, to=following)
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            left = [collect(place / name, system, scale) for name in names]
    if left[-1]["last"] != count - 1:
        raise SystemFailed(f"message {left[-1]['last']} came last of {count}")
    seconds, busy = one_of(left[-1]["seconds"]), sum(one_of(one["cpu_ns"]) for one in left) / 1e9
    return {"rate": [(count - 1) / seconds], "hops": [count * (workers - 1) / busy], "cores": [busy / seconds]}


# ------------------------------------------------------------------------------------------------ fan-out
def fan_out(scale: Scale) -> Series:
    """One handler sends every message to eight, in eight workers, and before that to a single one: the processor time
    of the sender's process for each message, and what each further receiver adds to it."""
    (alone, _), (all_of_them, rate) = _fan(1, scale), _fan(RECEIVERS, scale)
    further = (all_of_them - alone) / (RECEIVERS - 1)
    return {"rate": [rate], "one": [alone], "all": [all_of_them], "further": [max(further, 0.1)]}


def _fan(receivers: int, scale: Scale) -> tuple[float, float]:
    """(nanoseconds of the sender for each message, messages per second until the last receiver has it)"""
    count = _rounded(scale.count(FAN, 1_000))
    with place_for(scale) as place:
        app = Topology("bench-fan", directory=place / "run")
        app.worker("left", source=Source.spec(count, place / "sent"))
        sinks = [f"sink{number}" for number in range(receivers)]
        for name in sinks:
            app.worker(f"worker-{name}", **{name: Sink.spec(count, place / name)})
        app.route("source", Tick, to=sinks)
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            seconds = max(one_of(collect(place / name, system, scale)["seconds"]) for name in sinks)
            spent = one_of(collect(place / "sent", system, scale)["cpu_ns"])
    return spent / count, (count - 1) / seconds


# ------------------------------------------------------------------------------------------------ all to all
def all_edges(scale: Scale) -> Series:
    """Every handler sends to every other one, so that there is an edge from each worker to each other: messages
    handled per second by all of them together, then what the workers take when there is nothing more to do, and the
    shared memory of an edge."""
    count = scale.count(SPRAYS, 2)
    with place_for(scale) as place:
        app = Topology("bench-edges", directory=place / "run")
        nodes = [f"node{number}" for number in range(NODES)]
        each = NODES // HOSTS
        for host in range(HOSTS):
            mine = range(host * each, (host + 1) * each)
            app.worker(f"host{host}", **{nodes[n]: Node.spec(n, NODES, count, place / nodes[n]) for n in mine})
        for name in nodes:
            app.route(name, Spray, to=[other for other in nodes if other != name])
            app.external(name, Begin)
        with running(app) as system:
            for name in nodes:
                system.send(name, Begin())
            left = [collect(place / name, system, scale) for name in nodes]
            pids = [system.block(worker.name).get(Field.PID) for worker in system.plan.workers]
            time.sleep(scale.seconds(SETTLED_AFTER, 0.1))
            began, before = time.monotonic(), [cpu(pid) for pid in pids]
            time.sleep(scale.seconds(IDLE_SECONDS, 0.5))
            after, elapsed = [cpu(pid) for pid in pids], time.monotonic() - began
            shared, edges = _shared(pids), len(system.plan.edges)
            private = max(psutil.Process(pid).memory_full_info().uss for pid in pids)
    seconds = (max(one_of(one["ended"]) for one in left) - min(one_of(one["began"]) for one in left)) / 1e9
    return {
        "rate": [NODES * (NODES - 1) * count / seconds],
        "edge": [shared / edges / 1024],
        "private": [private / 2**20],
        "idle": [100 * (sum(after) - sum(before)) / elapsed / HOSTS],
    }


def _shared(pids: list[int]) -> int:
    """Bytes of shared memory that any of these processes have mapped, each segment once."""
    segments: dict[str, int] = {}
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, *_, name = line.split()
            if name.startswith("/dev/shm/"):
                first, last = (int(one, 16) for one in addresses.split("-"))
                segments[name] = max(segments.get(name, 0), last - first)
    return sum(segments.values())


def cases() -> list[Case]:
    figures = (
        RATE,
        Figure("hops per core", "hops", "hops/s", less_is_better=False),
        Figure("cores used", "cores", "cores"),
    )
    found = [
        Case("chain of workers, process", f"{n} workers", functools.partial(chain, n), figures, ours=True)
        for n in CHAINS
    ]
    fan = (
        Figure("sender CPU, to 1", "one", "ns/msg"),
        Figure(f"sender CPU, to {RECEIVERS}", "all", "ns/msg"),
        Figure("each further one", "further", "ns/msg"),
        Figure("rate, to all", "rate", "msg/s", less_is_better=False),
    )
    found.append(Case(f"fan-out to {RECEIVERS} workers", "process", fan_out, fan, ours=True))
    edges = (
        Figure("rate of all", "rate", "msg/s", less_is_better=False),
        Figure("shared memory of each edge", "edge", "KiB"),
        Figure("private memory of a worker", "private", "MiB"),
        Figure("idle CPU of each", "idle", "%"),
    )
    found.append(Case(f"{NODES} handlers, all edges", "process", all_edges, edges, ours=True))
    return found
