"""Journals as records for programs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from persist import DamagedJournal, DeadLetter, Send, Transaction
from persist.export import ExportedSegment, ExportedTransaction, export, segments
from persist.history import LOST
from persist.history_errors import NoSuchPosition

from .building import after, in_segments, open_journal, path_of, transaction

BILLION = 1_000_000_000


def told(directory: Path, position: int = 0, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(msgspec.json.encode(record)) for record in export(directory, position, **options)]


def everything(directory: Path) -> None:
    """A journal with one transaction that has some of each, and a second segment."""
    journal, _ = open_journal(directory, clock=lambda: 5 * BILLION)
    dead = DeadLetter(0, 6, 1, "counter", "Row", "why", "secret trace", 3, 7 * BILLION, b"secret letter")
    journal.append(
        Transaction(
            [(0, 7)],
            [Send(0, 2, 5, [(1, 1)], b"secret body"), Send(1, 3, LOST, [(0, 1)], b"")],
            [(0, b"secret state")],
            [(1, b"secret key", b"secret value"), (1, b"k", None)],
            [dead],
            [(1, 4)],
            [(0, 9, 2)],
        )
    )
    journal.rotate(after(0, assigned=[(1, 2), (0, 3)], acked=[(1, 1)], states=[(0, b"secret state")], dead=[dead]))
    journal.close()


def test_every_part_of_a_transaction_is_told_by_ids_types_and_sizes(tmp_path: Path) -> None:
    everything(tmp_path)
    first, one, second = told(tmp_path)
    assert one == {
        "kind": "transaction",
        "position": first["records_position"],
        "end_position": second["first_position"],
        "segment": 1,
        "epoch": 1,
        "consumed": {"left": 7},
        "sends": [
            {"source": "counter", "type": "Tick", "count": 2, "first": {"right": 1}, "size_bytes": 11, "flags": 5},
            {
                "source": "table",
                "type": "Row",
                "count": 3,
                "first": {"left": 1},
                "size_bytes": 0,
                "flags": LOST,
                "lost": True,
            },
        ],
        "states": [{"handler": "counter", "size_bytes": 12}],
        "keys": [
            {"handler": "table", "key_size_bytes": 10, "size_bytes": 12},
            {"handler": "table", "key_size_bytes": 1, "removed": True},
        ],
        "dead_letters": [
            {
                "id": "left/6",
                "source": "table",
                "handler": "counter",
                "type": "Row",
                "size_bytes": 13,
                "reason": "why",
                "attempts": 3,
                "time": "1970-01-01T00:00:07.000+00:00",
                "time_unix_seconds": 7.0,
            }
        ],
        "dead_letters_removed": ["right/4"],
        "attempts": {"left/9": 2},
    }
    assert (first["kind"], first["number"], first["level"], first["routes"]) == (
        "segment",
        1,
        "process",
        [["counter", "Tick"], ["table", "Row"]],
    )
    assert (first["begun"], first["begun_unix_seconds"]) == ("1970-01-01T00:00:05.000+00:00", 5.0)
    assert (second["assigned"], second["acked"]) == ({"right": 2, "left": 3}, {"right": 1})
    assert (second["states"], second["dead_letters"]) == ([{"handler": "counter", "size_bytes": 12}], 1)


def test_payloads_are_there_only_when_asked_for(tmp_path: Path) -> None:
    everything(tmp_path)
    text = json.dumps(told(tmp_path))
    assert "secret" not in text
    assert base64.b64encode(b"secret")[:8].decode() not in text
    _, one, second = told(tmp_path, payloads=True)
    assert base64.b64decode(one["sends"][0]["body_base64"]) == b"secret body"
    assert base64.b64decode(one["states"][0]["value_base64"]) == b"secret state"
    assert base64.b64decode(one["keys"][0]["key_base64"]) == b"secret key"
    assert base64.b64decode(one["keys"][0]["value_base64"]) == b"secret value"
    assert "value_base64" not in one["keys"][1]
    assert base64.b64decode(one["dead_letters"][0]["body_base64"]) == b"secret letter"
    assert one["dead_letters"][0]["detail"] == "secret trace"
    assert base64.b64decode(second["states"][0]["value_base64"]) == b"secret state"


def test_the_records_are_those_of_a_replay_with_their_segments_before_them(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 0, 3)
    records = list(export(tmp_path))
    assert [type(record).__name__[8:] for record in records] == [
        "Segment",
        "Transaction",
        "Transaction",
        "Segment",
        "Segment",
        "Transaction",
        "Transaction",
        "Transaction",
    ]
    found = [record for record in records if isinstance(record, ExportedTransaction)]
    assert [record.position for record in found] == positions
    head, *rest = export(tmp_path, positions[3])
    assert isinstance(head, ExportedSegment)
    assert head.number == 3, "what the positions belong to, also where it begins in the middle"
    assert [record.position for record in rest if isinstance(record, ExportedTransaction)] == positions[3:]
    with pytest.raises(NoSuchPosition):
        list(export(tmp_path, positions[3] + 8))


def test_a_journal_is_exported_while_it_is_written(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    reader = export(tmp_path, follow=True, stop=lambda: journal.position < 0)
    assert isinstance(next(reader), ExportedSegment)
    assert isinstance(next(reader), ExportedTransaction)
    journal.append(transaction(2))
    assert isinstance(next(reader), ExportedTransaction)
    journal.rotate(after(2))
    journal.append(transaction(3))
    assert isinstance(next(reader), ExportedSegment)
    last = next(reader)
    assert isinstance(last, ExportedTransaction)
    assert last.consumed == {"left": 3}
    reader.close()  # type: ignore[attr-defined]
    assert len(list(export(tmp_path, follow=True, timeout=0))) == 5
    journal.close()


def test_what_stands_before_damage_is_exported(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 2)
    data = bytearray(path_of(tmp_path, 1).read_bytes())
    data[positions[1] + 60] ^= 1
    path_of(tmp_path, 1).write_bytes(data)
    reader = export(tmp_path)
    assert [type(next(reader)) for _ in range(2)] == [ExportedSegment, ExportedTransaction]
    with pytest.raises(DamagedJournal):
        next(reader)


# ------------------------------------------------------------------------------------------------------- segments
def test_segments_are_listed_with_what_they_hold(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, clock=lambda: 5 * BILLION)
    for number in range(1, 6):
        journal.append(transaction(number))
        if number == 3:
            journal.rotate(after(3))
    first, second = segments(tmp_path)
    assert (first.number, first.epoch, first.frames, first.first_position) == (1, 1, 4, 0)
    assert (first.size_bytes, first.reserved_bytes) == (path_of(tmp_path, 1).stat().st_size, 0)
    assert first.end_position == second.first_position
    assert (second.frames, second.end_position) == (3, journal.position)
    assert second.size_bytes + second.reserved_bytes == path_of(tmp_path, 2).stat().st_size
    assert second.reserved_bytes > 0
    assert first.begun == "1970-01-01T00:00:05.000+00:00"
    journal.close()
    assert segments(tmp_path)[1].reserved_bytes == 0


def test_segments_are_listed_whatever_is_wrong_with_them(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 2, 2, 2)
    for number, offset in ((1, positions[1] + 60), (2, 25)):
        data = bytearray(path_of(tmp_path, number).read_bytes())
        data[offset] ^= 1
        path_of(tmp_path, number).write_bytes(data)
    path_of(tmp_path, 3).unlink()
    listed = segments(tmp_path)
    assert [(one.number, one.frames) for one in listed] == [(1, 2), (2, 0), (4, 3)]
    assert "checksum" in listed[0].problem
    assert "header" in listed[1].problem
    assert "segment 3 is missing before it" in listed[2].problem
