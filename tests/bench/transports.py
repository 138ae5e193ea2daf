"""Raw transports between two processes: one-way throughput, and round trips."""

from __future__ import annotations

import functools
import time
from typing import Any

from tests.bench.channels import BATCH, CAPACITY, endpoint, missing, open_channel, receiver, sender
from tests.bench.measure import P50, P99, Case, Scale, Series
from tests.bench.pairs import Meet, run_pair, timed

COLD_PAUSE = 0.02  # seconds; long enough for both sides to be asleep
HOT_TRIPS, HOT_WARMUP = 5_000, 200
COLD_TRIPS, COLD_WARMUP = 50, 3

# Messages of one run, so that a run takes about half a second.
ONE_WAY = {
    "ring, C": 4_000_000,
    "ring, Python": 400_000,
    "pyzmq PAIR, ipc": 400_000,
    "multiprocessing.Queue": 50_000,
    "multiprocessing.SimpleQueue": 50_000,
    "multiprocessing.Pipe": 100_000,
    "faster-fifo": 100_000,
}
BATCHES = (1, 8, 64)  # beside BATCH
TRIPS = ("doorbell", "multiprocessing.Pipe", "pyzmq PAIR, ipc")


def one_way(
    kind: str, size: int, scale: Scale, *, count: int = 0, most: int = BATCH, capacity: int = CAPACITY
) -> Series:
    """Messages per second, seen by the receiver: from when it has the first to when it has the last."""
    count = scale.count(count or ONE_WAY[kind], min(2_000, count or 2_000))
    with open_channel(kind, scale, capacity=capacity) as given:
        (received, elapsed), _ = run_pair(
            (_receive, (kind, given, count, most)), (_send, (kind, given, size, count, most)), scale.timeout
        )
    rate = received / elapsed
    return {"rate": [rate], "bytes": [rate * size / 1e9]}


def _send(meet: Meet, kind: str, given: Any, size: int, count: int, most: int) -> None:
    with sender(kind, given, bytes(range(256)) * (size // 256) + bytes(size % 256), most) as send:
        meet()
        send(count)
        meet()


def _receive(meet: Meet, kind: str, given: Any, count: int, most: int) -> tuple[int, float]:
    with receiver(kind, given, most) as receive:
        return timed(meet, receive, count)


def round_trip(kind: str, pause: float, scale: Scale) -> Series:
    """Microseconds of each round trip: back to back, or each after a pause in which both sides fall asleep."""
    trips, warmup = (COLD_TRIPS, COLD_WARMUP) if pause else (HOT_TRIPS, HOT_WARMUP)
    trips = scale.count(trips, 5)
    with open_channel(kind, scale, both_ways=True) as given:
        measured, _ = run_pair(
            (_serve, (kind, given, trips, warmup, pause)), (_return, (kind, given, trips + warmup)), scale.timeout
        )
    return {"trips": measured}


def _serve(meet: Meet, kind: str, given: Any, trips: int, warmup: int, pause: float) -> list[float]:
    measured = []
    ball = bytes(64)
    with endpoint(kind, given, True) as (send, receive):
        meet()
        for _ in range(trips + warmup):
            if pause:
                time.sleep(pause)
            began = time.monotonic_ns()
            send(ball)
            receive()
            measured.append((time.monotonic_ns() - began) / 1e3)
        meet()
    return measured[warmup:]


def _return(meet: Meet, kind: str, given: Any, trips: int) -> None:
    ball = bytes(64)
    with endpoint(kind, given, False) as (send, receive):
        meet()
        for _ in range(trips):
            receive()
            send(ball)
        meet()


def cases() -> list[Case]:
    found = []
    for size, title in ((64, "raw, 64 B"), (1024, "raw, 1 KiB")):
        for kind in ONE_WAY:
            run = functools.partial(one_way, kind, size)
            found.append(Case(title, kind, run, ours=kind == "ring, C", missing=missing(kind)))
    for most in BATCHES:
        for kind, count in (("ring, C", 400_000), ("faster-fifo", 40_000)):
            run = functools.partial(one_way, kind, 64, count=count if most == 1 else 3 * count, most=most)
            found.append(
                Case(f"raw, 64 B, batches of {most}", kind, run, ours=kind == "ring, C", missing=missing(kind))
            )
    for pause, title in ((0.0, "round trip, hot"), (COLD_PAUSE, "round trip, cold")):
        for kind in TRIPS:
            run = functools.partial(round_trip, kind, pause)
            name = "bare doorbell (floor)" if kind == "doorbell" else kind
            found.append(Case(title, name, run, (P50, P99), missing=missing(kind)))
    return found
