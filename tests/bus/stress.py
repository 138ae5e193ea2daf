"""`python -m tests.bus.stress --records 1000000000 --seed 1`: so many records through one small ring, between two
processes, every one of them checked.

Records come in groups: a head with the number of the group and a checksum, and the records that the checksum is of, cut
out of a pool that both sides make of the seed. Which ones follows from the number. The receiver makes the checksum anew
of what came out of the ring, and compares each record besides. Sizes vary, the ring is small, so that it wraps
thousands of times a second, with padding of every length, and both sides fall asleep all the time.

With `--in-place` each record is written where it will be read, and read where it was written: `reserve` and `commit`,
`take_views`, and `release` when all of them are checked.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from bus import Cell, Segment, format_ring, ring_size
from tests.bus.implementations import DOORBELLS, NAMES, RINGS, ROOT, environment
from tests.bus.peer import BELLS_SIZE, CONSUMER_BELL, PRODUCER_BELL, mapped, wait_for

HEAD = struct.Struct("<QII")  # number of the group, records in it, checksum of them
POOL = 4096
CUTS = 1021  # different groups
LARGEST_GROUP = 400
SIZES = ((0, 8), (1, 40), (1, 40), (8, 120), (50, 1000))  # from .. to, the last one for one record in 40
MOST = 4096  # records taken at once
RING = 1 << 16


class Plan:
    """What is sent, made of the seed alone."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        pool = [chance.randbytes(_size(chance)) for _ in range(POOL)]
        self.groups = []
        for _ in range(CUTS):
            many = chance.randint(1, LARGEST_GROUP)
            at = chance.randrange(POOL - many)
            self.groups.append(pool[at : at + many])
        self.checksums = [zlib.crc32(b"".join(group)) for group in self.groups]
        self._step = chance.randrange(1, CUTS)

    def which(self, number: int) -> int:
        """Which group it is that has this number. CUTS is prime: each comes once in CUTS."""
        return number * self._step % CUTS

    def sent(self, records: int) -> Iterator[list[bytes]]:
        """Group after group, heads included; so many records at least."""
        for number in count():
            if records <= 0:
                return
            which = self.which(number)
            group = self.groups[which]
            yield [HEAD.pack(number, len(group), self.checksums[which]), *group]
            records -= len(group) + 1


def _size(chance: random.Random) -> int:
    return chance.randint(*(SIZES[-1] if chance.random() < 1 / 40 else chance.choice(SIZES[:-1])))


class Damaged(AssertionError):
    """What came out of the ring is not what went in."""


