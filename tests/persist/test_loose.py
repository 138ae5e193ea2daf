"""Frames that were not synced may reach the disk in any order: what power loss leaves of them is no damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from persist import DamagedJournal, check, read
from persist import format as layout
from persist.format import MAX_LOOSE, SEGMENT_HEADER
from tests.persist.building import after, meaning, open_journal, path_of, series, transaction


def appended(directory: Path, level: str, synced: dict[int, str]) -> list[int]:
    """Six transactions, with that done behind some of them; their positions."""
    journal, _ = open_journal(directory, level=level)
    positions = []
    for number in range(1, 7):
        positions.append(journal.append(transaction(number)))
        if number in synced:
            getattr(journal, synced[number])()
    journal.close()
    return positions


def lose(directory: Path, position: int, size: int = 20) -> None:
    data = bytearray(path_of(directory, 1).read_bytes())
    offset = SEGMENT_HEADER + position
    data[offset : offset + size] = bytes(size)
    path_of(directory, 1).write_bytes(data)


@pytest.mark.parametrize("call", ["sync", "flush"])
@pytest.mark.parametrize("size", [20, 100], ids=["part", "all"])
@pytest.mark.parametrize("lost", [4, 5, 6])
def test_frame_that_was_lost_before_it_was_synced_is_a_torn_tail_with_all_behind_it(
    lost: int, size: int, call: str, tmp_path: Path
) -> None:
    positions = appended(tmp_path, "power", {3: call})
    lose(tmp_path, positions[lost - 1], size)
    found = read(tmp_path)
    assert meaning(found) == series(lost - 1)
    if lost < 6:
        assert found.torn is not None
        assert found.torn.offset == SEGMENT_HEADER + positions[lost - 1]
    assert check(tmp_path).ok
    journal, recovered = open_journal(tmp_path, level="power")
    assert meaning(recovered) == series(lost - 1)
    journal.append(transaction(lost))
    journal.close()
    assert meaning(read(tmp_path)) == series(lost)


@pytest.mark.parametrize("call", ["sync", "flush"])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_frame_that_was_synced_is_damage_when_it_is_gone(lost: int, call: str, tmp_path: Path) -> None:
    positions = appended(tmp_path, "power", {3: call})
    lose(tmp_path, positions[lost - 1])
    with pytest.raises(DamagedJournal) as damaged:
        read(tmp_path)
    assert damaged.value.offset == SEGMENT_HEADER + positions[lost - 1]


def test_at_level_process_every_frame_before_a_good_one_was_there(tmp_path: Path) -> None:
    """No process that dies leaves a hole."""
    positions = appended(tmp_path, "process", {})
    lose(tmp_path, positions[4])
    with pytest.raises(DamagedJournal):
        read(tmp_path)


def test_head_of_a_segment_is_synced(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, level="power")
    journal.append(transaction(1))
    journal.rotate(after(1))
    journal.append(transaction(2))
    journal.append(transaction(3))
    journal.close()
    data = path_of(tmp_path, 2).read_bytes()
    assert layout.decode_frame(memoryview(data), SEGMENT_HEADER, journal._current.first_position).type == 1
    path_of(tmp_path, 2).write_bytes(data[: SEGMENT_HEADER + 20] + bytes(4) + data[SEGMENT_HEADER + 24 :])
    with pytest.raises(DamagedJournal):
        read(tmp_path)


def loose(directory: Path, position: int) -> int:
    """As the frame has it."""
    data = path_of(directory, 1).read_bytes()
    return int.from_bytes(data[SEGMENT_HEADER + position + 9 : SEGMENT_HEADER + position + 12], "little")


def test_frame_says_how_far_before_it_everything_was_synced(tmp_path: Path) -> None:
    positions = appended(tmp_path, "power", {2: "sync", 5: "flush"})
    found = [8 * loose(tmp_path, position) for position in positions]
    one, two = positions[1] - positions[0], positions[4] - positions[2]
    assert found == [0, one, 0, one, two, 0]


def test_more_than_a_frame_can_say_proves_nothing() -> None:
    buffer = bytearray()
    layout.encode_frame(buffer, layout.TRANSACTION, 1, 1 << 40, transaction(1), 8 * MAX_LOOSE + 8)
    assert int.from_bytes(buffer[9:12], "little") == MAX_LOOSE
    assert buffer[8] == layout.TRANSACTION
    assert layout.decode_frame(memoryview(buffer), 0, 1 << 40).epoch == 1


def test_what_another_thread_syncs_covers_only_what_was_written_when_it_began(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, level="power")
    first = journal.append(transaction(1))
    fdatasync = journal._writer._file.fdatasync

    def meanwhile() -> None:
        journal.append(transaction(2))
        fdatasync()

    journal._writer._file.fdatasync = meanwhile  # type: ignore[method-assign]
    journal.flush()
    third = journal.append(transaction(3))
    journal.close()
    assert 0 < 8 * loose(tmp_path, third) < third - first
    lose(tmp_path, first)
    with pytest.raises(DamagedJournal):
        read(tmp_path)
