"""The doorbell's contract: no wake-up is lost, every wait is bounded, nothing is held while waiting."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import bus.doorbell
from bus import LayoutError
from tests.bus.implementations import DOORBELLS, each, new_segment, pairs, peer
from tests.bus.peer import BELLS_SIZE
from tests.bus.test_ring_processes import finish

ROUNDS = 6000
LONG = 30.0  # seconds nobody should have to wait
SOON = 5.0


def soonest(call: Callable[[], object]) -> float:
    """How many seconds it takes: the least of three times, since now and then the machine may let it stand still."""
    took = []
    for _ in range(3):
        start = time.monotonic()
        call()
        took.append(time.monotonic() - start)
    return min(took)


@contextmanager
def background(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs the call in a thread, whose result is in the list when the block is left."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    try:
        yield results
    finally:
        thread.join(LONG)


def word_of(buffer: bytearray, offset: int = 0) -> int:
    return int.from_bytes(buffer[offset : offset + 4], "little")


@each
def test_a_wait_without_arming_returns_at_once(name: str) -> None:
    bell = DOORBELLS[name](bytearray(8))

    def wait() -> None:
        assert bell.wait(LONG) is True

    assert soonest(wait) < SOON


@pairs
def test_rung_after_arming_returns_at_once(producer: str, consumer: str) -> None:
    buffer = bytearray(8)
    here, there = DOORBELLS[consumer](buffer), DOORBELLS[producer](buffer)

    def wait() -> None:
        here.arm()
        assert there.ring() is True
        assert there.ring() is False, "one ring is enough"
        assert here.wait(LONG) is True

    assert soonest(wait) < SOON


@each
def test_ringing_when_nobody_waits_does_nothing(name: str) -> None:
    buffer = bytearray(8)
    bell = DOORBELLS[name](buffer)
    assert bell.ring() is False
    bell.arm()
    assert word_of(buffer) == 1
    bell.disarm()
    assert word_of(buffer) == 0
    assert bell.ring() is False


@each
def test_a_wait_ends_at_its_bound(name: str) -> None:
    bell = DOORBELLS[name](bytearray(8))
    bell.arm()

    def wait(timeout: float) -> None:
        assert bell.wait(timeout) is False

    for timeout in (0.0, -1.0, 1e-9, 0.02):
        assert max(0.0, timeout) * 0.9 <= soonest(partial(wait, timeout)) < SOON


@each
@pytest.mark.parametrize("timeout", [math.inf, -math.inf, math.nan])
def test_a_wait_without_bound_is_refused(name: str, timeout: float) -> None:
    bell = DOORBELLS[name](bytearray(8))
    bell.arm()
    with pytest.raises(ValueError, match="bounded"):
        bell.wait(timeout)
    with pytest.raises(TypeError):
        bell.wait(None)


@contextmanager
def threads_switch_only_when_they_block() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(LONG)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@each
def test_other_threads_run_while_one_waits_and_the_bell_stays_open(name: str) -> None:
    buffer = bytearray(8)
    bell, other = DOORBELLS[name](buffer), DOORBELLS[name](buffer)

    def sleep_and_wake() -> None:
        entered = threading.Event()
        bell.arm()

        def wait() -> bool:
            entered.set()
            return bool(bell.wait(LONG))

        with threads_switch_only_when_they_block(), background(wait) as results:
            assert entered.wait(LONG)  # and from here on the other thread is asleep in its wait
            with pytest.raises(BufferError, match="somebody waits"):
                bell.close()
            assert other.ring() is True
        assert results == [True]

    assert soonest(sleep_and_wake) < SOON
    bell.close()


@each
def test_a_signal_ends_a_wait_and_its_handler_runs_at_once(name: str) -> None:
    bell = DOORBELLS[name](bytearray(8))

    class Told(Exception):
        pass

    def tell(*_: object) -> None:
        raise Told

    took = []
    before = signal.signal(signal.SIGALRM, tell)
    try:
        bell.arm()
        for number in range(100):  # without a futex a wait is many short sleeps, and a signal may come between two
            start = time.monotonic()
            with pytest.raises(Told):  # noqa: PT012 - it may come before the wait
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 1e-5)
                bell.wait(LONG)
            took.append(time.monotonic() - start)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert max(took) < LONG, "one went on to its bound"
    assert sorted(took)[50] < SOON
    bell.close()


@each
def test_the_word_lies_where_it_was_said_to(name: str) -> None:
    buffer = bytearray(64)
    bell = DOORBELLS[name](buffer, 60)
    other = DOORBELLS[name](buffer, offset=32)
    bell.arm()
    assert buffer == bytes(60) + b"\x01\0\0\0"
    assert other.ring() is False
    for offset in (-4, 61, 64, 2**40):
        with pytest.raises(LayoutError) as caught:
            DOORBELLS[name](buffer, offset)
        assert (caught.value.field, caught.value.value) == ("offset", offset)
    with pytest.raises(LayoutError, match="multiple of 4"):
        DOORBELLS[name](buffer, 2)
    with pytest.raises(LayoutError):
        DOORBELLS[name](bytearray(3))
    with pytest.raises(BufferError):
        DOORBELLS[name](bytes(8))


@each
def test_a_closed_doorbell_is_of_no_use_and_holds_nothing(name: str) -> None:
    buffer = bytearray(8)
    bell = DOORBELLS[name](buffer)
    bell.close()
    bell.close()
    for call in (bell.arm, bell.disarm, bell.ring, lambda: bell.wait(0.0)):
        with pytest.raises(ValueError, match="the doorbell is closed"):
            call()
    buffer.append(0)


def test_fences_stand_between_what_one_side_writes_and_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stress shows a missing fence: the interpreter does so much in between. The C ones are in the machine code."""
    buffer = bytearray(8)
    bell = DOORBELLS["python"](buffer)
    at_fence: list[int] = []
    monkeypatch.setattr(bus.doorbell, "fence", lambda: at_fence.append(word_of(buffer)))
    bell.arm()
    assert at_fence == [1], "armed before the fence, and looked after it"
    bell.disarm()
    monkeypatch.setattr(bus.doorbell, "fence", lambda: buffer.__setitem__(0, 1))
    assert bell.ring() is True, "what the other side wrote meanwhile is seen after the fence"


@pairs
def test_no_wake_up_is_lost_between_two_processes(producer: str, consumer: str) -> None:
    with new_segment(BELLS_SIZE) as bells:
        finish(
            peer("ping_pong", producer, bells.name, ROUNDS, 0),
            peer("ping_pong", consumer, bells.name, ROUNDS, 1),
        )


def test_without_a_futex_short_sleeps_keep_the_same_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus.doorbell, "_sleep_while_armed", bus.doorbell._sleep_briefly)
    monkeypatch.setattr(bus.doorbell, "_wake", bus.doorbell._wake_nobody)
    test_a_wait_ends_at_its_bound("python")
    test_rung_after_arming_returns_at_once("python", "python")
    test_other_threads_run_while_one_waits_and_the_bell_stays_open("python")
    test_a_signal_ends_a_wait_and_its_handler_runs_at_once("python")
