"""Fixed messages between two workers, in batches and in place, next to what the memory of this machine allows.

The sender reserves some thousand rows of 64 bytes, copies prepared rows into them as bytes and numbers them by one
column; the receiver sums a column and looks at the first and the last number, so that every cache line is written by
the one and read by the other. The limit is the same work without the runtime: one process copies and numbers rows into
shared memory, block by block, another one sums them, and they tell each other by two counters. Its processor times are
those of the copying and of the summing alone: who waits there, waits awake.

Both are measured with batches that go through the second-level cache of a processor, and with such as stay in it.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

from actors import Handler, MissingNumPy, State, Topology, handle
from actors.fixed import FixedMessage, Rows, Size, f8, numpy, u8
from bus import Segment
from tests.bench.handlers import LOOK, Begin, leave
from tests.bench.measure import Case, Figure, Scale, Series
from tests.bench.pairs import Meet, run_pair
from tests.bench.running import SystemFailed, collect, one_of, place_for, running

GROUP = "fixed layout, 64 B"
ROWS = {"memory": 60_000_000, "process": 6_000_000}

BLOCK = 32_000  # rows of one batch: 2 MB
SMALL = 8_000
RING = 1 << 24
IN_FLIGHT = 1 << 23  # bytes, of the limit: it is slower with more
BATCH = 1 << 17  # rows are messages: most of them in one transaction


def blocks(rows: int) -> int:
    """Of the limit, in flight at a time."""
    return max(2, IN_FLIGHT // (rows * 64))


class Row(FixedMessage):
    symbol: Annotated[bytes, Size(16)]
    price: f8
    bid: f8
    ask: f8
    volume: u8
    number: u8
    venue: u8


class Sent(State):
    count: int = 0


class RowSource(Handler):
    """Sends `count` rows, so many in a batch, once it is told to."""

    state: Sent

    def __init__(self, count: int, block: int, path: Path) -> None:
        self.count, self.block, self.path = count, block, path
        self.going, self.began = False, 0

    def on_start(self) -> None:
        self.prepared, self.numbers = prepared(self.block)

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going, self.began = True, time.process_time_ns()

    def on_loop(self) -> float | None:
        state = self.state
        if state.count >= self.count:
            return math.inf
        if not self.going and not state.count:
            return LOOK
        with self.reserve(Row, self.block, zeroed=False) as rows:
            fill(rows, self.prepared, self.numbers, state.count)
        state.count += self.block
        if state.count >= self.count:
            leave(self.path, {"cpu_ns": time.process_time_ns() - self.began})
        return None


class RowSink(Handler):
    """Times the rows from behind the first batch to the last one."""

    def __init__(self, count: int, path: Path) -> None:
        self.count, self.path = count, path
        self.seen, self.total, self.first = 0, 0.0, 0
        self.began = (0, 0)

    @handle(batch=True)
    def on_rows(self, rows: Rows[Row]) -> None:
        self.total += look(rows, self.seen)
        self.seen += len(rows)
        if not self.first:
            self.first, self.began = self.seen, (time.monotonic_ns(), time.process_time_ns())
        elif self.seen >= self.count:
            elapsed, cpu = time.monotonic_ns() - self.began[0], time.process_time_ns() - self.began[1]
            if self.total != self.count:
                raise ValueError(f"the prices add up to {self.total}")
            measured = {"seconds": elapsed / 1e9, "cpu_ns": float(cpu), "rows": float(self.seen - self.first)}
            leave(self.path, {**measured})


def prepared(rows: int):
    """A block of rows that are worth 1 each, and numbers to be written into them."""
    np = numpy()
    block = np.zeros(rows, Row.dtype)
    block["symbol"], block["price"] = b"RNGL", 1.0
    return block.view(f"V{Row.dtype.itemsize}"), np.arange(rows, dtype="u8")


def fill(rows, block, numbers, first: int) -> None:
    rows.view(block.dtype)[:] = block
    numpy().add(numbers, first, out=rows["number"])


def look(rows, first: int) -> float:
    if rows["number"][0] != first or rows["number"][-1] != first + len(rows) - 1:
        raise ValueError(f"row {rows['number'][0]} came where {first} was the next")
    return float(rows["price"].sum())


def rows(level: str, block: int, scale: Scale) -> Series:
    count = -(-scale.count(ROWS[level], 2 * block) // block) * block
    with place_for(scale) as place:
        sent, handled = place / "sent", place / "handled"
        app = Topology("bench-rows", directory=place / "run", durability=level, ring_bytes=RING, batch=BATCH)
        app.worker("left", source=RowSource.spec(count, block, sent))
        app.worker("right", sink=RowSink.spec(count, handled))
        app.route("source", Row, to="sink")
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            receiver, sender = collect(handled, system, scale), collect(sent, system, scale)
    measured = one_of(receiver["rows"])
    return {
        "rate": [measured / one_of(receiver["seconds"])],
        "sender": [one_of(sender["cpu_ns"]) / count],
        "receiver": [one_of(receiver["cpu_ns"]) / measured],
    }


# ------------------------------------------------------------------------------------------------ the limit
def limit(rows: int, scale: Scale) -> Series:
    """Rows per second of two processes that do nothing else, over half as much memory as the ring has."""
    count = -(-scale.count(ROWS["memory"], 2 * rows) // rows)
    size = 256 + blocks(rows) * rows * Row.dtype.itemsize
    segment = Segment.create(f"ringleader-bench-{secrets.token_hex(8)}", size)
    try:
        (elapsed, total, summing), copying = run_pair(
            (_consume, (segment.name, rows, count)), (_produce, (segment.name, rows, count)), scale.timeout
        )
    finally:
        segment.close()
        segment.unlink()
    if total != count * rows:
        raise SystemFailed(f"the prices add up to {total}")
    return {
        "rate": [(count - 1) * rows / elapsed],
        "sender": [copying / (count * rows)],
        "receiver": [summing / (count * rows)],
    }


def _blocks(name: str, rows: int):
    np = numpy()
    segment = Segment.attach(name)
    cells = segment.buf[:256].cast("Q")
    places = np.frombuffer(segment.buf[256:], Row.dtype, blocks(rows) * rows).reshape(blocks(rows), rows)
    return segment, cells, list(places)


def _produce(meet: Meet, name: str, rows: int, count: int) -> int:
    _segment, cells, places = _blocks(name, rows)
    block, numbers = prepared(rows)
    busy = 0
    meet()
    for number in range(count):
        while number - cells[16] >= len(places):
            os.sched_yield()
        began = time.process_time_ns()
        fill(places[number % len(places)], block, numbers, number * rows)
        busy += time.process_time_ns() - began
        cells[0] = number + 1
    meet()
    return busy


def _consume(meet: Meet, name: str, rows: int, count: int) -> tuple[float, float, int]:
    _segment, cells, places = _blocks(name, rows)
    total, began, busy = 0.0, 0.0, 0
    meet()
    for number in range(count):
        while cells[0] <= number:
            os.sched_yield()
        before = time.process_time_ns()
        total += look(places[number % len(places)], number * rows)
        busy += time.process_time_ns() - before
        cells[16] = number + 1
        began = began or time.monotonic()
    elapsed = time.monotonic() - began
    meet()
    return elapsed, total, busy


def cases() -> list[Case]:
    figures = (
        Figure("rate", "rate", "records/s", less_is_better=False),
        Figure("sender CPU", "sender", "ns/record"),
        Figure("receiver CPU", "receiver", "ns/record"),
    )
    try:
        numpy()
        missing = ""
    except MissingNumPy as error:
        missing = str(error)

    def ours(name: str, level: str, block: int) -> Case:
        return Case(GROUP, name, functools.partial(rows, level, block), figures, ours=True, missing=missing)

    def alone(name: str, versus: str, block: int) -> Case:
        return Case(GROUP, name, functools.partial(limit, block), figures, missing=missing, versus=versus)

    small = f"memory, {SMALL:,} rows"
    return [
        ours("memory", "memory", BLOCK),
        alone("memory alone (limit)", "memory", BLOCK),
        ours(small, "memory", SMALL),
        alone(f"{small} alone (limit)", small, SMALL),
        ours("process", "process", BLOCK),
    ]
