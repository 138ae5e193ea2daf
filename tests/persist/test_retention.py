"""History beyond what delivery needs: how much of it stays, and that it costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persist import Journal, JournalClosed, Retain, check, read
from tests.persist.building import after, meaning, open_journal, path_of, series, transaction


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.now


def in_five_segments(directory: Path, clock: Clock, retain: Retain) -> Journal:
    """A transaction in each segment, one second apart; all are acknowledged."""
    journal, _ = open_journal(directory, clock=clock, retain=retain)
    for number in range(1, 5):
        journal.append(transaction(number))
        clock.now += 10**9
        journal.rotate(after(number))
    return journal


def test_history_is_kept_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    journal = in_five_segments(tmp_path, Clock(), Retain())
    sizes = [path_of(tmp_path, number).stat().st_size for number in range(1, 5)]
    whole = journal.bytes
    assert journal.trim({0: 4}) == 4
    journal.close()
    for limit, gone in ((whole, 0), (whole - sum(sizes[:3]) + 1, 2), (whole - sum(sizes[:3]), 3), (1, 4)):
        directory = tmp_path / str(gone)
        journal = in_five_segments(directory, Clock(), Retain(bytes=limit))
        assert journal.trim({0: 4}) == gone
        assert journal.trim({0: 4}) == 0
        journal.close()
        assert check(directory).ok
        assert meaning(read(directory)) == series(4)


def test_history_is_kept_for_a_time_also_over_restarts(tmp_path: Path) -> None:
    clock = Clock()
    journal = in_five_segments(tmp_path, clock, Retain(age=2.5))
    assert journal.trim({0: 4}) == 1  # closed 3, 2, 1 and 0 seconds ago
    journal.close()
    clock.now += 10**9
    journal, _ = open_journal(tmp_path, clock=clock, retain=Retain(age=2.5))
    assert journal.trim({0: 4}) == 1
    clock.now += 60 * 10**9
    assert journal.trim({0: 4}) == 3
    assert journal.segments == 1
    journal.close()


def test_history_that_either_limit_lets_go_goes(tmp_path: Path) -> None:
    clock = Clock()
    journal = in_five_segments(tmp_path, clock, Retain(bytes=1 << 30, age=1.5))
    assert journal.trim({0: 4}) == 2
    journal.close()


def test_history_is_never_a_reason_to_drop_what_is_pending(tmp_path: Path) -> None:
    journal = in_five_segments(tmp_path, Clock(), Retain(bytes=1, age=0.001))
    assert journal.trim({0: 1}) == 1
    assert [send.edges[0][1] for _, send in journal.sends(0, 0, 0)] == [2, 3, 4]
    journal.close()


@pytest.mark.parametrize("wrong", [{"bytes": 0}, {"bytes": -1}, {"age": 0.0}, {"age": float("nan")}])
def test_retention_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give a number above 0"):
        Retain(**wrong)


def test_recovery_does_not_read_what_is_acknowledged(tmp_path: Path) -> None:
    """History may be as long as it likes; its damage is found by whoever reads it."""
    journal = in_five_segments(tmp_path, Clock(), Retain(bytes=1 << 30))
    journal.rotate(after(4, acked=[(0, 4)]))
    journal.close()
    path = path_of(tmp_path, 2)
    whole = bytearray(path.read_bytes())
    whole[-12] ^= 1
    path.write_bytes(whole)
    assert meaning(read(tmp_path)) == series(4)
    assert not check(tmp_path).ok


def test_whole_retained_history_is_read_from_any_position_while_it_is_written(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, retain=Retain(bytes=1 << 30))
    positions = []
    for number in range(1, 31):
        positions.append(journal.append(transaction(number)))
        if number % 7 == 0:
            journal.rotate(after(number))
            journal.trim({0: number})
    records = journal.read()
    first = next(records)
    journal.append(transaction(31))
    journal.rotate(after(31))
    found = [first, *records]
    assert [record.position for record in found][:30] == positions
    assert [record.states["counter"] for record in found][:30] == [b"%d" % number for number in range(1, 31)]
    assert [record.position for record in journal.read(positions[12])][:18] == positions[12:]
    journal.close()
    with pytest.raises(JournalClosed):
        journal.read()


def test_clock_that_was_set_back_keeps_history_no_longer_than_promised(tmp_path: Path) -> None:
    clock = Clock()
    journal = in_five_segments(tmp_path, clock, Retain(age=60))
    clock.now -= 86_400 * 10**9
    assert journal.trim({0: 4}) == 0
    clock.now += 61 * 10**9
    assert journal.trim({0: 4}) == 4
    journal.close()
