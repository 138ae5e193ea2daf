"""What recovery reads, and what it does not need to."""

from __future__ import annotations

from pathlib import Path

import pytest

from persist import DamagedJournal, Recovered, Send, Transaction, load, read
from persist.files import Directory
from persist.format import decode_sends
from persist.reader import Survey, survey
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


def test_recovery_takes_whole_segments_also_when_one_peer_is_far_behind_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 41):
        sends = [Send(0, 1, 0, [(0, number), (1, number)], b"to both")]
        journal.append(Transaction(sends=sends))
        if number % 10 == 0:
            numbers = [(0, number), (1, number)]
            made = after(0, assigned=numbers, acked=[(0, number - 10)])
            journal.rotate(made)
    journal.close()

    def decode(body: bytes) -> list[Send]:
        raise AssertionError("looked at each frame")

    monkeypatch.setattr(load, "decode_sends", decode)
    recovered = read(tmp_path)
    assert (recovered.acked["left"], recovered.acked.get("right", 0)) == (30, 0)
    begin = recovered.unacked_from["right"]
    assert begin == survey_first(tmp_path)
    assert recovered.unacked_from["left"] is not None
    assert begin is not None
    assert recovered.unacked_from["left"] > begin
    monkeypatch.undo()
    journal, _ = open_journal(tmp_path)
    assert [send.edges for _, send in journal.sends(1, 0, begin)] == [[(1, number)] for number in range(1, 41)]
    first = recovered.unacked_from["left"]
    assert [send.edges for _, send in journal.sends(0, 30, first)] == [[(0, number)] for number in range(31, 41)]
    journal.close()


def test_damage_counts_when_two_readings_agree_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live writer goes on between two calls of one reading, and what it leaves there may not fit together."""
    filled_with_segments(tmp_path, 15)
    results = iter([DamagedJournal("/j", 1, 2, "moving"), DamagedJournal("/j", 3, 4, "moving")])

    def recover(directory: Directory, found: Survey) -> Recovered:
        problem = next(results, None)
        if problem is not None:
            raise problem
        return real(directory, found)

    real = load.recover
    monkeypatch.setattr(load, "recover", recover)
    assert read(tmp_path).assigned == {"left": 15}
    results = iter([DamagedJournal("/j", 1, 2, "there")] * 2)
    with pytest.raises(DamagedJournal, match="there"):
        read(tmp_path)
