"""One message alone at level `power`: what a commit takes, next to what the disk alone takes, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actors import Handler, Topology, handle
from tests.bench.handlers import Begin, Tick, leave
from tests.bench.measure import P50, P99, Case, Figure, Scale, Series
from tests.bench.running import collect, place_for, running

ROUNDS, WARMUP = 100, 5
PAUSE = 0.005  # seconds between two: the receiver has committed, too, and all sleep
RECORD = 128  # bytes that are written before the bare fdatasync: about a transaction of one message
FILE = 4 << 20


class Counter(Handler):
    @handle
    def on_tick(self, tick: Tick) -> None:
        pass


class Stamper(Handler):
    """Sends messages with the time they were sent at, each alone."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.going = False

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going = True

    def on_loop(self) -> float:
        if self.going and self.left:
            self.left -= 1
            self.send(Tick("RNGL", 101.25, time.monotonic_ns()))
        return PAUSE


class Stamped(Handler):
    """Notes how long each message took to come."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count
        self.path = path
        self.measured: list[float] = []

    @handle
    def on_tick(self, tick: Tick) -> None:
        self.measured.append((time.monotonic_ns() - tick.size) / 1e3)
        if len(self.measured) == self.count:
            leave(self.path, {"trips": self.measured[WARMUP:]})


@contextmanager
def _bare(directory: Path) -> Iterator[Callable[[], None]]:
    """One write and one fdatasync, as a journal does it: at the end of what is written, inside of what is reserved."""
    descriptor = os.open(directory / "bare", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, FILE)
        os.fsync(descriptor)
        record = bytes(range(RECORD))

        def sync() -> None:
            os.write(descriptor, record)
            os.fdatasync(descriptor)

        yield sync
    finally:
        os.close(descriptor)


def send(scale: Scale) -> Series:
    """Microseconds of `system.send`, which returns when the message is durable, and of a bare fdatasync, in turns."""
    rounds = scale.count(ROUNDS, 5)
    trips: list[float] = []
    bare: list[float] = []
    with place_for(scale) as place, _bare(place) as sync:
        app = Topology("bench-commit", directory=place / "run", durability="power")
        app.worker("right", counter=Counter)
        app.external("counter", Tick)
        with running(app) as system:
            for number in range(rounds + WARMUP):
                tick = Tick("RNGL", 101.25, number)
                for measured, work in ((bare, sync), (trips, lambda: system.send("counter", tick))):  # noqa: B023
                    time.sleep(PAUSE)
                    began = time.monotonic_ns()
                    work()
                    measured.append((time.monotonic_ns() - began) / 1e3)
    trips, bare = trips[WARMUP:], bare[WARMUP:]
    return {"trips": trips, "bare": bare, "times": [statistics.median(trips) / statistics.median(bare)]}


def travel(scale: Scale) -> Series:
    """Microseconds from a handler's send to its handling in another worker: a fdatasync and a wake-up on the way."""
    rounds = scale.count(ROUNDS, 5) + WARMUP
    with place_for(scale) as place:
        path = place / "trips"
        app = Topology("bench-commit", directory=place / "run", durability="power")
        app.worker("left", stamper=Stamper.spec(rounds))
        app.worker("right", stamped=Stamped.spec(rounds, path))
        app.route("stamper", Tick, to="stamped")
        app.external("stamper", Begin)
        with running(app) as system:
            system.send("stamper", Begin())
            measured = collect(path, system, scale)["trips"]
    assert isinstance(measured, list)
    return {"trips": measured}


def cases() -> list[Case]:
    group = "one message alone, power"
    figures = (P50, P99, Figure("bare fdatasync", "bare", "us"), Figure("times bare", "times", "x"))
    return [
        Case(group, "send", send, figures, ours=True),
        Case(group, "handler to handler", travel, (P50, P99), ours=True),
    ]
