"""A hundred thousand damaged records, and nothing is read beyond a ring. `python -m tests.bus.sanitize` runs this under
the address sanitizer, where each ring lies in a block of memory of exactly its size: one byte too far ends the run.
"""

from __future__ import annotations

import ctypes
import random
from collections import Counter
from typing import Any

import pytest

from bus import Cell, RingCorrupt
from bus.layout import HEADER_SIZE, framed
from tests.bus.implementations import RINGS, needs_c
from tests.bus.test_ring_fuzz import CAPACITY, LENGTHS, get, number, put, used_ring

SEEDS = 10
FRAMES = 10_000  # per seed
PER_RING = 100
ALSO_PYTHON = 8  # one in so many is also read by the ring in Python
REASONS = {
    "unknown kind of record",
    "padding does not end where the data ends",
    "the record is longer than the limit",
    "the record runs past the end of the data",
    "the record runs past the tail",
}


class Rings:
    """A ring in the middle of its life, again and again as it was, in the hands of both implementations."""

    def __init__(self, rng: random.Random) -> None:
        while True:
            self.whole, self.headers = used_ring(rng)
            if self.headers:
                break
        self.memory = (ctypes.c_char * len(self.whole)).from_buffer_copy(self.whole)
        self.view = memoryview(self.memory).cast("B")
        self.ring = {name: RINGS[name](self.memory) for name in ("c", "python")}

    def damage(self, rng: random.Random) -> None:
        """One record's header, and now and then bytes anywhere, as somebody might who writes there meanwhile."""
        buffer = bytearray(self.whole)
        word = rng.choice(self.headers)
        old = get(buffer, word)
        match rng.randrange(4):
            case 0:
                put(buffer, word, number(rng, old))
            case 1:
                put(buffer, word, rng.choice(LENGTHS) | rng.choice((0, 1, 1, 1, 2, 2, 3)) << 32)
            case 2:  # just about to the end of the data, or of what is visible
                index = word * 8 - HEADER_SIZE
                tail = (get(buffer, Cell.TAIL) - index) % CAPACITY
                length = rng.choice((CAPACITY - index, tail)) - 8 + rng.randint(-9, 9)
                put(buffer, word, max(length, 0) | rng.choice((1, 1, 2)) << 32)
            case _:
                at = rng.randrange(HEADER_SIZE, len(buffer) - 16)
                buffer[at : at + 16] = rng.randbytes(16)
                put(buffer, word, old ^ 1 << rng.randrange(36))
        self.view[:] = buffer

    def read(self, name: str, how: str) -> tuple[list[bytes], str]:
        """What can be taken, and what is said of the rest; the ring is as before then."""
        ring, reason = self.ring[name], ""
        taken: list[bytes] = []
        take = getattr(ring, how)
        try:
            while more := take(3, CAPACITY):
                taken += map(bytes, more)
        except RingCorrupt as error:
            reason = error.args[-1]
        ring.rewind()
        return taken, reason

    def close(self) -> None:
        for ring in self.ring.values():
            ring.close()


@needs_c
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_hundred_thousand_damaged_frames_are_errors_or_bytes_of_the_ring(seed: int) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    for frame in range(FRAMES):
        if frame % PER_RING == 0:
            rings = Rings(rng)
        rings.damage(rng)
        taken, reason = rings.read("c", "take_many")
        seen[reason] += 1
        memory: Any = rings.memory.raw
        assert all(record in memory for record in taken)
        assert sum(framed(len(record)) for record in taken) <= CAPACITY
        assert rings.read("c", "take_views") == (taken, reason), f"seed {seed}, frame {frame}"
        if frame % ALSO_PYTHON == 0:
            for how in ("take_many", "take_views"):
                assert rings.read("python", how) == (taken, reason), f"seed {seed}, frame {frame}"
        if frame % PER_RING == PER_RING - 1:
            rings.close()
    assert set(seen) == REASONS | {""}, f"the fuzzer reaches too little: {seen}"
    assert min(seen.values()) >= FRAMES // 200, f"the fuzzer reaches too little: {seen}"
