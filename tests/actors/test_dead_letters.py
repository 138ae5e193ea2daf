"""What is told of messages that were given up on, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors.dead_letters import DeadLetters, collect
from actors.rundir import NotYours, RunDirectory
from persist import DeadLetter, Journal, Recovered, Transaction, snapshot_of

from .faked import FakeSystem

PAYLOAD = b"\x91\xa6secret"
SECOND = 1_000_000_000


@pytest.fixture
def system(tmp_path: Path) -> Iterator[FakeSystem]:
    fake = FakeSystem(tmp_path / "home", shared_memory=False)
    yield fake
    fake.unlink()


def bury(system: FakeSystem, worker: str, *letters: DeadLetter) -> Path:
    """These letters are in the journal of the worker."""
    with RunDirectory.open(system.path) as directory:
        path = directory.journal(worker)
    journal, _ = Journal.open(
        path,
        epoch=0,
        level="process",
        make_snapshot=lambda recovered, epoch: snapshot_of(
            recovered or Recovered(),
            level="process",
            fingerprint="f",
            peers=["gateway", "ingest", "stats"],
            handlers=["averager"],
            routes=[("feed", "shop.Trade"), ("gateway:averager", "shop.Ask")],
        ),
    )
    for letter in letters:
        journal.append(Transaction(consumed=[(letter.peer, letter.seq)], sends=[], states=[], keys=[], dead=[letter]))
    journal.close()
    return path


def letter(peer: int = 1, seq: int = 7, *, route: int = 0, at: float = 1_700_000_000.25) -> DeadLetter:
    return DeadLetter(
        peer=peer,
        seq=seq,
        route=route,
        handler="averager",
        type="shop.Trade",
        reason="ValueError: no price",
        detail="Traceback (most recent call last):\nValueError: no price\n",
        attempts=3,
        time_ns=int(at * SECOND),
        body=PAYLOAD,
    )


def test_a_dead_letter_is_told_by_ids_types_and_sizes(system: FakeSystem) -> None:
    bury(system, "stats", letter())
    (found,) = collect(system.path).dead_letters
    assert (found.id, found.worker, found.peer, found.seq) == ("ingest/7", "stats", "ingest", 7)
    assert (found.source, found.handler, found.type, found.size_bytes) == (
        "feed",
        "averager",
        "shop.Trade",
        len(PAYLOAD),
    )
    assert (found.reason, found.attempts) == ("ValueError: no price", 3)
    assert found.time == "2023-11-14T22:13:20.250+00:00"
    assert found.time_unix_seconds == pytest.approx(1_700_000_000.25)


def test_payloads_are_not_told(system: FakeSystem) -> None:
    bury(system, "stats", letter())
    assert b"secret" not in msgspec.json.encode(collect(system.path, tracebacks=True))


def test_tracebacks_are_told_only_if_asked_for(system: FakeSystem) -> None:
    bury(system, "stats", letter())
    assert collect(system.path).dead_letters[0].traceback == ""
    assert b'"traceback"' not in msgspec.json.encode(collect(system.path))
    assert "Traceback (most recent call last)" in collect(system.path, tracebacks=True).dead_letters[0].traceback


def test_dead_letters_of_all_workers_come_in_order_of_time(system: FakeSystem) -> None:
    bury(system, "stats", letter(seq=1, at=30), letter(seq=2, at=10))
    bury(system, "ingest", letter(peer=2, seq=5, at=20))
    assert [found.id for found in collect(system.path).dead_letters] == ["ingest/2", "stats/5", "ingest/1"]


def test_what_came_from_outside_is_told_to_be_from_the_gateway(system: FakeSystem) -> None:
    bury(system, "stats", letter(peer=0, route=1))
    (found,) = collect(system.path).dead_letters
    assert (found.id, found.source) == ("gateway/7", "gateway")


def test_a_worker_that_the_topology_no_longer_has_keeps_its_dead_letters(system: FakeSystem) -> None:
    bury(system, "former", letter())
    assert collect(system.path).dead_letters[0].worker == "former"


def test_a_journal_that_cannot_be_read_is_told_and_the_others_are_shown(system: FakeSystem) -> None:
    bury(system, "stats", letter())
    path = bury(system, "ingest", letter())
    (segment,) = path.glob("*.journal")
    segment.write_bytes(b"something else")
    found = collect(system.path)
    assert [one.worker for one in found.dead_letters] == ["stats"]
    assert [one.worker for one in found.unreadable] == ["ingest"]
    assert "is not a journal segment" in found.unreadable[0].problem


def test_collecting_takes_no_lock_and_changes_nothing(system: FakeSystem) -> None:
    path = bury(system, "stats", letter())
    journal, _ = Journal.open(
        path,
        epoch=1,
        level="process",
        make_snapshot=lambda recovered, epoch: snapshot_of(
            recovered or Recovered(), level="process", fingerprint="f", peers=["ingest"], handlers=[], routes=[]
        ),
    )
    before = {file: file.read_bytes() for file in path.iterdir() if file.name != "lock"}
    assert len(collect(system.path).dead_letters) == 1
    assert {file: file.read_bytes() for file in path.iterdir() if file.name != "lock"} == before
    journal.append(Transaction(consumed=[(0, 8)], sends=[], states=[], keys=[], dead=[]))
    journal.close()


def test_a_system_that_never_had_a_journal_has_none(system: FakeSystem) -> None:
    found = collect(system.path)
    assert (found.name, found.dead_letters, found.unreadable) == ("trades", (), ())


def test_links_among_the_journals_are_not_followed(system: FakeSystem, tmp_path: Path) -> None:
    path = bury(system, "stats", letter())
    (path.parent / "link").symlink_to(path)
    assert [found.worker for found in collect(system.path).dead_letters] == ["stats"]


def test_somebody_elses_dead_letters_are_not_looked_at(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    bury(system, "stats", letter())
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(NotYours):
        collect(system.path)


def test_a_directory_without_a_system_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home" / "empty").mkdir(parents=True, mode=0o700)
    with pytest.raises(FileNotFoundError):
        collect(tmp_path / "home" / "empty")


def test_the_json_can_be_read_back(system: FakeSystem) -> None:
    bury(system, "stats", letter())
    found = collect(system.path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=DeadLetters) == found
