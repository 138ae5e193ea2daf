"""What recovery reads, and what it does not need to."""

from __future__ import annotations

from pathlib import Path

import pytest

from persist import DamagedJournal, Send, load, read
from persist.files import Directory
from persist.format import decode_sends
from persist.reader import survey
from tests.persist.building import after, open_journal, path_of, transaction


def filled_with_segments(directory: Path, count: int) -> None:
    journal, _ = open_journal(directory)
    for number in range(1, count + 1):
        journal.append(transaction(number))
        if number % 10 == 0:
            journal.rotate(after(number))
    journal.close()


def test_recovery_takes_whole_segments_by_the_checksum_that_the_next_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled_with_segments(tmp_path, 35)
    looked: list[int] = []

    def decode(body: bytes) -> list[Send]:
        looked.append(len(body))
        return decode_sends(body)

    monkeypatch.setattr(load, "decode_sends", decode)
    recovered = read(tmp_path)
    assert looked == []
    assert (recovered.assigned, recovered.unacked_from["left"]) == ({"left": 35}, survey_first(tmp_path))
    path = path_of(tmp_path, 2)
    whole = bytearray(path.read_bytes())
    whole[-12] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedJournal) as damage:
        read(tmp_path)
    assert damage.value.path == str(path)
    assert looked != []


def survey_first(directory: Path) -> int:
    opened = Directory(directory)
    try:
        return survey(opened).segments[0].body
    finally:
        opened.close()
