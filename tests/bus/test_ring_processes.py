"""Two real processes on one ring, and what a producer leaves that is killed in the middle."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator

import pytest

from bus import Segment, format_ring, ring_size
from tests.bus.implementations import RINGS, each, new_segment, pairs, peer
from tests.bus.peer import BELLS_SIZE, records, serial_of

RECORDS = 100_000
KILLS = 4
DEADLINE = 60.0


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """All of them ended well; none stays."""
    try:
        said = [process.communicate(timeout=DEADLINE)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture
def ring_segment() -> Iterator[Segment]:
    with new_segment(ring_size(65536)) as segment:
        format_ring(segment.buf, 65536, 1)
        yield segment


@pytest.fixture
def bells() -> Iterator[Segment]:
    with new_segment(BELLS_SIZE) as segment:
        yield segment


@pairs
def test_a_hundred_thousand_records_arrive_whole_and_in_order(
    producer: str, consumer: str, ring_segment: Segment, bells: Segment
) -> None:
    arguments = (ring_segment.name, bells.name, RECORDS, 5)
    finish(peer("produce", producer, *arguments), peer("consume", consumer, *arguments))


@pairs
def test_a_producer_killed_while_it_writes_leaves_nothing_visible(
    producer: str, consumer: str, ring_segment: Segment
) -> None:
    killed = peer("die_halfway", producer, ring_segment.name)
    killed.communicate(timeout=DEADLINE)
    assert killed.returncode == -signal.SIGKILL
    into, successor = RINGS[consumer](ring_segment.buf), RINGS[producer](ring_segment.buf)
    assert into.take_many(100, 10**6) == [b"first", b"second"]
    assert successor.push(b"third")
    assert into.take_many(100, 10**6) == [b"third"]
    into.close()
    successor.close()


@each
def test_a_producer_killed_at_any_time_leaves_only_whole_records_in_order(name: str, ring_segment: Segment) -> None:
    rng = random.Random(11)
    into = RINGS["python"](ring_segment.buf)
    for seed in range(KILLS):
        victim = peer("flood", name, ring_segment.name, seed)
        try:
            received: list[bytes] = []
            enough = rng.randrange(1, 4_000)
            while len(received) < enough:
                received += into.take_many(rng.randrange(1, 200), 10**6)
                into.release()
                assert victim.poll() is None, victim.communicate()
        finally:
            victim.kill()
            victim.communicate()
        while rest := into.take_many(100, 10**6):
            received += rest
            into.release()
        assert [serial_of(record) for record in received] == list(range(1, len(received) + 1))
        assert received == [record for record, _ in zip(records(seed), received, strict=False)]
    into.close()
