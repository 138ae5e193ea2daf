"""The bytes on disk are those of FORMAT.md, and no flipped bit is ever misread."""

from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import pytest
from msgspec import msgpack

import persist
from persist import DamagedJournal, FrameTooLarge, NewerFormat, NotAJournal, PersistError, Transaction, check, read
from persist import format as layout
from persist.load import recover
from persist.reader import survey
from tests.persist.building import InMemory, filled, meaning, open_journal, path_of, series, transaction

PAGE = Path(persist.__file__).with_name("FORMAT.md")

EXAMPLE_TIME = 1_700_000_000_000_000_000
EXAMPLE_SNAPSHOT = layout.Snapshot("process", "f1", ["stats"], ["feed"], [("feed", "Trade")], time_ns=EXAMPLE_TIME)
EXAMPLE_TRANSACTION = Transaction(
    consumed=[(0, 7)], sends=[layout.Send(0, 2, 0, [(0, 1)], b"\x01\x02")], states=[(0, b"\x2a")]
)


def worked_example() -> bytes:
    lines = re.findall(r"^    [0-9a-f]{4}  ([0-9a-f ]+)$", PAGE.read_text(), re.MULTILINE)
    return bytes.fromhex(" ".join(lines))


def frame(frame_type: int, epoch: int, position: int, record: object) -> bytes:
    buffer = bytearray()
    layout.encode_frame(buffer, frame_type, epoch, position, record)
    return bytes(buffer)


def test_worked_example_of_the_format_page_decodes() -> None:
    data = worked_example()
    assert layout.decode_segment_header(data) == layout.SegmentHeader(3, 1, 0)
    first = layout.decode_frame(memoryview(data), 32, 0)
    assert (first.type, first.epoch, layout.decode_snapshot(first.body)) == (layout.SNAPSHOT, 1, EXAMPLE_SNAPSHOT)
    second = layout.decode_frame(memoryview(data), 32 + first.end, first.end)
    assert (second.type, second.epoch) == (layout.TRANSACTION, 1)
    assert layout.decode_transaction(second.body) == EXAMPLE_TRANSACTION
    assert second.end + 32 == len(data)


def test_worked_example_is_what_a_journal_writes(tmp_path: Path) -> None:
    journal, _ = open_journal(
        tmp_path, make_snapshot=lambda recovered, epoch: EXAMPLE_SNAPSHOT, clock=lambda: EXAMPLE_TIME
    )
    journal.append(EXAMPLE_TRANSACTION)
    journal.close()
    assert path_of(tmp_path, 1).read_bytes() == worked_example()


def test_rules_of_the_format_page_read_the_example_without_this_package() -> None:
    data = worked_example()
    header = data[:12] + data[16:32]
    assert int.from_bytes(data[12:16], "little") == crc32(header)
    offset, bodies = 32, []
    while offset < len(data):
        crc, length = (int.from_bytes(data[offset + at : offset + at + 4], "little") for at in (0, 4))
        position = int.from_bytes(data[24:32], "little") + offset - 32
        assert crc == crc32(data[offset + 4 : offset + 16 + length], (position >> 32) ^ (position & 0xFFFFFFFF))
        bodies.append(msgpack.decode(data[offset + 16 : offset + 16 + length]))
        offset += (16 + length + 7) // 8 * 8
    assert bodies[1] == [[[0, 7]], [[0, 2, 0, [[0, 1]], b"\x01\x02"]], [[0, b"\x2a"]], [], [], [], []]


def test_golden_bytes_of_every_field() -> None:
    dead = layout.DeadLetter(1, 2, 3, "h", "T", "r", "d", 3, 4, b"b")
    full = Transaction(
        [(0, 1)], [layout.Send(1, 2, 3, [(4, 5)], b"x")], [(6, b"s")], [(7, b"k", None)], [dead], [(8, 9)], [(1, 2, 3)]
    )
    assert frame(2, 3, 8, full).hex() == (
        "36b98ba0" "39000000" "02000000" "03000000"
        "97" "91920001" "919501020391920405c40178" "919206c40173" "919307c4016bc0"
        "919a010203a168a154a172a1640304c40162" "91920809" "9193010203" "00000000000000"
    )  # fmt: skip
    assert int.from_bytes(frame(2, 3, 8, full)[:4], "little") == crc32(frame(2, 3, 8, full)[4:73], 8)


