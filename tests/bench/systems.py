"""The runtime at work: messages between handlers of two workers, round trips, kills, idle workers, a start."""

from __future__ import annotations

import compileall
import functools
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from actors import Message, Topology
from actors.handler import HandlerSpec
from actors.process import stop_forkserver
from bus import Field
from tests.bench.handlers import Back, Ball, Begin, Idler, Note, Returner, Server, Sink, Source, Tick, Token, Victim
from tests.bench.machine import ROOT
from tests.bench.measure import P50, P99, RATE, Case, Figure, Scale, Series
from tests.bench.running import SystemFailed, collect, cpu, kills_are_not_news, one_of, place_for, running, until
from tests.bench.transports import COLD_PAUSE, COLD_TRIPS, COLD_WARMUP, HOT_TRIPS, HOT_WARMUP

LEVELS = ("memory", "process", "power")
TELLS = 500_000
KILLS, BETWEEN_KILLS = 8, 0.15  # of one run; seconds
STEADY, STEADY_PAUSE = 50, 0.001  # the load of a worker that is killed: so many messages every so many seconds
WORKERS = 8
IDLE_SECONDS, SETTLED_AFTER = 10.0, 1.0


# ------------------------------------------------------------------------------------------------ one way
class Form(NamedTuple):
    """A way to send and to handle. `source` and `sink` are the specs of handlers, given a count and a path, that leave
    there what `Source` and `Sink` leave."""

    name: str
    message: type[Message]
    source: Callable[[int, Path], HandlerSpec]
    sink: Callable[[int, Path], HandlerSpec]


PLAIN = Form("", Tick, Source.spec, Sink.spec)


