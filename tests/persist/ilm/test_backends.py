"""What every backend promises, asked of all of them."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persist.errors import SequenceBroken
from persist.ilm.backend import Backend, Change, PeerState, Run
from persist.ilm.backend_journal import JournalBackend
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.backend_sqlite import SQLiteBackend
from persist.ilm.errors import BackendFailed, BackendInUse, NotAStore, StorageFull
from persist.ilm.message import PeerId
from tests.persist.ilm.backend_building import KINDS, LASTING, SERIES_KEYS, Disk, Model, opener, perform, plain

DEADLINE = 100.0

Open = Callable[[], Backend]


class Store:
    """One storage and who has it open."""

    def __init__(self, make: Open) -> None:
        self.make = make
        self.backend = make()
        self.found = self.backend.recover()

    def reopen(self) -> Backend:
        self.backend.close()
        self.backend = self.make()
        self.found = self.backend.recover()
        return self.backend

    def before_and_after(self, restarts: int = 1) -> Iterator[Backend]:
        """The backend as it is, and then as it is found again."""
        yield self.backend
        for _ in range(restarts):
            yield self.reopen()

    def send(self, peer: PeerId, *runs: tuple[int, int]) -> list[int]:
        """Commit runs of (first, count), each on its own; the positions."""
        return [self.backend.commit(Change([(peer, run(first, count))])) for first, count in runs]


def run(first: int, count: int = 1) -> Run:
    return Run(first, count, b"%d+%d" % (first, count))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[Store]:
    store = Store(opener(kind, tmp_path))
    yield store
    store.backend.close()


# ---------------------------------------------------------------------------------------------------- committing
def test_a_new_storage_is_empty(store: Store) -> None:
    assert not store.found
    assert list(store.backend.runs("bob", 0, 0)) == []
    assert store.backend.get("user/key") is None


def test_the_durability_is_the_one_that_was_asked_for(store: Store, kind: str) -> None:
    assert store.backend.durability == kind.rpartition("-")[2]


def test_all_parts_of_a_change_are_found_again(store: Store) -> None:
    change = Change(
        sends=[("bob", run(1)), (5, run(1, 3)), ("bob", run(2, 2))],
        consumed=[("eve", 7), (5, 2)],
        values=[("user/key", b"value"), ("ilm/empty", b"")],
    )
    position = store.backend.commit(change)
    for backend in store.before_and_after():
        assert plain(backend.runs("bob", 0, 0)) == [(1, 1, b"1+1"), (2, 2, b"2+2")]
        assert plain(backend.runs(5, 0, 0)) == [(1, 3, b"1+3")]
        assert {found.position for found in backend.runs("bob", 0, 0)} == {position}
        assert (backend.get("user/key"), backend.get("ilm/empty")) == (b"value", b"")
    assert store.found == {
        "bob": PeerState(3, 0, 0, position),
        5: PeerState(3, 0, 2, position),
        "eve": PeerState(0, 0, 7, None),
    }


def test_a_run_knows_its_place_and_places_grow(store: Store) -> None:
    positions = store.send("bob", (1, 1), (2, 1))
    store.backend.commit(Change(consumed=[("bob", 1)]))
    positions += store.send("eve", (1, 1))
    store.reopen()
    positions += store.send("bob", (3, 5))
    assert positions == sorted(set(positions))
    assert [found.position for found in store.backend.runs("bob", 0, 0)] == [positions[0], positions[1], positions[3]]


def test_values_are_replaced_and_removed(store: Store) -> None:
    store.backend.commit(Change(values=[("user/a", b"1"), ("user/b", b"2"), ("user/c", None)]))
    store.backend.commit(Change(values=[("user/a", b"3"), ("user/b", None), ("user/c", b""), ("user/c", b"4")]))
    for backend in store.before_and_after():
        assert [backend.get(f"user/{key}") for key in "abc"] == [b"3", None, b"4"]


def test_an_empty_change_is_a_commit_like_others(store: Store) -> None:
    store.backend.commit(Change())
    assert store.send("bob", (1, 1))
    assert store.reopen().commit(Change())


IDS: list[PeerId] = [
    0,
    5,
    2**64 - 1,
    "5",
    "0",
    "i:5",
    "s:5",
    "2/s:5",
    " ",
    "\0",
    "a\0b",
    "a" * 255,
    "é" * 127,
    "\n/'\"",
]


def test_every_peer_id_is_another_peer(store: Store) -> None:
    store.backend.commit(Change([(peer, Run(1, 1, repr(peer).encode())) for peer in IDS]))
    for backend in store.before_and_after():
        for peer in IDS:
            assert plain(backend.runs(peer, 0, 0)) == [(1, 1, repr(peer).encode())]
    assert list(map(repr, sorted(store.found, key=repr))) == sorted(map(repr, IDS))


@pytest.mark.parametrize("first", [0, 1, 2, 4, 9])
def test_numbers_that_do_not_continue_are_refused_and_nothing_is_changed(store: Store, first: int) -> None:
    store.send("bob", (1, 2))
    wrong = Change(
        sends=[("new", run(1)), ("bob", run(3, 5)), ("bob", run(first))],
        consumed=[("bob", 1)],
        values=[("user/key", b"value")],
    )
    with pytest.raises(SequenceBroken) as caught:
        store.backend.commit(wrong)
    assert caught.value.got == first
    for backend in store.before_and_after():
        assert plain(backend.runs("bob", 0, 0)) == [(1, 2, b"1+2")]
        assert list(backend.runs("new", 0, 0)) == []
        assert backend.get("user/key") is None
    assert {peer: (state.assigned, state.watermark) for peer, state in store.found.items()} == {"bob": (2, 0)}
    store.send("bob", (3, 1))


def test_a_run_without_messages_is_refused(store: Store) -> None:
    with pytest.raises(SequenceBroken):
        store.backend.commit(Change([("bob", Run(1, 0, b""))]))
    store.send("bob", (1, 1))


# ---------------------------------------------------------------------------------------------------- loading
RUNS = [(1, 1), (2, 3), (5, 1), (6, 10), (16, 1)]


@pytest.mark.parametrize("after", [0, 1, 2, 4, 5, 9, 15, 16, 99])
def test_runs_are_loaded_from_behind_any_number(store: Store, after: int) -> None:
    store.send("bob", *RUNS)
    store.send("eve", (1, 50))
    expected = [(first, count) for first, count in RUNS if first + count - 1 > after]
    for backend in store.before_and_after():
        assert [(found.first, found.count) for found in backend.runs("bob", after, 0)] == expected


def test_runs_are_loaded_from_any_position(store: Store) -> None:
    positions = store.send("bob", *RUNS)
    for backend in store.before_and_after():
        for index, position in enumerate(positions):
            assert [(found.first, found.count) for found in backend.runs("bob", 0, position)] == RUNS[index:]
            assert [found.first for found in backend.runs("bob", 5, position)] == [6, 16][max(0, index - 3) :]


def test_many_runs_are_loaded_while_more_are_committed(store: Store) -> None:
    store.send("bob", *((number, 1) for number in range(1, 301)))
    loaded: list[int] = []
    committed = 300
    for found in store.backend.runs("bob", 0, 0):
        loaded.append(found.first)
        if committed < 400:
            committed += 1
            store.send("bob", (committed, 1))
            store.backend.acknowledged("bob", found.first)
    assert loaded == list(range(1, len(loaded) + 1))
    assert len(loaded) >= 300
    assert [found.first for found in store.reopen().runs("bob", 100, 0)] == list(range(101, 401))


def test_large_bodies_come_back_whole(store: Store) -> None:
    bodies = [os.urandom(size) for size in (1, 70_000, 0, 3_000_000)]
    for number, body in enumerate(bodies, 1):
        store.backend.commit(Change([("bob", Run(number, 1, body))]))
    for backend in store.before_and_after():
        assert [found.body for found in backend.runs("bob", 0, 0)] == bodies


# ---------------------------------------------------------------------------------------------------- letting go
def test_what_is_acknowledged_stays_so_at_most_and_the_rest_is_kept(store: Store) -> None:
    store.send("bob", *RUNS)
    store.backend.acknowledged("bob", 7)
    store.backend.acknowledged("bob", 3)  # late, and older
    for backend in store.before_and_after():
        assert [found.first for found in backend.runs("bob", 7, 0)] == [6, 16]
    state = store.found["bob"]
    assert state.assigned == 16
    assert state.acked <= 7
    assert state.from_position is not None
    assert [found.first for found in store.backend.runs("bob", 7, state.from_position)] == [6, 16]


@pytest.mark.parametrize("through", [1, 255, 256, 257, 599, 600])
def test_a_long_outbox_is_acknowledged_bit_by_bit(store: Store, through: int) -> None:
    store.backend.commit(Change([("bob", run(number)) for number in range(1, 601)]))
    for acknowledged in (through // 2, through):
        store.backend.acknowledged("bob", acknowledged)
    for backend in store.before_and_after():
        assert [found.first for found in backend.runs("bob", through, 0)] == list(range(through + 1, 601))


def test_memory_knows_exactly_what_is_acknowledged() -> None:
    backend = MemoryBackend()
    backend.recover()
    backend.commit(Change([("bob", run(1)), ("bob", run(2, 5))]))
    for through in (1, 3, 2):
        backend.acknowledged("bob", through)
    backend.close()
    assert backend.recover() == {"bob": PeerState(6, 3, 0, 1)}
    backend.close()


def test_acknowledging_what_was_never_sent_is_ignored(store: Store) -> None:
    store.backend.acknowledged("nobody", 5)
    store.send("bob", (1, 2))
    store.backend.acknowledged("bob", 9)
    assert store.reopen().runs("nobody", 0, 0) is not None
    assert "nobody" not in store.found
    assert store.found["bob"].acked <= 2
    store.send("bob", (3, 1))
    assert [found.first for found in store.backend.runs("bob", 2, 0)] == [3]


@pytest.mark.parametrize("kind", ["journal-process", "sqlite-process"], indirect=True)
def test_storage_does_not_grow_by_what_is_acknowledged_and_consumed(store: Store, tmp_path: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())

    def circle(first: int) -> None:
        for number in range(first, first + 1000):
            store.backend.commit(
                Change([("bob", Run(number, 1, bytes(500)))], [("bob", number)], [("user/number", b"%d" % number)])
            )
            store.backend.acknowledged("bob", number)

    circle(1)
    once = size()
    for turn in range(1, 8):
        circle(1 + 1000 * turn)
    assert size() < once + 500_000


def test_a_peer_that_is_forgotten_begins_anew_and_others_do_not(store: Store) -> None:
    for peer in ("bob", 5):
        store.backend.commit(Change([(peer, run(1, 4))], [(peer, 3)], [(f"ilm/{peer}", b"kept")]))
    store.backend.forget("bob")
    store.backend.forget("nobody")
    for backend in store.before_and_after(2):
        assert list(backend.runs("bob", 0, 0)) == []
        assert plain(backend.runs(5, 0, 0)) == [(1, 4, b"1+4")]
        assert backend.get("ilm/bob") == b"kept"
    assert store.found.keys() == {5}
    with pytest.raises(SequenceBroken):
        store.send("bob", (5, 1))
    store.send("bob", (1, 2))
    assert plain(store.reopen().runs("bob", 0, 0)) == [(1, 2, b"1+2")]
    assert (store.found["bob"].assigned, store.found["bob"].watermark) == (2, 0)
    assert (store.found[5].assigned, store.found[5].watermark) == (4, 3)


def test_a_peer_can_be_forgotten_again_and_again(store: Store) -> None:
    store.send("eve", (1, 1))  # never acknowledged: what came before stays on disk
    for turn in range(1, 7):
        store.send("bob", *((number, 1) for number in range(1, turn + 1)))
        store.backend.forget("bob")
        if turn % 2:
            store.reopen()
            assert store.found.keys() == {"eve"}
    store.backend.acknowledged("eve", 1)
    store.send("bob", (1, 1))
    for _ in range(3):
        store.reopen()
        assert store.found["bob"].assigned == 1
        assert plain(store.backend.runs("bob", 0, 0)) == [(1, 1, b"1+1")]


def test_loading_ends_when_the_peer_is_forgotten(store: Store) -> None:
    store.send("eve", (1, 1))  # whose message lies beside the others
    store.send("bob", *((number, 1) for number in range(1, 401)))
    loading = store.backend.runs("bob", 0, 0)
    assert next(loading).first == 1
    store.backend.forget("bob")
    store.send("bob", (1, 700))
    rest = list(loading)
    assert all(found.count == 1 for found in rest)
    assert len(rest) < 100  # what had been loaded already
    assert plain(store.backend.runs("bob", 0, 0)) == [(1, 700, b"1+700")]


# ---------------------------------------------------------------------------------------------------- no room
def cramped(kind: str, place: Path) -> Backend:
    """A backend that has room for some hundred kilobytes. Recovered."""
    name, _, durability = kind.partition("-")
    if name == "memory":
        backend: Backend = MemoryBackend(limit=400_000)
    elif name == "journal":
        backend = JournalBackend(place / "small", durability, reserve=1 << 14, files=Disk(400_000))
    else:
        backend = SQLiteBackend(place / "small.db", durability)
    backend.recover()
    if isinstance(backend, SQLiteBackend):
        assert backend._database is not None
        backend._database.execute("PRAGMA max_page_count = 100")
    return backend


def fill(backend: Backend, peer: PeerId, first: int) -> int:
    """Send until there is no room; the first number that was refused. The refused change is one of many parts."""
    for number in range(first, first + 200):
        change = Change(
            [("other", Run(number, 1, b"")), (peer, Run(number, 1, bytes(5000)))],
            [(peer, number)],
            [("user/number", b"%d" % number)],
        )
        try:
            backend.commit(change)
        except StorageFull:
            return number
    raise AssertionError("it never filled up")


def test_what_finds_no_room_is_refused_whole_and_consuming_goes_on(kind: str, tmp_path: Path) -> None:
    backend = cramped(kind, tmp_path)
    try:
        refused = fill(backend, "bob", 1)
        assert refused > 10
        for _ in range(3):
            assert fill(backend, "bob", refused) == refused
        for number in range(100):
            backend.commit(Change(consumed=[("bob", 1000 + number)], values=[("user/number", b"%d" % number)]))
        assert [found.first for found in backend.runs("bob", 0, 0)] == list(range(1, refused))
        assert [found.first for found in backend.runs("other", 0, 0)] == list(range(1, refused))
        assert backend.get("user/number") == b"99"
        backend.close()
        state = backend.recover()["bob"]
        assert (state.assigned, state.watermark) == (refused - 1, 1099)
    finally:
        backend.close()


def test_there_is_room_again_when_what_was_sent_is_acknowledged(kind: str, tmp_path: Path) -> None:
    backend = cramped(kind, tmp_path)
    try:
        refused = 1
        for _ in range(4):
            begun, refused = refused, fill(backend, "bob", refused)
            assert refused > begun + 10
            for peer in ("bob", "other"):
                backend.acknowledged(peer, refused - 1)
    finally:
        backend.close()


def test_there_is_room_again_when_the_peer_is_forgotten(kind: str, tmp_path: Path) -> None:
    backend = cramped(kind, tmp_path)
    try:
        assert fill(backend, "bob", 1) > 10
        for peer in ("bob", "other"):
            backend.forget(peer)
        assert fill(backend, "bob", 1) > 10
    finally:
        backend.close()


# ---------------------------------------------------------------------------------------------------- opening, closing
def test_a_storage_has_one_user(store: Store, kind: str) -> None:
    other = store.make()
    with pytest.raises(BackendInUse) as caught:
        other.recover()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    store.send("bob", (1, 1))
    store.reopen()
    assert store.found.keys() == {"bob"}


@pytest.mark.parametrize("kind", ["journal-process", "sqlite-process"], indirect=True)
def test_a_storage_has_one_user_among_processes(store: Store, kind: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.persist.ilm.backend_child", kind, str(tmp_path), "0"],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert found.returncode != 0
    assert "BackendInUse" in found.stderr
    assert f"process {os.getpid()}" in found.stderr


def test_recover_comes_once(store: Store) -> None:
    with pytest.raises(BackendInUse):
        store.backend.recover()
    store.send("bob", (1, 1))


def test_nothing_goes_before_recover_or_after_close(store: Store) -> None:
    loading = store.backend.runs("bob", 0, 0)
    store.send("bob", (1, 1))
    store.backend.close()
    store.backend.close()
    for backend in (store.backend, store.make()):
        for call in (
            lambda backend=backend: backend.commit(Change([("bob", run(2))])),
            lambda backend=backend: asyncio.run(backend.sync()),
            lambda backend=backend: list(backend.runs("bob", 0, 0)),
            lambda backend=backend: backend.get("user/key"),
            lambda backend=backend: backend.forget("bob"),
        ):
            with pytest.raises(BackendFailed):
                call()
    del loading
    store.reopen()
    assert store.found["bob"].assigned == 1


def test_a_closed_backend_can_be_recovered_again(store: Store) -> None:
    store.send("bob", (1, 1))
    store.backend.close()
    found = store.backend.recover()
    assert found["bob"].assigned == 1
    store.send("bob", (2, 1))
    assert [loaded.first for loaded in store.backend.runs("bob", 0, 0)] == [1, 2]


def test_sync_returns_and_may_be_awaited_by_many(store: Store) -> None:
    async def many() -> None:
        async with asyncio.timeout(DEADLINE):
            await store.backend.sync()
            for number in range(1, 20):
                store.send("bob", (number, 1))
                await asyncio.gather(*(store.backend.sync() for _ in range(5)))

    asyncio.run(many())
    asyncio.run(many_more(store))
    assert store.reopen()
    assert store.found["bob"].assigned == 39


async def many_more(store: Store) -> None:
    """In another event loop, and each on its own."""

    async def one(number: int) -> None:
        store.send("bob", (number, 1))
        await store.backend.sync()

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(one(number) for number in range(20, 40)))


@pytest.mark.parametrize("make", [JournalBackend, SQLiteBackend])
def test_an_unknown_durability_is_refused(make: type[JournalBackend] | type[SQLiteBackend], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory"):
        make(tmp_path / "x", "memory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", LASTING, indirect=True)
def test_nobody_else_can_read_what_is_kept(store: Store, tmp_path: Path) -> None:
    store.send("bob", (1, 1))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_series_of_everything_is_kept_over_restarts(store: Store) -> None:
    model = Model()
    for number in range(1, 150):
        perform(model, number, store.backend)
        if number % 29 == 0:
            store.reopen()
            model.check(store.backend, store.found.items(), SERIES_KEYS)
    model.check(store.backend, None, SERIES_KEYS)


# ---------------------------------------------------------------------------------------------------- kill -9
@pytest.mark.parametrize("kind", ["journal-process", "journal-power", "sqlite-process"])
def test_a_killed_process_loses_nothing_that_was_committed(kind: str, tmp_path: Path) -> None:
    """A child commits the series and says so after each commit. However it dies, all of that is there, and at most one
    act more; the next child goes on from what is found."""
    model, done = Model(), 0
    for kill_after in (1, 60, 7, 150, 33):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.persist.ilm.backend_child", kind, str(tmp_path), str(done)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        with child:
            reported = done
            for _ in range(kill_after):
                reported = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            *_, reported = [reported, *(int(line) for line in child.stdout if line.endswith(b"\n"))]
        assert child.returncode == -signal.SIGKILL
        backend = opener(kind, tmp_path)()
        found = backend.recover()
        try:
            while done < reported:
                done += 1
                perform(model, done)
            try:
                model.check(backend, found.items(), SERIES_KEYS)
            except AssertionError:
                done += 1
                perform(model, done)
                model.check(backend, found.items(), SERIES_KEYS)
        finally:
            backend.close()
    assert done > 200


def test_something_else_is_not_taken_for_a_storage(tmp_path: Path) -> None:
    error = NotAStore("here", "it is a cake")
    assert str(pickle.loads(pickle.dumps(error))) == "here is not the storage of an ILM: it is a cake"


def test_memory_needs_no_place() -> None:
    backend = MemoryBackend()
    assert backend.recover() == {}
    backend.close()
