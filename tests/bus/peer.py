"""The other process of the two-process tests: `python -m tests.bus.peer ROLE IMPLEMENTATION SEGMENT...`.

A wait that ends at its bound although there was something to do is a lost wake-up, and ends the process with status 3.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

from bus import Segment
from tests.bus.implementations import DOORBELLS, RINGS

BELLS_SIZE = 512
CONSUMER_BELL = 0
PRODUCER_BELL = 128
COUNTER = 256  # ping-pong: one u64
PATIENCE = 10.0
LOST_WAKE_UP = 3
NOTHING_CAME = 4
BATCH = 64
SIZES = (0, 56, 1, 16, 120, 56, 333, 9, 56, 20, 64)


def records(seed: int) -> Iterator[bytes]:
    """An endless sequence of numbered, checksummed records of many sizes."""
    noise = random.Random(seed).randbytes(4096)
    for serial in count(1):
        start = serial * 193 % 2048
        body = serial.to_bytes(8, "little") + noise[start : start + SIZES[serial * 7 % len(SIZES)]]
        yield body + zlib.crc32(body).to_bytes(4, "little")


def serial_of(record: bytes) -> int:
    """The number of a record that is whole."""
    if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
        raise AssertionError(f"half-written record {record!r}")
    return int.from_bytes(record[:8], "little")


@contextmanager
def mapped(name: str) -> Iterator[memoryview]:
    segment = Segment.attach(name)
    yield segment.buf
    segment.close()  # not after an error: views may be alive then, and would hide it


def wait_for(bell: Any, ready: Callable[[], bool]) -> None:
    """Arm, look again, wait, disarm, look. A wake for an earlier wait may come late and end this one early."""
    while not ready():
        bell.arm()
        if not ready():
            deadline = time.monotonic() + PATIENCE
            if not bell.wait(PATIENCE) and time.monotonic() >= deadline:
                sys.stderr.write("lost wake-up\n" if ready() else f"nothing came for {PATIENCE} s\n")
                sys.exit(LOST_WAKE_UP if ready() else NOTHING_CAME)
        bell.disarm()


def produce(implementation: str, ring_name: str, bells_name: str, total: int, seed: int) -> None:
    with mapped(ring_name) as ring_buffer, mapped(bells_name) as bells:
        ring = RINGS[implementation](ring_buffer)
        mine, theirs = (DOORBELLS[implementation](bells, at) for at in (PRODUCER_BELL, CONSUMER_BELL))
        source = islice(records(seed), total)
        way = 0
        while batch := list(islice(source, BATCH)):
            while batch:
                way += 1
                pushed = put(ring, batch, way)
                theirs.ring()
                del batch[:pushed]
                if batch and not pushed:
                    largest = batch[0]
                    wait_for(mine, lambda: ring.capacity - ring.used() >= 2 * (len(largest) + 16))  # noqa: B023
        for thing in (ring, mine, theirs):
            thing.close()


def put(ring: Any, batch: list[bytes], way: int) -> int:
    """Some of the batch, by one of the three ways into a ring; how many."""
    if way % 3 == 0:
        return int(ring.push_many(batch))
    if way % 3 == 1:
        return int(ring.push(batch[0][:8], batch[0][8:]))
    view = ring.reserve(len(batch[0]))
    if view is None:
        return 0
    view[:] = batch[0]
    ring.commit()
    return 1


def consume(implementation: str, ring_name: str, bells_name: str, total: int, seed: int) -> None:
    with mapped(ring_name) as ring_buffer, mapped(bells_name) as bells:
        ring = RINGS[implementation](ring_buffer)
        mine, theirs = (DOORBELLS[implementation](bells, at) for at in (CONSUMER_BELL, PRODUCER_BELL))
        expected = islice(records(seed), total)
        received = 0
        while received < total:
            taken = ring.take_many(100, 2**20)
            for record in taken:
                assert record == next(expected), f"record {received}"
                received += 1
            ring.release()
            theirs.ring()
            if not taken:
                wait_for(mine, lambda: ring.pending() > 0)
        assert ring.take_many(1, 1) == []
        for thing in (ring, mine, theirs):
            thing.close()


def flood(implementation: str, ring_name: str, seed: int) -> None:
    """Until it is killed."""
    with mapped(ring_name) as buffer:
        ring = RINGS[implementation](buffer)
        source = records(seed)
        way = 0
        while True:
            batch = list(islice(source, BATCH))
            while batch:
                way += 1
                del batch[: put(ring, batch, way)]


def die_halfway(implementation: str, ring_name: str) -> None:
    """Two whole records, and SIGKILL in the middle of the third."""
    with mapped(ring_name) as buffer:
        ring = RINGS[implementation](buffer)
        ring.push_many([b"first", b"second"])
        ring.reserve(1000)[:500] = b"?" * 500
        os.kill(os.getpid(), signal.SIGKILL)


def ping_pong(implementation: str, bells_name: str, rounds: int, mine: int) -> None:
    """Counts up one number in turns with another process, asleep in between: both sleep if one wake-up is lost."""
    with mapped(bells_name) as bells:
        here, there = (CONSUMER_BELL, PRODUCER_BELL) if mine else (PRODUCER_BELL, CONSUMER_BELL)
        bell, other = DOORBELLS[implementation](bells, here), DOORBELLS[implementation](bells, there)
        with bells[COUNTER : COUNTER + 8] as raw, raw.cast("Q") as counter:
            for turn in range(mine, rounds, 2):
                wait_for(bell, lambda: counter[0] == turn)  # noqa: B023
                counter[0] = turn + 1
                other.ring()
        bell.close()
        other.close()


def main() -> None:
    role, implementation, *rest = sys.argv[1:]
    arguments = [int(item) if item.isdigit() else item for item in rest]
    roles: dict[str, Callable[..., None]] = {
        "produce": produce,
        "consume": consume,
        "flood": flood,
        "die_halfway": die_halfway,
        "ping_pong": ping_pong,
    }
    roles[role](implementation, *arguments)


if __name__ == "__main__":
    main()