@pytest.mark.parametrize("position", [0, 8, 2**32, 2**32 + 8, 2**40 + 64])
def test_frame_is_good_only_at_its_own_position(position: int) -> None:
    data = memoryview(frame(2, 1, position, transaction(1)))
    assert layout.decode_transaction(layout.decode_frame(data, 0, position).body) == transaction(1)
    with pytest.raises(layout.BadFrame, match="checksum"):
        layout.decode_frame(data, 0, position + 8)


@pytest.mark.parametrize("size", range(24))
def test_frames_are_aligned_whatever_the_size_of_the_body(size: int) -> None:
    record = Transaction(states=[(0, bytes(size))])
    data = frame(2, 1, 0, record)
    found = layout.decode_frame(memoryview(data), 0, 0)
    assert len(data) % 8 == 0
    assert found.end == len(data)
    assert layout.decode_transaction(found.body) == record


def test_sends_are_read_without_the_rest() -> None:
    body = layout.decode_frame(memoryview(frame(2, 1, 0, transaction(5))), 0, 0).body
    assert layout.decode_sends(body) == transaction(5).sends


def test_frame_over_the_limit_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = open_journal(tmp_path)
    monkeypatch.setattr(layout, "MAX_BODY", 1000)
    with pytest.raises(FrameTooLarge) as refusal:
        journal.append(Transaction(states=[(0, bytes(1001))]))
    assert (refusal.value.size > 1001, refusal.value.limit) == (True, 1000)
    journal.append(transaction(1))
    journal.close()
    assert meaning(read(tmp_path)) == series(1)


def test_unencodable_transaction_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    with pytest.raises(TypeError):
        journal.append(Transaction(states=[(0, object())]))  # type: ignore[list-item]
    journal.append(transaction(1))
    journal.close()
    assert meaning(read(tmp_path)) == series(1)


@pytest.mark.parametrize("name", ["1.journal", "0000000000000000000x.journal", "00000000000000000001.journal~", "lock"])
def test_other_files_are_not_taken_for_segments(name: str, tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (tmp_path / name).write_bytes(b"something else")
    assert meaning(read(tmp_path)) == series(2)


def test_every_flipped_bit_is_detected_or_harmless(tmp_path: Path) -> None:
    """2 KiB, every bit: refused, or cut off at the very end as a torn tail, or without effect. Never misread."""
    count = 0
    journal, _ = open_journal(tmp_path)
    while journal.bytes < 2048:
        count += 1
        journal.append(transaction(count))
    journal.close()
    last = journal.position - len(frame(2, 1, 0, transaction(count)))
    good = path_of(tmp_path, 1).read_bytes()
    outcomes = {"refused": 0, "cut": 0, "harmless": 0}
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        directory = InMemory({1: bytes(data)})
        try:
            found = recover(directory, survey(directory))
        except (DamagedJournal, NotAJournal, NewerFormat):
            outcomes["refused"] += 1
            continue
        if found.torn:
            assert bit // 8 >= 32 + last, f"bit {bit} made the reader cut off more than the last frame"
            assert meaning(found) == series(count - 1), f"bit {bit}"
            outcomes["cut"] += 1
        else:
            assert meaning(found) == series(count), f"bit {bit}"
            outcomes["harmless"] += 1
    bodies = [msgpack.encode(transaction(number)) for number in range(1, count + 1)]
    padding = sum(-len(body) % 8 for body in bodies)
    assert outcomes["harmless"] <= 8 * (padding + 7)  # 7: that of the snapshot
    assert outcomes["cut"] <= 8 * (len(good) - 32 - last)
    assert sum(outcomes.values()) == len(good) * 8


def test_check_and_read_agree_about_flipped_bytes(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    good = path_of(tmp_path, 1).read_bytes()
    for offset in range(0, len(good), 3):
        path_of(tmp_path, 1).write_bytes(good[:offset] + bytes([good[offset] ^ 0xFF]) + good[offset + 1 :])
        report = check(tmp_path)
        faults: list[PersistError] = []
        try:
            assert read(tmp_path).torn == report.torn
        except PersistError as fault:
            faults.append(fault)
        assert [repr(fault) for fault in report.faults] == [repr(fault) for fault in faults]
