"""What is in progress is told before it is handled, by either implementation alike."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import PyProgress, progress
from tests.bus.implementations import needs_c

IMPLEMENTATIONS: dict[str, Any] = {"python": PyProgress}
try:
    from bus import _progress
except ImportError:
    pass
else:
    IMPLEMENTATIONS["c"] = _progress.Progress

each = pytest.mark.parametrize("name", ["python", pytest.param("c", marks=needs_c)])
SEQ, SINCE = 6, 7


def cells() -> memoryview:
    return memoryview(bytearray(512)).cast("Q")


@each
def test_before_a_message_is_handled_its_number_is_told(name: str) -> None:
    block = cells()
    told = IMPLEMENTATIONS[name](block, SEQ, SINCE)
    seen = []
    for message in told.begin(["a", "b", "c"], 41, sys.maxsize, False):
        seen.append((message, block[SEQ], told.seq, told.done))
    assert seen == [("a", 41, 41, 0), ("b", 42, 42, 1), ("c", 43, 43, 2)]
    assert (told.done, block[SEQ]) == (3, 43)
    assert set(block[:SEQ]) == set(block[SINCE + 1 :]) == {0}, "no other cell is touched"


@each
def test_its_own_number_stays_what_it_is_whatever_becomes_of_the_cell(name: str) -> None:
    block = cells()
    told = IMPLEMENTATIONS[name](block, SEQ, SINCE)
    told.tell(2**64 - 1)
    assert block[SEQ] == told.seq == 2**64 - 1
    block[SEQ] = 0
    assert told.seq == 2**64 - 1


@each
def test_time_that_is_up_ends_the_run_but_not_before_its_first_message(name: str) -> None:
    told = IMPLEMENTATIONS[name](cells(), SEQ, SINCE)
    assert list(told.begin([1, 2, 3], 1, 0, False)) == [1]
    assert told.done == 1
    until = time.monotonic_ns() + 30_000_000
    handled = 0
    for _ in told.begin(list(range(10**6)), 1, until, False):
        handled += 1
    assert time.monotonic_ns() > until
    assert handled == told.done < 10**6


@each
def test_an_iteration_that_is_to_finish_ends_before_its_next_message_unless_it_has_all_the_time(name: str) -> None:
    told = IMPLEMENTATIONS[name](cells(), SEQ, SINCE)
    never = time.monotonic_ns() + 10**15
    for at in (0, 1, 40):
        handled = 0
        for message in told.begin(list(range(100)), 1, never, False):
            handled += 1
            if message == at:
                told.finish()
        assert handled == told.done == at + 1
    for _ in told.begin([1, 2, 3], 1, sys.maxsize, False):
        told.finish()
    assert told.done == 3
    told.finish()
    assert list(told.begin([1, 2, 3], 1, never, False)) == [1, 2, 3], "that was another one"


@each
def test_the_clock_is_read_for_each_message_that_takes_long_and_for_all_if_it_has_to_be_exact(name: str) -> None:
    for exact, quick in ((False, False), (True, True)):
        block = cells()
        told = IMPLEMENTATIONS[name](block, SEQ, SINCE)
        times = []
        for _ in told.begin(list(range(5)), 1, sys.maxsize, exact):
            times.append(block[SINCE])
            while not quick and time.monotonic_ns() < times[-1] + 2 * progress.QUICK_NS:
                pass
        assert len(set(times)) == 5


@each
def test_the_clock_is_read_seldom_for_quick_messages(name: str) -> None:
    block = cells()
    told = IMPLEMENTATIONS[name](block, SEQ, SINCE)
    best = min(len({block[SINCE] for _ in told.begin(list(range(1000)), 1, sys.maxsize, False)}) for _ in range(10))
    assert best <= 1000 // progress.LONGEST + 10
    runs = []
    for _ in range(20):
        times = [block[SINCE] for _ in told.begin(list(range(1000)), 1, sys.maxsize, False)]
        runs.append(max(len(list(same)) for _, same in itertools.groupby(times)))
    assert max(runs) <= progress.LONGEST


@each
def test_an_error_leaves_the_number_of_its_message(name: str) -> None:
    block = cells()
    told = IMPLEMENTATIONS[name](block, SEQ, SINCE)
    with pytest.raises(ZeroDivisionError):
        list(map(lambda message: 1 // message, told.begin([1, 0, 1], 7, sys.maxsize, False)))  # noqa: C417
    assert block[SEQ] == told.seq == 8
    assert list(told.begin([5], 9, sys.maxsize, False)) == [5], "and it can begin anew"


RUN = st.tuples(st.lists(st.integers(), max_size=40), st.integers(0, 2**63), st.integers(0, 50))


@given(runs=st.lists(RUN, max_size=5))
@needs_c
def test_both_do_the_same(runs: list[tuple[list[int], int, int]]) -> None:
    """Whatever runs, and wherever somebody breaks off."""
    blocks = cells(), cells()
    both = [IMPLEMENTATIONS[name](block, SEQ, SINCE) for name, block in zip(("python", "c"), blocks, strict=True)]
    for messages, first, stop in runs:
        seen: list[list[tuple[int, int, int, int]]] = []
        for told, block in zip(both, blocks, strict=True):
            seen.append([])
            for message in itertools.islice(told.begin(messages, first, sys.maxsize, False), stop):
                seen[-1].append((message, block[SEQ], told.seq, told.done))
        assert seen[0] == seen[1]
        assert both[0].seq == both[1].seq
        if stop > len(messages):
            assert both[0].done == both[1].done == len(messages)


@each
def test_a_cell_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(IndexError):
        IMPLEMENTATIONS[name](cells(), SEQ, 64).tell(1)
    with pytest.raises(IndexError):
        IMPLEMENTATIONS[name](cells(), -65, SINCE).tell(1)


@needs_c
def test_the_c_one_says_so_when_it_is_closed_or_misused() -> None:
    block = cells()
    told = IMPLEMENTATIONS["c"](block, SEQ, SINCE)
    told.close()
    told.close()
    block.release()
    for call in (lambda: told.tell(1), lambda: told.begin([1], 1, 1, False)):
        with pytest.raises(ValueError, match="closed"):
            call()
    open_one = IMPLEMENTATIONS["c"](cells(), SEQ, SINCE)
    for wrong in ((1,), 1, sys.maxsize, False), ([1], "1", 1, False), ([1], 1):
        with pytest.raises(TypeError):
            open_one.begin(*wrong)
    with pytest.raises((OverflowError, TypeError)):
        open_one.tell(-1)


@needs_c
def test_the_c_one_holds_on_to_nothing() -> None:
    class Thing: ...

    before = len([one for one in gc.get_objects() if isinstance(one, Thing)])
    told = IMPLEMENTATIONS["c"](cells(), SEQ, SINCE)
    messages: list[Any] = [Thing(), Thing()]
    messages.append((told, messages))  # a cycle through it
    iterator = iter(told.begin(messages, 1, sys.maxsize, False))
    next(iterator)
    messages.clear()
    assert list(iterator) == [], "a list that shrinks meanwhile has an end"
    told.begin([Thing(), told], 1, sys.maxsize, False)
    del told, iterator, messages
    gc.collect()
    assert len([one for one in gc.get_objects() if isinstance(one, Thing)]) == before


@needs_c
def test_the_constants_are_the_same() -> None:
    assert (_progress.QUICK_NS, _progress.LONGEST) == (progress.QUICK_NS, progress.LONGEST)
