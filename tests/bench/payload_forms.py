"""Large payloads at `memory` in the forms that their receivers may have them in, next to what memory allows.

    bytes    a field of bytes, which the receiver gets as bytes: the sender copies it, and so does the receiver
    view     a memoryview, by RAW: the sender copies it, and the receiver looks at both of its ends
    array    a NumPy array of numbers, by PICKLE, beside the pickle: the sender copies it, the receiver adds it up

The limit is the same copying, and copying or adding up, by two processes over blocks of shared memory that both have
touched before, without a runtime. They tell each other by two counters, and who waits there, waits awake.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
import time
from pathlib import Path

from actors import PICKLE, RAW, Handler, Message, MissingNumPy, Topology, handle
from actors.fixed import numpy
from bus import Segment
from tests.bench.handlers import LOOK, Begin, leave
from tests.bench.measure import RATE, Case, Figure, Scale, Series
from tests.bench.pairs import Meet, run_pair
from tests.bench.payloads import RING_OF_LARGE, SIZES, TITLES
from tests.bench.running import collect, one_of, place_for, running

LARGE = (1 << 16, 1 << 18, 1 << 20)
IN_FLIGHT = 8 << 20  # bytes, of the limit: as much as the cache of either side holds was no quicker
CELLS = 256


class View(Message):
    body: memoryview


class Numbers:
    """An array of them; any class will do for PICKLE."""

    def __init__(self, values) -> None:
        self.values = values


class FormSource(Handler):
    """Sends `count` payloads of `size` bytes once it is told to."""

    def __init__(self, form: str, count: int, size: int) -> None:
        self.form, self.left, self.size = form, count, size
        self.going = False

    def on_start(self) -> None:
        self.values = numbers(self.size)
        self.body = memoryview(self.values.tobytes())

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going = True

    def on_loop(self) -> float | None:
        if not self.left:
            return math.inf
        if not self.going:
            return LOOK
        if self.form == "view":
            self.send(View(self.body))
        else:
            self.send(Numbers(self.values))
        self.left -= 1
        return None


class FormSink(Handler):
    """Times the first and the last of `count` payloads."""

    def __init__(self, count: int, size: int, path: Path) -> None:
        self.count, self.size, self.path = count, size, path
        self.seen, self.began, self.total = 0, 0, total(size)

    @handle
    def on_view(self, view: View) -> None:
        body = view.body
        if len(body) != self.size or body[0] != 0 or body[-1] != numbers_end(self.size):
            raise ValueError(f"payload {self.seen + 1} is another one")
        self._note()

    @handle
    def on_numbers(self, numbers: Numbers) -> None:
        if (found := int(numbers.values.sum())) != self.total:
            raise ValueError(f"payload {self.seen + 1} adds up to {found}, not {self.total}")
        self._note()

    def _note(self) -> None:
        self.seen += 1
        if self.seen == 1:
            self.began = time.monotonic_ns()
        elif self.seen == self.count:
            leave(self.path, {"seconds": (time.monotonic_ns() - self.began) / 1e9})


def numbers(size: int):
    return numpy().arange(size // 8, dtype="u8")


def numbers_end(size: int) -> int:
    return (size // 8 - 1) >> 56


def total(size: int) -> int:
    count = size // 8
    return count * (count - 1) // 2


def payload(form: str, size: int, scale: Scale) -> Series:
    count = scale.count(SIZES[size], 20)
    with place_for(scale) as place:
        path = place / "handled"
        app = Topology("bench-forms", directory=place / "run", durability="memory", ring_bytes=RING_OF_LARGE)
        app.worker("left", source=FormSource.spec(form, count, size))
        app.worker("right", sink=FormSink.spec(count, size, path))
        for type_, codec in ((View, RAW), (Numbers, PICKLE)):
            app.codec(type_, codec)
            app.route("source", type_, to="sink")
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            seconds = one_of(collect(path, system, scale)["seconds"])
    rate = (count - 1) / seconds
    return {"rate": [rate], "bytes": [rate * size / 1e9]}


# ------------------------------------------------------------------------------------------------ the limit
def limit(form: str, size: int, scale: Scale) -> Series:
    count, blocks = scale.count(SIZES[size], 20), IN_FLIGHT // size
    segment = Segment.create(f"ringleader-bench-{secrets.token_hex(8)}", CELLS + blocks * size)
    try:
        seconds, copying = run_pair(
            (_consume, (segment.name, form, size, count)), (_produce, (segment.name, size, count)), scale.timeout
        )
    finally:
        segment.close()
        segment.unlink()
    rate = (count - 1) / seconds
    return {"rate": [rate], "bytes": [rate * size / 1e9], "sender": [copying / count / 1e3]}


def _blocks(name: str, size: int):
    segment = Segment.attach(name)
    blocks = [segment.buf[CELLS + at * size : CELLS + (at + 1) * size] for at in range(IN_FLIGHT // size)]
    return segment, segment.buf[:CELLS].cast("Q"), blocks


def _produce(meet: Meet, name: str, size: int, count: int) -> int:
    _segment, cells, blocks = _blocks(name, size)
    body = numbers(size).tobytes()
    for block in blocks:
        block[:] = body
    busy = 0
    meet()
    for number in range(count):
        while number - cells[16] >= len(blocks):
            os.sched_yield()
        began = time.process_time_ns()
        blocks[number % len(blocks)][:] = body
        busy += time.process_time_ns() - began
        cells[0] = number + 1
    meet()
    return busy


def _consume(meet: Meet, name: str, form: str, size: int, count: int) -> float:
    _segment, cells, blocks = _blocks(name, size)
    arrays = [numpy().frombuffer(block, "u8") for block in blocks]
    expected, began = total(size), 0.0
    assert sum(len(bytes(block)) for block in blocks) == len(blocks) * size  # maps all of it
    meet()
    for number in range(count):
        while cells[0] <= number:
            os.sched_yield()
        at = number % len(blocks)
        if form == "bytes":
            got = bytes(blocks[at])
        elif int(arrays[at].sum()) != expected:
            raise ValueError(f"block {number} does not add up")
        cells[16] = number + 1
        began = began or time.monotonic()
    elapsed = time.monotonic() - began
    assert form != "bytes" or len(got) == size
    meet()
    return elapsed


def cases() -> list[Case]:
    figures = (RATE, Figure("bytes", "bytes", "GB/s", less_is_better=False))
    try:
        numpy()
        missing = ""
    except MissingNumPy as error:
        missing = str(error)
    found = []
    for size in LARGE:
        group = f"payload, {TITLES[size]}"
        for form in ("view", "array"):
            run = functools.partial(payload, form, size)
            found.append(Case(group, f"memory, {form}", run, figures, ours=True, missing=missing))
    for form in ("bytes", "array"):
        run = functools.partial(limit, form, 1 << 20)
        found.append(Case("payload, 1 MiB", f"memory alone, {form} (limit)", run, figures, missing=missing))
    return found
