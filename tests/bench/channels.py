"""The ways of bytes from one process to another that are compared: rings, and what else there is.

`open_channel` makes the thing both processes are given; in there, `sender` and `receiver` are the two ends of a one-way
channel, and `endpoint` one of the two ends of a channel both ways.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from bus import PyDoorbell, PyRing, Segment, format_ring, ring_size
from tests.bench.measure import Scale
from tests.bench.pairs import CONTEXT

CAPACITY = 1 << 20  # of a ring: what a topology gives each edge by default
BATCH = 256  # records pushed or taken at once
PATIENCE = 10.0  # seconds; who waits longer has lost a wake-up
BELLS = 512
SENDER_BELL, RECEIVER_BELL, COUNTER = 0, 128, 256
HIGH_WATER = 100_000  # messages a zmq socket holds; the default of 1,000 makes it slower

LIBRARIES = {
    "pyzmq PAIR, ipc": ("zmq", "pyzmq"),
    "faster-fifo": ("faster_fifo", "faster-fifo"),
}  # kind -> module, package

RINGS: dict[str, tuple[Any, Any]] = {"ring, Python": (PyRing, PyDoorbell)}
try:
    from bus import _ring
except ImportError:
    pass
else:
    RINGS["ring, C"] = (_ring.Ring, _ring.Doorbell)


def missing(kind: str) -> str:
    """Why a kind of channel cannot be measured here; empty if it can."""
    if kind == "ring, C" and kind not in RINGS:
        return "the C ring was not built"
    return "".join(without(*library) for name, library in LIBRARIES.items() if name == kind)


def without(module: str, package: str) -> str:
    """Why there is nothing to measure, if the module cannot be imported; empty if it can."""
    if importlib.util.find_spec(module) is None:
        return f"{package} is not installed: pip install 'ringleader[bench]'"
    return ""


@contextmanager
def open_channel(kind: str, scale: Scale, *, both_ways: bool = False, capacity: int = CAPACITY) -> Iterator[Any]:
    if kind in RINGS or kind == "doorbell":
        with ExitStack() as stack:
            ring = stack.enter_context(_segment(ring_size(capacity)))
            format_ring(ring.buf, capacity, 1)
            yield ring.name, stack.enter_context(_segment(BELLS)).name
    elif kind == "multiprocessing.Pipe":
        ends = CONTEXT.Pipe(duplex=both_ways)
        yield ends
        for end in ends:
            end.close()
    elif kind == "multiprocessing.SimpleQueue":
        simple = CONTEXT.SimpleQueue()
        yield simple
        simple.close()
    elif kind == "multiprocessing.Queue":
        queue = CONTEXT.Queue()
        yield queue
        queue.close()
    elif kind == "faster-fifo":
        import faster_fifo

        yield faster_fifo.Queue(capacity)
    else:
        path = scale.directory / f"{secrets.token_hex(4)}.ipc"
        yield f"ipc://{path}"
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _segment(size: int) -> Iterator[Segment]:
    segment = Segment.create(f"ringleader-bench-{os.getpid()}-{secrets.token_hex(4)}", size)
    try:
        yield segment
    finally:
        segment.unlink()
        segment.close()


@contextmanager
def sender(kind: str, given: Any, payload: bytes, most: int = BATCH) -> Iterator[Callable[[int], None]]:
    """A function that sends so many messages, up to `most` at once where the channel knows such a thing."""
    if kind in RINGS:
        with mapped(given[0]) as ring_buffer, mapped(given[1]) as bells:
            ring, mine, theirs = _ring_end(kind, ring_buffer, bells, SENDER_BELL, RECEIVER_BELL)
            yield _ring_sender(ring, mine, theirs, [payload] * most)
            for one in (ring, mine, theirs):
                one.close()
        return
    if kind == "faster-fifo":
        yield _fifo_sender(given, [payload] * most)
        return
    with _open_send(kind, given) as put:

        def send(count: int) -> None:
            for _ in range(count):
                put(payload)

        yield send


@contextmanager
def receiver(kind: str, given: Any, most: int = BATCH) -> Iterator[Callable[[], int]]:
    """A function that waits for messages, takes one or more, and says how many."""
    if kind in RINGS:
        with mapped(given[0]) as ring_buffer, mapped(given[1]) as bells:
            ring, mine, theirs = _ring_end(kind, ring_buffer, bells, RECEIVER_BELL, SENDER_BELL)
            yield _ring_receiver(ring, mine, theirs, most)
            for one in (ring, mine, theirs):
                one.close()
        return
    if kind == "faster-fifo":
        yield lambda: len(given.get_many(block=True, timeout=PATIENCE, max_messages_to_get=most))
        return
    with _open_receive(kind, given) as get:

        def receive() -> int:
            get()
            return 1

        yield receive


@contextmanager
def endpoint(kind: str, given: Any, first: bool) -> Iterator[tuple[Callable[[bytes], Any], Callable[[], Any]]]:
    """(send, receive) of one end of a channel both ways."""
    if kind == "doorbell":
        bell = RINGS.get("ring, C", RINGS["ring, Python"])[1]
        with mapped(given[1]) as bells:
            mine, theirs = (SENDER_BELL, RECEIVER_BELL) if first else (RECEIVER_BELL, SENDER_BELL)
            here, there = bell(bells, mine), bell(bells, theirs)
            with bells[COUNTER : COUNTER + 8] as raw, raw.cast("Q") as counter:
                yield _turn_taker(here, there, counter, 0 if first else 1)
            here.close()
            there.close()
    elif kind == "multiprocessing.Pipe":
        end: Connection[Any, Any] = given[not first]
        yield end.send_bytes, end.recv_bytes
    else:
        with _zmq_pair(given, bind=first) as socket:
            yield socket.send, socket.recv


@contextmanager
def mapped(name: str) -> Iterator[memoryview]:
    segment = Segment.attach(name)
    try:
        yield segment.buf
    except BaseException:
        with suppress(BufferError):  # views are left where something failed, and that is what is to be told
            segment.close()
        raise
    segment.close()


def _ring_end(kind: str, ring_buffer: memoryview, bells: memoryview, mine: int, theirs: int) -> tuple[Any, Any, Any]:
    ring, bell = RINGS[kind]
    return ring(ring_buffer), bell(bells, mine), bell(bells, theirs)


def _ring_sender(ring: Any, mine: Any, theirs: Any, batch: list[bytes]) -> Callable[[int], None]:
    def send(count: int) -> None:
        while count:
            pushed = ring.push_many(batch if count >= len(batch) else batch[:count])
            if pushed:
                theirs.ring()
                count -= pushed
            else:
                sleep_until(mine, lambda: ring.used() <= ring.capacity // 2)

    return send


def _ring_receiver(ring: Any, mine: Any, theirs: Any, most: int) -> Callable[[], int]:
    capacity = ring.capacity

    def receive() -> int:
        while True:
            records = ring.take_many(most, capacity)
            if records:
                ring.release()
                if ring.used() <= capacity // 2:  # not for each crumb of room
                    theirs.ring()
                return len(records)
            sleep_until(mine, lambda: ring.pending() > 0)

    return receive


def _fifo_sender(queue: Any, batch: list[bytes]) -> Callable[[int], None]:
    def send(count: int) -> None:
        while count:
            part = batch if count >= len(batch) else batch[:count]
            queue.put_many(part, block=True, timeout=PATIENCE)
            count -= len(part)

    return send


def sleep_until(bell: Any, ready: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Until it is ready or the bell was rung. The bell may end a wait early, without either."""
    deadline = time.monotonic() + patience
    while True:
        bell.arm()
        if ready() or bell.wait(max(0.0, deadline - time.monotonic())) or ready():
            break
        if time.monotonic() >= deadline:
            raise TimeoutError(f"nothing happened for {patience} s")
    bell.disarm()