class Receiver:
    """Checks what it is given, in whatever pieces it comes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._waiting: list[bytes] = []
        self.records = 0  # checked
        self.size = 0  # of them, in bytes
        self._number = 0

    def take(self, taken: Sequence[bytes | memoryview]) -> None:
        """Keeps copies only."""
        have = [*self._waiting, *taken]
        at = 0
        while at < len(have):
            number, many, checksum = self._head(have[at])
            group = have[at + 1 : at + 1 + many]
            if len(group) < many:
                break
            content = b"".join(group)
            if zlib.crc32(content) != checksum:
                raise Damaged(f"group {number}: the checksum is {zlib.crc32(content):#x}, not {checksum:#x}")
            expected = self._plan.groups[self._plan.which(number)]
            if group != expected:
                wrong = next((i for i, (a, b) in enumerate(zip(group, expected, strict=False)) if a != b), -1)
                raise Damaged(f"group {number}: record {wrong} of {many} is not the one that was sent")
            at += many + 1
            self.records += many + 1
            self.size += len(content)
            self._number += 1
        self._waiting = [bytes(record) for record in have[at:]]

    def _head(self, record: bytes | memoryview) -> tuple[int, int, int]:
        if len(record) != HEAD.size:
            raise Damaged(f"group {self._number}: a head of {len(record)} bytes: {bytes(record)!r}")
        number, many, checksum = HEAD.unpack(record)
        if number != self._number:
            raise Damaged(f"group {number} came when it was the turn of {self._number}")
        return number, many, checksum

    def finish(self) -> None:
        if self._waiting:
            raise Damaged(f"group {self._number} ends after {len(self._waiting)} records")


def push_all(ring: Any, records: list[bytes]) -> int:
    """How many there was room for."""
    return int(ring.push_many(records))


def write_all(ring: Any, records: list[bytes]) -> int:
    """The same, each of them in place."""
    reserve, commit = ring.reserve, ring.commit
    for number, record in enumerate(records):
        room = reserve(len(record))
        if room is None:
            return number
        room[:] = record
        commit()
    return len(records)


def produce(
    implementation: str, ring_name: str, bells_name: str, records: int, seed: int, in_place: bool = False
) -> None:
    put = write_all if in_place else push_all
    with mapped(ring_name) as buffer, mapped(bells_name) as bells:
        ring = RINGS[implementation](buffer)
        mine, theirs = (DOORBELLS[implementation](bells, at) for at in (PRODUCER_BELL, CONSUMER_BELL))
        half = ring.capacity // 2
        for group in Plan(seed).sent(records):
            left = group
            while True:
                pushed = put(ring, left)
                theirs.ring()
                if pushed == len(left):
                    break
                left = left[pushed:]
                wait_for(mine, lambda: ring.used() <= half)
        for thing in (ring, mine, theirs):
            thing.close()


def consume(
    implementation: str, ring_name: str, bells_name: str, records: int, seed: int, in_place: bool = False
) -> None:
    """Tells how many records there were, of how many bytes, and in how many seconds they came."""
    with mapped(ring_name) as buffer, mapped(bells_name) as bells:
        ring = RINGS[implementation](buffer)
        mine, theirs = (DOORBELLS[implementation](bells, at) for at in (CONSUMER_BELL, PRODUCER_BELL))
        half = ring.capacity // 2
        receiver = Receiver(Plan(seed))
        wait_for(mine, lambda: ring.pending() > 0)
        started = time.monotonic()
        while receiver.records < records:
            taken = ring.take_views(MOST, ring.capacity) if in_place else ring.take_many(MOST, ring.capacity)
            if in_place:
                receiver.take(taken)  # what it looks at is in the ring
            ring.release()
            if ring.used() <= half:
                theirs.ring()
            if not taken:
                wait_for(mine, lambda: ring.pending() > 0)
            elif not in_place:
                receiver.take(taken)
        seconds = time.monotonic() - started
        taken = []  # no view is left
        receiver.finish()
        print(receiver.records, receiver.size, ring.get(Cell.TAIL) // ring.capacity, seconds)
        for thing in (ring, mine, theirs):
            thing.close()


def stress(
    implementations: Sequence[str], records: int, seed: int, capacity: int = RING, *, in_place: bool = False
) -> tuple[int, int, int, float]:
    """Records, bytes, laps of the ring and seconds; AssertionError with what a side has said if it went wrong."""
    me = f"ringleader-stress-{os.getpid()}"
    ring, bells = Segment.create(f"{me}-ring", ring_size(capacity)), Segment.create(f"{me}-bells", BELLS_SIZE)
    try:
        format_ring(ring.buf, capacity, 1)
        what = ["--records", str(records), "--seed", str(seed), *(["--in-place"] if in_place else [])]
        sides = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.bus.stress", *what, "--as", role, name, ring.name, bells.name],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for role, name in zip(("produce", "consume"), implementations, strict=True)
        ]
        try:
            said = [side.communicate() for side in reversed(sides)]
        finally:
            for side in sides:
                side.kill()
                side.communicate()
        assert [side.returncode for side in sides] == [0, 0], "\n".join(error for _, error in said)
        checked, size, laps, seconds = said[0][0].split()
        return int(checked), int(size), int(laps), float(seconds)
    finally:
        for segment in (ring, bells):
            segment.unlink()
            segment.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bus.stress", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--ring", type=int, default=RING, help="bytes of data of the ring")
    parser.add_argument("--producer", choices=NAMES, default="c")
    parser.add_argument("--consumer", choices=NAMES, default="c")
    parser.add_argument("--in-place", action="store_true", help="written and read where they are in the ring")
    parser.add_argument("--as", nargs=4, dest="side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        role, implementation, ring_name, bells_name = arguments.side
        run = produce if role == "produce" else consume
        run(implementation, ring_name, bells_name, arguments.records, arguments.seed, arguments.in_place)
        return
    both = arguments.producer, arguments.consumer
    how = " in place" if arguments.in_place else ""
    records, size, laps, seconds = stress(
        both, arguments.records, arguments.seed, arguments.ring, in_place=arguments.in_place
    )
    print(f"seed {arguments.seed}, {' to '.join(both)}{how}: {records:,} records, {size:,} bytes")
    print(f"ring of {arguments.ring:,} bytes, {laps:,} times around; all whole and in order")
    print(f"{seconds:.1f} s, {records / seconds / 1e6:.1f} million records a second")


if __name__ == "__main__":
    main()
