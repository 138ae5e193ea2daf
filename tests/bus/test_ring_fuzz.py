"""What another process wrote is not trusted: a damaged ring gives an error or bytes of the buffer, and both
implementations the same. Under the address sanitizer (`python -m tests.bus.sanitize`) an over-read ends the run.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bus import Cell, LayoutError, PyRing, RingCorrupt
from bus.layout import HEADER_SIZE, RingIdentity
from tests.bus.implementations import RINGS, needs_c, new_ring

SEEDS = 8
MANY_SEEDS = 400
ROUNDS = 600  # per seed
CAPACITY = 4096
LENGTHS = (0, 1, 8, 2040, 2041, 4088, 4096, 2**31 - 1, 2**31, 2**32 - 1)


def put(buffer: bytearray, word: int, value: int) -> None:
    buffer[word * 8 : word * 8 + 8] = (value % 2**64).to_bytes(8, sys.byteorder)


def get(buffer: bytearray, word: int) -> int:
    return int.from_bytes(buffer[word * 8 : word * 8 + 8], sys.byteorder)


def used_ring(rng: random.Random) -> tuple[bytearray, list[int]]:
    """A ring in the middle of its life, and the words of the record headers that are still to be taken."""
    buffer = new_ring(CAPACITY)
    out, into = PyRing(buffer), PyRing(buffer)
    for _ in range(rng.randrange(30)):
        out.push(rng.randbytes(rng.choice((0, 5, 60, 700, 2040))))
        if rng.random() < 0.8:
            into.take_many(rng.randrange(1, 5), CAPACITY)
            into.release()
    headers = []
    position = into.get(Cell.HEAD)
    while position < out.get(Cell.TAIL):
        word = (HEADER_SIZE + position % CAPACITY) // 8
        headers.append(word)
        position += 8 + ((get(buffer, word) & 0xFFFFFFFF) + 7) // 8 * 8
    out.close()
    into.close()
    return buffer, headers


def number(rng: random.Random, near: int) -> int:
    """A number that is likely to be nearly right."""
    choices: tuple[Callable[[], int], ...] = (
        lambda: near + rng.choice((-4096, -4088, -16, -8, -1, 1, 8, 16, 4088, 4096, 4104)),
        lambda: near ^ 1 << rng.randrange(64),
        lambda: rng.choice((0, 8, 4096, 2**31, 2**32, 2**63 - 8, 2**63, 2**64 - 8, 2**64 - 1)),
        lambda: rng.randrange(2**64),
    )
    return rng.choice(choices)()


def damage(rng: random.Random, buffer: bytearray, headers: list[int]) -> None:
    word: int
    kind = rng.randrange(5)
    if kind == 0:
        word = rng.choice((Cell.HEAD, Cell.TAIL))
        put(buffer, word, number(rng, get(buffer, word)))
    elif kind == 1 and headers:
        put(buffer, rng.choice(headers), rng.choice(LENGTHS) | rng.choice((0, 1, 1, 1, 2, 2, 3)) << 32)
    elif kind == 2 and headers:
        word = rng.choice(headers)
        put(buffer, word, number(rng, get(buffer, word)))
    elif kind == 3:
        word = rng.choice(list(RingIdentity))
        put(buffer, word, number(rng, get(buffer, word)))
    else:
        at = rng.randrange(len(buffer) - 16)
        buffer[at : at + 16] = rng.randbytes(16)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or its error with all that it carries; anything but an error of the bus fails the test."""
    try:
        return call()
    except (LayoutError, RingCorrupt) as error:
        return type(error), error.args


def drive(name: str, buffer: bytearray, seed: int, headers: list[int]) -> list[Any]:
    """Uses both ends of a damaged ring, damaging it further on the way; everything that came of it."""
    rng = random.Random(seed)
    seen = []
    ends = [outcome(lambda: RINGS[name](buffer)) for _ in range(2)]
    if any(isinstance(end, tuple) for end in ends):
        return ends
    out, into = ends
    for _ in range(12):
        size = rng.choice((0, 8, 100, 2040))
        calls: tuple[Callable[[], Any], ...] = (
            lambda: into.take_many(rng.randrange(1, 40), rng.choice((0, 100, 2**62))),
            lambda: [bytes(view) for view in into.take_views(rng.randrange(1, 40), rng.choice((0, 100, 2**62)))],
            lambda: out.push(b"P" * size),  # noqa: B023 - called at once
            lambda: out.push(b"P" * size, b""),  # noqa: B023
            lambda: out.push_many([b"M" * size] * 5),  # noqa: B023
            lambda: out.reserve(size) is not None and out.abandon(),  # noqa: B023
            lambda: write_in_place(out, size),  # noqa: B023
            into.release,
            into.rewind,
            into.pending,
            into.used,
            lambda: damage(rng, buffer, headers),
        )
        seen.append(outcome(rng.choice(calls)))
    out.close()
    into.close()
    return seen


def write_in_place(out: Any, size: int) -> bool:
    room = out.reserve(size)
    if room is None:
        return False
    room[:] = b"R" * size
    out.commit()
    return True


def all_bytes_are_from(buffer: bytes, seen: list[Any]) -> bool:
    records = [record for result in seen if isinstance(result, list) for record in result]
    return all(record in buffer for record in records)


@needs_c
@pytest.mark.parametrize("seed", range(SEEDS))
def test_damage_is_an_error_or_bytes_of_the_buffer_and_both_implementations_agree(seed: int) -> None:
    kinds: set[Any] = set()
    for round_ in range(ROUNDS):
        rng = random.Random(seed * ROUNDS + round_)
        buffer, headers = used_ring(rng)
        for _ in range(rng.randrange(1, 4)):
            damage(rng, buffer, headers)
        copies = {name: bytearray(buffer) for name in ("python", "c")}
        drive_seed = rng.randrange(2**32)
        seen = {name: drive(name, copy, drive_seed, headers) for name, copy in copies.items()}
        results: dict[str, list[Any]] = {
            name: [r if isinstance(r, (list, tuple, int, bool, type(None))) else "ring" for r in s]
            for name, s in seen.items()
        }
        assert results["python"] == results["c"], f"seed {seed}, round {round_}"
        assert copies["python"] == copies["c"], f"seed {seed}, round {round_}"
        kinds |= {r[1][-1] if r[0] is RingCorrupt else r[0] for r in results["c"] if isinstance(r, tuple)}
    assert len(kinds) >= 8, f"the fuzzer reaches too little: {kinds}"


@needs_c
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_damage_of_many_more_kinds() -> None:
    for seed in range(SEEDS, MANY_SEEDS):
        test_damage_is_an_error_or_bytes_of_the_buffer_and_both_implementations_agree(seed)


@pytest.mark.parametrize("name", ["python", pytest.param("c", marks=needs_c)])
@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_are_never_read_beyond_the_buffer(name: str, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        buffer = new_ring(CAPACITY)
        buffer[HEADER_SIZE:] = rng.randbytes(CAPACITY)
        put(buffer, Cell.TAIL, rng.randrange(0, CAPACITY + 8, 8))
        ring = RINGS[name](buffer)
        viewed = outcome(lambda: [bytes(view) for view in ring.take_views(100, 2**62)])  # noqa: B023 - called at once
        ring.rewind()
        seen = [outcome(lambda: ring.take_many(100, 2**62)) for _ in range(3)]  # noqa: B023
        assert viewed == seen[0]
        assert all_bytes_are_from(bytes(buffer), seen)
        ring.close()
        buffer.append(0)
