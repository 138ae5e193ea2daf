"""What a crash leaves is cut off; everything else that is wrong is refused, with file, offset and bytes at stake."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest

from persist import DamagedJournal, NewerFormat, NotAJournal, PersistError, Transaction, check, read
from persist import format as layout
from persist import reader as reader_module
from persist.files import Directory, File
from persist.format import BadFrame, decode_frame, seed
from persist.load import recover
from persist.reader import survey
from tests.persist.building import (
    InMemory,
    after,
    filled,
    in_segments,
    meaning,
    open_journal,
    path_of,
    series,
    transaction,
)


def offsets(directory: Path, positions: list[int]) -> list[int]:
    """Where the frames of a journal of one segment begin in the file, and where the last one ends."""
    return [position + 32 for position in positions] + [path_of(directory, 1).stat().st_size]


def contents(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir() if entry.name != "lock"}


def goes_on(directory: Path, count: int) -> None:
    """The journal holds `count` transactions of the series, takes one more, and is then without fault."""
    journal, recovered = open_journal(directory)
    assert meaning(recovered) == series(count)
    journal.append(transaction(count + 1))
    journal.close()
    report = check(directory)
    assert report.ok, report
    assert report.torn is None
    assert meaning(read(directory)) == series(count + 1)


def test_torn_tail_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    origin, victim = tmp_path / "origin", tmp_path / "victim"
    ends = offsets(origin, filled(origin, 3))
    good = path_of(origin, 1).read_bytes()
    for size in range(ends[0], len(good) + 1):
        victim.mkdir(mode=0o700)
        path_of(victim, 1).write_bytes(good[:size])
        whole = max(number for number, end in enumerate(ends) if end <= size)
        torn = read(victim).torn
        journal, recovered = open_journal(victim)
        assert recovered.torn == torn
        assert meaning(recovered) == series(whole)
        if size == ends[whole]:
            assert torn is None
        else:
            assert torn is not None
            assert (torn.file, torn.offset) == (str(path_of(victim, 1)), ends[whole])
            assert torn.bytes_dropped == size - ends[whole]
            part = "header" if torn.bytes_dropped < 16 else "body"
            assert torn.reason == f"the frame's {part} is cut short"
        assert path_of(victim, 1).stat().st_size == ends[whole]
        journal.append(transaction(whole + 1))
        journal.close()
        assert meaning(read(victim)) == series(whole + 1)
        assert check(victim).ok
        shutil.rmtree(victim)


def test_torn_creation_of_the_first_segment_is_a_new_journal(tmp_path: Path) -> None:
    origin, victim = tmp_path / "origin", tmp_path / "victim"
    begin = offsets(origin, filled(origin, 1))[0]
    good = path_of(origin, 1).read_bytes()
    for size in range(begin):
        victim.mkdir(mode=0o700)
        path_of(victim, 1).write_bytes(good[:size])
        given: list[object] = []
        journal, recovered = open_journal(
            victim, make_snapshot=lambda found, epoch, given=given: given.append(found) or after(0)
        )
        assert given == [None]
        assert recovered.torn is not None
        assert (recovered.torn.offset, recovered.torn.bytes_dropped) == (0, size)
        journal.append(transaction(1))
        journal.close()
        assert meaning(read(victim)) == series(1)
        shutil.rmtree(victim)


def test_torn_creation_of_a_later_segment_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    origin, victim = tmp_path / "origin", tmp_path / "victim"
    in_segments(origin, 2, 0)
    good = path_of(origin, 2).read_bytes()
    for size in range(len(good)):
        shutil.copytree(origin, victim)
        path_of(victim, 2).write_bytes(good[:size])
        torn = read(victim).torn
        assert torn is not None
        assert (torn.file, torn.offset, torn.bytes_dropped) == (str(path_of(victim, 2)), 0, size)
        assert torn.reason.startswith(
            "the segment's header is cut short" if size < 32 else "the segment has no snapshot"
        )
        goes_on(victim, 2)
        shutil.rmtree(victim)


@pytest.mark.parametrize("size", [1, 8, 4096, 1 << 20])
def test_zeros_at_the_end_are_reserved_space_and_given_back(size: int, tmp_path: Path) -> None:
    filled(tmp_path, 3)
    end = path_of(tmp_path, 1).stat().st_size
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(bytes(size))
    assert read(tmp_path).torn is None
    assert check(tmp_path).ok
    goes_on(tmp_path, 3)
    assert path_of(tmp_path, 1).stat().st_size == end


def test_closed_segment_that_kept_its_reserved_space_is_whole(tmp_path: Path) -> None:
    """A crash between the beginning of the next segment and the cutting of this one."""
    in_segments(tmp_path, 2, 1)
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(bytes(5000))
    assert meaning(read(tmp_path)) == series(3)
    assert check(tmp_path).ok
    goes_on(tmp_path, 3)


def test_closed_segment_with_anything_else_behind_its_end_is_damage(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 1)
    size = path_of(tmp_path, 1).stat().st_size
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(bytes(100) + b"x")
    with pytest.raises(DamagedJournal) as damage:
        read(tmp_path)
    assert (damage.value.path, damage.value.offset) == (str(path_of(tmp_path, 1)), size)


def test_zeros_in_the_middle_are_damage(tmp_path: Path) -> None:
    at = offsets(tmp_path, filled(tmp_path, 5))
    path = path_of(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: at[2]] + bytes(at[3] - at[2]) + whole[at[3] :])
    with pytest.raises(DamagedJournal) as damage:
        read(tmp_path)
    assert damage.value.offset == at[2]


def test_torn_tail_in_reserved_space_is_cut_off(tmp_path: Path) -> None:
    at = offsets(tmp_path, filled(tmp_path, 3))
    path = path_of(tmp_path, 1)
    whole = path.read_bytes()
    for kept in (1, 4, 15, 16, 20, 40):
        path.write_bytes(whole[: at[2] + kept] + bytes(3000))
        torn = read(tmp_path).torn
        assert torn is not None
        assert (torn.offset, torn.bytes_dropped) == (at[2], kept + 3000)
    goes_on(tmp_path, 2)


def test_zeros_are_no_frame_even_where_their_checksum_would_be_right() -> None:
    """At one position in 2^32 it is: reserved space must not be taken for a frame there."""
    position = next(p for p in _positions_of_zero_checksums())
    assert crc32(bytes(12), seed(position)) == 0
    with pytest.raises(BadFrame, match="zeros"):
        decode_frame(memoryview(bytes(64)), 0, position)


def _positions_of_zero_checksums() -> Iterator[int]:
    """CRC-32 is linear: the seed is found bit by bit, and positions of that seed follow."""
    rows = [(crc32(bytes(12), 1 << bit) ^ crc32(bytes(12)), 1 << bit) for bit in range(32)]
    wanted, found = crc32(bytes(12)), 0
    for bit in reversed(range(32)):
        pivot = next((row for row in rows if row[0] >> bit == 1), None)
        if pivot is None:
            continue
        rows = [
            (a ^ pivot[0], b ^ pivot[1]) if a >> bit & 1 and (a, b) != pivot else (a, b)
            for a, b in rows
            if (a, b) != pivot
        ]
        if wanted >> bit & 1:
            wanted, found = wanted ^ pivot[0], found ^ pivot[1]
    for high in range(8):
        if (found ^ high) % 8 == 0:
            yield (high << 32) | (found ^ high)


@pytest.mark.parametrize("filler", [b"\xff" * 64, b"\x01\0\0\0" * 500, b"garbage"])
def test_tail_of_other_bytes_is_cut_off(filler: bytes, tmp_path: Path) -> None:
    filled(tmp_path, 3)
    size = path_of(tmp_path, 1).stat().st_size
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(filler)
    torn = read(tmp_path).torn
    assert torn is not None
    assert (torn.offset, torn.bytes_dropped) == (size, len(filler))
    goes_on(tmp_path, 3)


def test_header_of_zeros_is_a_torn_creation(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 0)
    path_of(tmp_path, 2).write_bytes(bytes(4096))
    goes_on(tmp_path, 2)


def test_torn_tail_with_a_journal_as_payload_is_still_a_torn_tail(tmp_path: Path) -> None:
    """A frame inside a payload stands at another position than it was made for, so it is no good frame."""
    filled(tmp_path / "payload", 4)
    payload = path_of(tmp_path / "payload", 1).read_bytes()[32:]
    for shift in range(8):
        directory = tmp_path / str(shift)
        filled(directory, 2)
        journal, _ = open_journal(directory)
        journal.append(Transaction(states=[(0, bytes(shift) + payload)]))
        journal.close()
        path = path_of(directory, 2)
        path.write_bytes(path.read_bytes()[:-8])
        torn = read(directory).torn
        assert torn is not None
        assert torn.bytes_dropped > len(payload)
        goes_on(directory, 2)


def test_damage_before_the_tail_is_refused_and_left_alone(tmp_path: Path) -> None:
    ends = offsets(tmp_path, filled(tmp_path, 4))
    path = path_of(tmp_path, 1)
    good = path.read_bytes()
    for frame in range(3):
        for offset in range(ends[frame], ends[frame] + 20):
            path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
            before = contents(tmp_path)
            for reading in (lambda: open_journal(tmp_path), lambda: read(tmp_path)):
                with pytest.raises(DamagedJournal) as refusal:
                    reading()
                assert refusal.value.path == str(path)
                assert refusal.value.offset == ends[frame]
                assert refusal.value.bytes_at_stake == len(good) - ends[frame]
                assert "good frames follow" in refusal.value.reason
            assert contents(tmp_path) == before
            assert [type(fault) for fault in check(tmp_path).faults] == [DamagedJournal]


def test_damage_to_the_head_of_the_only_segment_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    path = path_of(tmp_path, 1)
    good = path.read_bytes()
    for offset in range(64):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
        with pytest.raises(DamagedJournal) as refusal:
            open_journal(tmp_path)
        assert refusal.value.offset == (0 if offset < 32 else 32)
        assert path.read_bytes()[offset] == good[offset] ^ 4


def test_bad_tail_of_a_segment_that_is_not_the_last_is_damage(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 3, 1)
    path = path_of(tmp_path, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!" if good[-1] else good[:-9] + b"!" + good[-8:])
    with pytest.raises(DamagedJournal) as refusal:
        open_journal(tmp_path)
    assert (refusal.value.path, refusal.value.offset) == (str(path), positions[2] + 32)
    assert refusal.value.bytes_at_stake == len(good) - positions[2] - 32


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_segment_that_ends_before_the_next_begins_is_damage(cut: int, tmp_path: Path) -> None:
    in_segments(tmp_path, 3, 1)
    path = path_of(tmp_path, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-cut])
    with pytest.raises(DamagedJournal) as refusal:
        open_journal(tmp_path)
    assert (refusal.value.path, refusal.value.offset) == (str(path), len(good) - cut)
    assert refusal.value.bytes_at_stake == cut


def test_missing_segment_is_damage(tmp_path: Path) -> None:
    in_segments(tmp_path, 1, 1, 1)
    path_of(tmp_path, 2).unlink()
    with pytest.raises(DamagedJournal, match="segment 2 is missing"):
        open_journal(tmp_path)


def test_head_of_the_only_segment_that_is_left_of_a_longer_journal_cannot_be_torn(tmp_path: Path) -> None:
    """Older segments go only after it was complete: there is nothing to fall back to."""
    in_segments(tmp_path, 1, 0)
    path_of(tmp_path, 1).unlink()
    good = path_of(tmp_path, 2).read_bytes()
    for size in range(len(good)):
        path_of(tmp_path, 2).write_bytes(good[:size])
        with pytest.raises(DamagedJournal) as refusal:
            open_journal(tmp_path)
        assert refusal.value.path == str(path_of(tmp_path, 2))
        assert path_of(tmp_path, 2).read_bytes() == good[:size]


def test_damage_in_several_segments_is_never_cut_off(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 2, 2)
    good = {number: path_of(tmp_path, number).read_bytes() for number in (1, 2, 3)}
    last = positions[-1] - layout.decode_segment_header(good[3]).first_position + 32  # type: ignore[union-attr]
    for number, data in good.items():
        for offset in range(len(data)):
            flipped = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
            directory = InMemory(good | {number: flipped})
            try:
                recovered = recover(directory, survey(directory))
            except PersistError:
                continue
            cut = recovered.torn is not None
            assert not cut or (number == 3 and offset >= last)
            assert meaning(recovered) == series(5 if cut else 6)


def test_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    path = path_of(tmp_path, 2)
    first = path_of(tmp_path, 1).stat().st_size - 32
    path.write_bytes(layout.encode_segment_header(2, first, version=4) + b"whatever comes then")
    before = contents(tmp_path)
    for reading in (lambda: open_journal(tmp_path), lambda: read(tmp_path)):
        with pytest.raises(NewerFormat) as refusal:
            reading()
        assert (refusal.value.path, refusal.value.version, refusal.value.supported) == (str(path), 4, 3)
    assert contents(tmp_path) == before
    assert [type(fault) for fault in check(tmp_path).faults] == [NewerFormat]


@pytest.mark.parametrize(
    "content", [b"\x7fELF", b"hello, world" * 10, b"#!/bin/sh\nrm -rf /\n", b"\x89PNG\r\n\x1a\n" * 9]
)
@pytest.mark.parametrize("number", [1, 2])
def test_foreign_file_is_refused_untouched(content: bytes, number: int, tmp_path: Path) -> None:
    if number == 2:
        filled(tmp_path, 1)
    path_of(tmp_path, number).write_bytes(content)
    before = contents(tmp_path)
    for reading in (lambda: open_journal(tmp_path), lambda: read(tmp_path)):
        with pytest.raises(NotAJournal) as refusal:
            reading()
        assert refusal.value.path == str(path_of(tmp_path, number))
        assert repr(content[:8]) in refusal.value.reason
    assert contents(tmp_path) == before


def test_segment_under_another_number_is_damage(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path_of(tmp_path, 1).rename(path_of(tmp_path, 9))
    with pytest.raises(DamagedJournal, match="segment 1"):
        open_journal(tmp_path)


def _append(directory: Path, frame_type: int, epoch: int, record: object) -> int:
    """A frame whose checksum is good; returns its offset."""
    path = path_of(directory, 1)
    size = path.stat().st_size
    buffer = bytearray()
    layout.encode_frame(buffer, frame_type, epoch, size - 32, record)
    with path.open("ab") as file:
        file.write(buffer)
    return size


@pytest.mark.parametrize(
    ("frame_type", "epoch", "record", "reason"),
    [
        (3, 1, transaction(2), "type 3"),
        (0, 1, transaction(2), "type 0"),
        (layout.SNAPSHOT, 1, after(1), "type 1 behind the snapshot"),
        (layout.TRANSACTION, 2, transaction(2), "epoch 2 in a segment of epoch 1"),
        (layout.TRANSACTION, 1, ["not", "a", "transaction"], "array"),
        (layout.TRANSACTION, 1, Transaction(consumed=[(7, 1)]), "index 7 is outside a table of 2"),
        (layout.TRANSACTION, 1, Transaction(states=[(-1, b"")]), "index -1"),
        (layout.TRANSACTION, 1, transaction(2, peer=2), "index 2"),
    ],
)
def test_good_frame_of_bad_content_is_damage(
    frame_type: int, epoch: int, record: object, reason: str, tmp_path: Path
) -> None:
    filled(tmp_path, 1)
    offset = _append(tmp_path, frame_type, epoch, record)
    with pytest.raises(DamagedJournal) as refusal:
        open_journal(tmp_path)
    assert reason in refusal.value.reason
    assert refusal.value.offset == offset
    assert not check(tmp_path).ok


def test_snapshot_that_does_not_decode_is_damage(tmp_path: Path) -> None:
    buffer = bytearray()
    layout.encode_frame(buffer, layout.SNAPSHOT, 1, 0, [1, 2, 3])
    path_of(tmp_path, 1).write_bytes(layout.encode_segment_header(1, 0) + buffer)
    with pytest.raises(DamagedJournal, match="snapshot cannot be decoded"):
        open_journal(tmp_path)


def test_segment_that_begins_with_a_transaction_is_damage(tmp_path: Path) -> None:
    buffer = bytearray()
    layout.encode_frame(buffer, layout.TRANSACTION, 1, 0, transaction(1))
    path_of(tmp_path, 1).write_bytes(layout.encode_segment_header(1, 0) + buffer)
    with pytest.raises(DamagedJournal, match="where the snapshot should be"):
        open_journal(tmp_path)


def test_search_that_gets_too_dear_refuses(tmp_path: Path) -> None:
    """A tail made of things that look like long frames: giving up must not mean cutting off."""
    filled(tmp_path, 1)
    lookalike = b"\xff\xff\xff\xff" + (2**17).to_bytes(4, "little") + b"\x02\0\0\0" + (1).to_bytes(4, "little")
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(lookalike * 2**14)
    with pytest.raises(DamagedJournal, match="good frames follow"):
        read(tmp_path)


@pytest.mark.parametrize("chunk", [16, 24, 40, 72, 1 << 18])
def test_reading_in_chunks_of_any_size_finds_the_same(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 20)
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(b"torn tail here")
    whole = read(tmp_path)
    monkeypatch.setattr(reader_module, "CHUNK", chunk)
    assert read(tmp_path) == whole
    assert meaning(whole) == series(20)


class Vanishing(Directory):
    """Another process deletes the first segment between the listing and the opening."""

    tell: Callable[[], None]

    def open(self, name: str, *, writable: bool = False) -> File:
        self.tell()
        return super().open(name, writable=writable)


def test_reading_tolerates_segments_that_go_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_segments(tmp_path, 1, 1, 1)
    monkeypatch.setattr("persist.load.Directory", Vanishing)
    doomed = [path_of(tmp_path, 1), path_of(tmp_path, 2)]
    Vanishing.tell = lambda self: doomed.pop(0).unlink() if doomed else None  # type: ignore[assignment,misc]
    assert meaning(read(tmp_path)) == series(3)


def test_reading_does_not_mind_a_live_writer(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 20):
        journal.append(transaction(number))
        if number % 5 == 0:
            journal.rotate(after(number))
        found = read(tmp_path)
        assert meaning(found) == series(number)
        assert found.position == journal.position
    journal.close()


def test_reading_where_no_journal_is_finds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path).epoch == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
