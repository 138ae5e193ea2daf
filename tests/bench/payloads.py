"""Throughput against the size of messages, and against how many of them are committed at once."""

from __future__ import annotations

import functools

from actors import Topology
from tests.bench.channels import missing
from tests.bench.handlers import Begin
from tests.bench.measure import RATE, Case, Figure, Scale, Series
from tests.bench.payload_handlers import Blob, BlobSink, BlobSource
from tests.bench.running import collect, one_of, place_for, running
from tests.bench.transports import one_way

# Bytes of a message -> how many of them in one run.
SIZES = {64: 300_000, 1 << 10: 200_000, 1 << 14: 20_000, 1 << 16: 10_000, 1 << 18: 6_000, 1 << 20: 4_000}
TITLES = {64: "64 B", 1 << 10: "1 KiB", 1 << 14: "16 KiB", 1 << 16: "64 KiB", 1 << 18: "256 KiB", 1 << 20: "1 MiB"}
LARGE = 1 << 16  # from here on rings are larger than by default; what goes by claim is as by default
RING, RING_OF_LARGE = 1 << 20, 8 << 20
CALL_BYTES, CALL = 1 << 20, 256  # of one `on_loop`, at most
PEERS = ("pyzmq PAIR, ipc", "multiprocessing.Pipe", "multiprocessing.Queue")
SLOWER = 4  # peers get this part of the messages, so that a run takes them no longer

# Messages of 64 bytes in one transaction -> how many of them in one run, by level.
BATCHES = {
    "process": {1: 20_000, 8: 80_000, 64: 200_000, 512: 300_000, 4096: 300_000},
    "power": {1: 500, 8: 4_000, 64: 30_000, 512: 150_000, 4096: 300_000},
}
SHORTEST = 1e-9  # seconds; the pause that ends a transaction


def payload(level: str, size: int, scale: Scale) -> Series:
    """Messages per second and gigabytes per second, seen by the receiver."""
    return _blobs(level, size, max(1, min(CALL, CALL_BYTES // size)), scale.count(SIZES[size], 20), None, scale)


def batches(level: str, most: int, scale: Scale) -> Series:
    """Messages of 64 bytes, so many in each transaction of the sender and of the receiver."""
    count = -(-scale.count(BATCHES[level][most], 20) // most) * most
    return _blobs(level, 64, most, count, SHORTEST, scale, batch=most)


def _blobs(
    level: str, size: int, call: int, count: int, pause: float | None, scale: Scale, *, batch: int = 2048
) -> Series:
    ring = RING_OF_LARGE if size >= LARGE else RING
    with place_for(scale) as place:
        path = place / "handled"
        app = Topology(
            "bench-blobs",
            directory=place / "run",
            durability=level,
            ring_bytes=ring,
            batch=batch,
        )
        app.worker("left", source=BlobSource.spec(count, size, call, pause))
        app.worker("right", sink=BlobSink.spec(count, size, path))
        app.route("source", Blob, to="sink")
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            seconds = one_of(collect(path, system, scale)["seconds"])
    rate = (count - 1) / seconds
    return {"rate": [rate], "bytes": [rate * size / 1e9]}


def cases() -> list[Case]:
    figures = (RATE, Figure("bytes", "bytes", "GB/s", less_is_better=False))
    found = []
    for size, count in SIZES.items():
        group = f"payload, {TITLES[size]}"
        for level in ("memory", "process", "power") if size == min(SIZES) else ("memory", "process"):
            found.append(Case(group, level, functools.partial(payload, level, size), figures, ours=True))
        if size <= 1 << 10:
            continue  # the raw ones are a group of their own
        ring = functools.partial(one_way, "ring, C", size, count=count, capacity=RING_OF_LARGE)
        found.append(Case(group, "ring, C", ring, figures, ours=True, missing=missing("ring, C")))
        for kind in PEERS:
            run = functools.partial(one_way, kind, size, count=count // SLOWER)
            found.append(Case(group, kind, run, figures, missing=missing(kind), versus="memory"))
    for level, counts in BATCHES.items():
        for most in counts:
            run = functools.partial(batches, level, most)
            found.append(Case(f"64 B at {level}, by transaction", f"{most} at once", run, ours=True))
    return found