def _turn_taker(here: Any, there: Any, counter: memoryview, turn: int) -> tuple[Callable[[bytes], Any], Any]:
    """The least that two processes can do to wake each other: a number in shared memory, and a futex."""

    def send(_: bytes) -> None:
        nonlocal turn
        turn += 1
        counter[0] = turn
        turn += 1
        there.ring()

    def receive() -> None:
        while counter[0] != turn:
            here.arm()
            if counter[0] != turn:
                here.wait(PATIENCE)
            here.disarm()

    return send, receive


@contextmanager
def _open_send(kind: str, given: Any) -> Iterator[Callable[[bytes], Any]]:
    if kind == "multiprocessing.Pipe":
        given[0].close()
        yield given[1].send_bytes
        given[1].close()
    elif kind.startswith("multiprocessing."):
        yield given.put
    else:
        with _zmq_pair(given, bind=False) as socket:
            yield socket.send


@contextmanager
def _open_receive(kind: str, given: Any) -> Iterator[Callable[[], Any]]:
    if kind == "multiprocessing.Pipe":
        given[1].close()
        yield given[0].recv_bytes
        given[0].close()
    elif kind.startswith("multiprocessing."):
        yield given.get
    else:
        with _zmq_pair(given, bind=True) as socket:
            yield socket.recv


@contextmanager
def _zmq_pair(address: str, *, bind: bool) -> Iterator[Any]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.sndhwm = socket.rcvhwm = HIGH_WATER
        socket.linger = int(PATIENCE * 1000)
        if bind:
            socket.bind(address)
        else:
            socket.connect(address)
        yield socket
