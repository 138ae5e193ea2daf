"""Other actor runtimes: one way to tell an actor a message of three fields, and to ask it for an answer.

Ray's actors are processes; Pykka's are threads of one process, and nothing is encoded. Neither keeps a message whose
actor dies, so both are compared with level `memory`.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.bench.channels import without
from tests.bench.machine import ROOT
from tests.bench.measure import P50, P99, RATE, Case, Scale, Series
from tests.bench.pairs import Meet, run_alone

RAY, PYKKA = "Ray actors", "Pykka actors (threads)"
TELLS = {RAY: 4_000, PYKKA: 50_000}
ASKS, WARMUP = {RAY: 500, PYKKA: 5_000}, 50
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Quote:
    symbol: str
    price: float
    size: int


class Counter:
    """Times the first and the last of `count` messages, and checks their order."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self.began = self.ended = 0.0
        self.complete = threading.Event()

    def take(self, quote: Quote) -> None:
        if quote.size != self.seen:
            raise ValueError(f"message {quote.size} came where {self.seen} was the next")
        self.seen += 1
        if self.seen == 1:
            self.began = time.monotonic()
        elif self.seen == self.count:
            self.ended = time.monotonic()
            self.complete.set()

    def rate(self) -> float:
        if self.seen != self.count:
            raise ValueError(f"{self.seen} of {self.count} messages came")
        return (self.count - 1) / (self.ended - self.began)


def tell(kind: str, scale: Scale) -> Series:
    """Messages per second, seen by the receiver."""
    side = {RAY: _ray_tell, PYKKA: _pykka_tell}[kind]
    return {"rate": [run_alone(side, (scale.count(TELLS[kind], 100),), scale.timeout)]}


def ask(kind: str, scale: Scale) -> Series:
    """Microseconds until the answer is there, back to back."""
    side = {RAY: _ray_ask, PYKKA: _pykka_ask}[kind]
    return {"trips": run_alone(side, (scale.count(ASKS[kind], 5),), scale.timeout)}


# ------------------------------------------------------------------------------------------------ Ray
class RayCounter(Counter):
    """Ray keeps the order of one caller's calls: the rate is known when the same caller asks for it at last."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        del self.complete  # does not travel


class RaySource:
    def run(self, counter: Any, count: int) -> float:
        import ray

        take = counter.take.remote
        for number in range(count):
            take(Quote("RNGL", 101.25, number))
        rate: float = ray.get(counter.rate.remote(), timeout=PATIENCE)
        return rate


class Echo:
    def back(self, quote: Quote) -> Quote:
        return quote


@contextmanager
def _ray() -> Iterator[Any]:
    """A cluster of this machine alone, with its files in a directory with a short name (it makes sockets there)."""
    os.environ["PYTHONPATH"] = str(ROOT)  # its workers import this module
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"  # nobody else on this machine is to give it work
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or it would leave one in the home directory
    import ray

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what is below
    place = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=100 << 20,
            _node_ip_address="127.0.0.1",
            _temp_dir=place,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def _ray_tell(meet: Meet, count: int) -> float:
    meet()
    with _ray() as ray:
        counter, source = ray.remote(RayCounter).remote(count), ray.remote(RaySource).remote()
        rate: float = ray.get(source.run.remote(counter, count), timeout=PATIENCE)
    meet()
    return rate


def _ray_ask(meet: Meet, count: int) -> list[float]:
    meet()
    with _ray() as ray:
        echo = ray.remote(Echo).remote()
        measured = _asked(lambda quote: ray.get(echo.back.remote(quote), timeout=PATIENCE), count)
    meet()
    return measured


# ------------------------------------------------------------------------------------------------ Pykka
def _pykka_tell(meet: Meet, count: int) -> float:
    import pykka

    counter = Counter(count)

    class Receiver(pykka.ThreadingActor):
        def on_receive(self, message: Any) -> None:
            counter.take(message)

    meet()
    actor = Receiver.start()
    try:
        for number in range(count):
            actor.tell(Quote("RNGL", 101.25, number))
        if not counter.complete.wait(PATIENCE):
            raise TimeoutError(f"{counter.seen} of {count} messages came within {PATIENCE} s")
    finally:
        actor.stop()
    meet()
    return counter.rate()


def _pykka_ask(meet: Meet, count: int) -> list[float]:
    import pykka

    class Answering(pykka.ThreadingActor):
        def on_receive(self, message: Any) -> Any:
            return message

    meet()
    actor = Answering.start()
    try:
        measured = _asked(lambda quote: actor.ask(quote, timeout=PATIENCE), count)
    finally:
        actor.stop()
    meet()
    return measured


def _asked(ask: Any, count: int) -> list[float]:
    measured = []
    for number in range(count + WARMUP):
        quote = Quote("RNGL", 101.25, number)
        began = time.monotonic_ns()
        if ask(quote) != quote:
            raise ValueError(f"another answer than {quote}")
        measured.append((time.monotonic_ns() - began) / 1e3)
    return measured[WARMUP:]


def cases() -> list[Case]:
    found = []
    for kind, missing in ((RAY, without("ray", "ray")), (PYKKA, without("pykka", "pykka"))):
        run, again = functools.partial(tell, kind), functools.partial(ask, kind)
        found.append(Case("tell, 3 fields", kind, run, (RATE,), missing=missing, versus="memory"))
        found.append(Case("round trip, hot", kind, again, (P50, P99), missing=missing, versus="handlers, memory"))
    return found
