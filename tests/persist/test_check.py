"""`check` is the oracle of the other tests: here it is shown to see what it must see."""

from __future__ import annotations

from pathlib import Path

import pytest

from persist import DamagedJournal, NotAJournal, Send, Transaction, check
from persist import format as layout
from tests.persist.building import after, filled, in_segments, open_journal, path_of, transaction

LETTER = layout.DeadLetter(0, 3, 0, "counter", "Tick", "ValueError", "no good", 3, 7, b"poison")
GONE = Transaction(removed=[(0, 3)])


def written(directory: Path, *segments: list[object], epochs: tuple[int, ...] = (1, 1, 1, 1)) -> None:
    """A journal without the writer's checks: a snapshot and transactions per segment."""
    directory.mkdir(mode=0o700)
    position = 0
    for number, records in enumerate(segments, 1):
        data = layout.encode_segment_header(number, position)
        for index, record in enumerate(records):
            frame = bytearray()
            layout.encode_frame(frame, layout.TRANSACTION if index else 1, epochs[number - 1], position, record)
            data += frame
            position += len(frame)
        path_of(directory, number).write_bytes(data)


def test_sound_journal_has_no_fault(tmp_path: Path) -> None:
    in_segments(tmp_path, 3, 0, 4)
    filled(tmp_path, 0)
    report = check(tmp_path)
    assert report.ok
    assert [(s.number, s.frames, s.epoch) for s in report.segments] == [(1, 4, 1), (2, 1, 1), (3, 5, 1), (4, 1, 2)]
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.journal"))
    assert report.frames == 11


def test_a_dead_letter_that_comes_and_goes_is_no_fault(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    again = Transaction(removed=[(0, 3)], dead=[layout.DeadLetter(1, 1, 0, "", "", "", "", 1, 7, b"")])
    written(
        directory, [after(0), Transaction(dead=[LETTER])], [after(0, dead=[LETTER]), again], [after(0, dead=again.dead)]
    )
    report = check(directory)
    assert report.ok, report.gaps


def test_torn_tail_is_reported_and_is_no_fault(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    path = path_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1])
    report = check(tmp_path)
    assert report.ok
    assert report.torn is not None
    assert report.segments[0].bytes == report.torn.offset
    assert report.segments[0].frames == 3


@pytest.mark.parametrize(
    ("segments", "gap"),
    [
        ([[after(0), transaction(2)]], "left gets 2 after 0"),
        ([[after(0), transaction(1), transaction(1)]], "left gets 1 after 1"),
        ([[after(0), Transaction([(0, 5)]), Transaction([(0, 4)])]], "watermark of left goes back to 4"),
        ([[after(0), transaction(1)], [after(0)]], "assigned of left was 1, is 0"),
        ([[after(0), transaction(1)], [after(1, watermarks=[])]], "watermark of left was 1, is 0"),
        ([[after(0), transaction(1)], [after(1, states=[])]], "state is not that of the frames"),
        ([[after(0), transaction(1)], [after(1, tables=[])]], "state is not that of the frames"),
        ([[after(0)], [after(0, assigned=[(1, 1)])]], "assigned of right was 0, is 1"),
        ([[after(0, dead=[LETTER])], [after(0)]], "dead letters are not those of the frames"),
        ([[after(0)], [after(0, dead=[LETTER])]], "dead letters are not those of the frames"),
        ([[after(0, dead=[LETTER]), GONE], [after(0, dead=[LETTER])]], "dead letters are not those of the frames"),
        ([[after(0), GONE]], "removes a dead letter left/3 that is not there"),
        ([[after(0, dead=[LETTER]), GONE, GONE]], "removes a dead letter left/3 that is not there"),
    ],
)
def test_what_does_not_add_up_is_reported(segments: list[list[object]], gap: str, tmp_path: Path) -> None:
    written(tmp_path / "journal", *segments)
    report = check(tmp_path / "journal")
    assert not report.ok
    assert not report.faults
    assert gap in report.gaps[0]


def test_incarnation_before_its_time_is_reported(tmp_path: Path) -> None:
    written(tmp_path / "journal", [after(0)], [after(0)], epochs=(2, 1))
    assert "epoch 1 after 2" in check(tmp_path / "journal").gaps[0]


def test_name_that_went_away_between_incarnations_takes_its_numbers_along(tmp_path: Path) -> None:
    gone = after(0, peers=["right"])
    written(tmp_path / "journal", [after(0), transaction(1)], [gone], epochs=(1, 2))
    assert check(tmp_path / "journal").ok
    written(tmp_path / "other", [after(0), transaction(1)], [gone], epochs=(1, 1))
    assert not check(tmp_path / "other").ok


def test_walk_goes_on_behind_damage(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 2, 2)
    path = path_of(tmp_path, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"?" + data[-19:])
    path_of(tmp_path, 3).write_bytes(b"not one" + path_of(tmp_path, 3).read_bytes()[7:])
    report = check(tmp_path)
    assert [segment.number for segment in report.segments] == [1, 2]
    assert sorted(type(fault).__name__ for fault in report.faults) == ["DamagedJournal", "DamagedJournal"]


def test_segments_behind_a_foreign_file_are_walked(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 2, 2)
    path_of(tmp_path, 2).write_bytes(b"something else altogether")
    report = check(tmp_path)
    assert [segment.number for segment in report.segments] == [1, 3]
    assert [type(fault) for fault in report.faults] == [NotAJournal]


def test_hole_in_the_numbers_is_reported_once(tmp_path: Path) -> None:
    in_segments(tmp_path, 1, 1, 1, 1)
    path_of(tmp_path, 2).unlink()
    report = check(tmp_path)
    assert [type(fault) for fault in report.faults] == [DamagedJournal]
    assert [segment.number for segment in report.segments] == [1, 3, 4]


def test_check_changes_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(sends=[Send(0, 1, 0, [(0, 1)], b"")]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert check(tmp_path) == check(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    journal.close()