def tell(level: str, form: Form, scale: Scale) -> Series:
    """One handler sends messages of three fields to one in another worker.

    The rate is seen by the receiver: from when it handles the first to when it handles the last. The processor time of
    both workers' processes is read at about the same moments.
    """
    count = -(-scale.count(TELLS, 1_000) // 256) * 256
    with place_for(scale) as place:
        sent, handled = place / "sent", place / "handled"
        app = Topology("bench-tell", directory=place / "run", durability=level)
        app.worker("left", source=form.source(count, sent))
        app.worker("right", sink=form.sink(count, handled))
        app.route("source", form.message, to="sink")
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            receiver, sender = collect(handled, system, scale), collect(sent, system, scale)
    if receiver["last"] != count - 1:
        raise SystemFailed(f"message {receiver['last']} came last of {count}")
    return {
        "rate": [(count - 1) / one_of(receiver["seconds"])],
        "sender": [one_of(sender["cpu_ns"]) / count],
        "receiver": [one_of(receiver["cpu_ns"]) / count],
    }


# ------------------------------------------------------------------------------------------------ round trips
def round_trip(level: str, pause: float, scale: Scale) -> Series:
    """Microseconds from a handler's send to its handling of the answer, which a handler of another worker sends."""
    trips, warmup = (COLD_TRIPS, COLD_WARMUP) if pause else (HOT_TRIPS, HOT_WARMUP)
    with place_for(scale) as place:
        path = place / "trips"
        app = Topology("bench-trip", directory=place / "run", durability=level)
        app.worker("left", server=Server.spec(scale.count(trips, 5), warmup, pause, path))
        app.worker("right", returner=Returner)
        app.route("server", Ball, to="returner")
        app.route("returner", Back, to="server")
        app.external("server", Begin)
        with running(app) as system:
            system.send("server", Begin())
            measured = collect(path, system, scale)["trips"]
    assert isinstance(measured, list)
    return {"trips": measured}


# ------------------------------------------------------------------------------------------------ kill
def kill(scale: Scale) -> Series:
    """Milliseconds from SIGKILL to the next message that the worker's next incarnation handles, under steady load.

    The kills are so far apart that each restart is a first one: no backoff is measured.
    """
    with place_for(scale) as place:
        note = Note(place / "note")
        app = Topology(
            "bench-kill",
            directory=place / "run",
            max_restarts=1_000_000,
            restart_period=BETWEEN_KILLS / 3,
            preload=[Victim.__module__],
        )
        app.worker("left", source=Source.spec(math.inf, place / "sent", STEADY, STEADY_PAUSE))
        app.worker("right", victim=Victim.spec(place / "note"))
        app.route("source", Tick, to="victim")
        app.external("source", Begin)
        measured: list[float] = []
        with kills_are_not_news(), running(app) as system:
            system.send("source", Begin())
            pid = 0
            for _ in range(scale.count(KILLS, 2) + 1):
                if pid:
                    time.sleep(BETWEEN_KILLS)
                    killed = time.monotonic_ns()
                    os.kill(pid, signal.SIGKILL)
                before = pid
                until(lambda: note.read()[1] not in {0, before}, system, scale, 0.001)  # noqa: B023
                at, pid = note.read()
                if before:
                    measured.append((at - killed) / 1e6)
        note.close()
    return {"kills": measured}


# ------------------------------------------------------------------------------------------------ idle, start
def _many(place: Path) -> Topology:
    """Eight workers in a chain."""
    app = Topology("bench-many", directory=place / "run", preload=[Victim.__module__])
    for number in range(WORKERS):
        app.worker(f"worker{number}", **{f"idler{number}": Idler})
    for number in range(WORKERS - 1):
        app.route(f"idler{number}", Token, to=f"idler{number + 1}")
    app.route(f"idler{WORKERS - 1}", Token, to=[])
    app.external("idler0", Token)
    return app


def idle(scale: Scale) -> Series:
    """Percent of one processor that eight workers take together, and their supervisor, while there is nothing to do."""
    with place_for(scale) as place, running(_many(place)) as system:
        system.send("idler0", Token(WORKERS))
        time.sleep(min(SETTLED_AFTER, scale.seconds(IDLE_SECONDS, 0.3)))
        pids = [system.block(worker.name).get(Field.PID) for worker in system.plan.workers]
        began, before, own = time.monotonic(), [cpu(pid) for pid in pids], time.process_time()
        time.sleep(scale.seconds(IDLE_SECONDS, 0.6))
        after, own = [cpu(pid) for pid in pids], time.process_time() - own
        elapsed = time.monotonic() - began
    workers = 100 * (sum(after) - sum(before)) / elapsed
    return {
        "workers": [workers],
        "each": [workers / WORKERS],
        "supervisor": [100 * own / elapsed],  # the main thread slept
    }


def start(scale: Scale) -> Series:
    """Milliseconds that `start` of eight workers takes, in a program that never started any, and a second time."""
    for package in ("actors", "bus", "persist", "tests/bench"):
        compileall.compile_dir(ROOT / package, quiet=2)  # as they are where they are installed
    stop_forkserver()
    measured = []
    for _ in range(2):
        with place_for(scale) as place:
            app = _many(place)
            began = time.monotonic()
            with app.start():
                measured.append((time.monotonic() - began) * 1e3)
    return {"first": measured[:1], "again": measured[1:]}


def tells(form: Form) -> list[Case]:
    """A form at each level, named `LEVEL` and what the form's name says."""
    times = (Figure("sender CPU", "sender", "ns/msg"), Figure("receiver CPU", "receiver", "ns/msg"))
    return [
        Case("tell, 3 fields", level + form.name, functools.partial(tell, level, form), (RATE, *times), ours=True)
        for level in LEVELS
    ]


def cases() -> list[Case]:
    found = tells(PLAIN)
    for pause, title in ((0.0, "round trip, hot"), (COLD_PAUSE, "round trip, cold")):
        for level in ("process", "memory"):
            run = functools.partial(round_trip, level, pause)
            found.append(Case(title, f"handlers, {level}", run, (P50, P99), ours=True))
    p50, p99 = (Figure(f"p{q}", "kills", "ms", q / 100, pooled=True) for q in (50, 99))
    found.append(Case("kill to next message", "process", kill, (p50, p99), ours=True))
    together = (
        Figure("CPU of the workers", "workers", "%"),
        Figure("CPU of each worker", "each", "%"),
        Figure("CPU of the supervisor", "supervisor", "%"),
    )
    found.append(Case(f"{WORKERS} idle workers", "process", idle, together, ours=True))
    times = (Figure("first in a program", "first", "ms"), Figure("again", "again", "ms"))
    found.append(Case(f"start of {WORKERS} workers", "process", start, times, ours=True))
    return found
