"""When a worker looks before it sleeps: after short waits, and ever more rarely where that was in vain."""

from __future__ import annotations

import pytest

from actors.spinning import FEW, LONGEST, PATIENCE, SETTLED, Spinning

SHORT, LONG = LONGEST / 10, LONGEST * 10


def waits_until_it_looks(spinning: Spinning) -> int:
    for count in range(10 * PATIENCE):
        if spinning.seconds:
            return count
        spinning.waited(SHORT, True, 1)
    raise AssertionError("it never looks")


def test_a_new_worker_sleeps_at_once_and_looks_after_a_short_wait() -> None:
    spinning = Spinning(possible=True)
    assert spinning.seconds == 0.0
    assert waits_until_it_looks(spinning) == 1
    assert spinning.seconds == LONGEST
    for _ in range(100):
        spinning.waited(SHORT, True, 1)
        assert spinning.seconds == LONGEST


@pytest.mark.parametrize(
    ("seconds", "rung", "messages"), [(LONG, True, 1), (LONG, False, 0), (SHORT, False, 1), (SHORT, True, FEW + 1)]
)
def test_it_looks_no_more_after_it_did_in_vain_or_for_a_stream(seconds: float, rung: bool, messages: int) -> None:
    spinning = Spinning(possible=True)
    waits_until_it_looks(spinning)
    spinning.waited(seconds, rung, messages)
    assert spinning.seconds == 0.0


def test_each_time_in_vain_doubles_what_it_waits_for() -> None:
    spinning = Spinning(possible=True)
    needed = []
    for _ in range(12):
        needed.append(waits_until_it_looks(spinning))
        spinning.waited(LONG, True, 1)
    assert needed == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256]
    assert PATIENCE == 256


def test_a_long_wait_between_short_ones_starts_the_count_again() -> None:
    spinning = Spinning(possible=True)
    for _ in range(4):  # from then on 16 in a row
        waits_until_it_looks(spinning)
        spinning.waited(LONG, True, 1)
    for _ in range(10):
        for _ in range(15):
            spinning.waited(SHORT, True, 1)
        spinning.waited(LONG, True, 1)
        assert spinning.seconds == 0.0


def test_lasting_success_forgets_what_was_in_vain() -> None:
    spinning = Spinning(possible=True)
    for _ in range(4):
        waits_until_it_looks(spinning)
        spinning.waited(LONG, True, 1)
    waits_until_it_looks(spinning)
    for _ in range(SETTLED):
        spinning.waited(SHORT, True, 1)
    spinning.waited(LONG, True, 1)
    assert waits_until_it_looks(spinning) == 2


def test_where_there_is_one_processor_only_nobody_looks() -> None:
    spinning = Spinning(possible=False)
    for _ in range(1000):
        spinning.waited(SHORT, True, 1)
        assert spinning.seconds == 0.0
