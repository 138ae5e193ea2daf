"""Replaying a journal from any position, and following it while it is written, trimmed, killed and begun again."""

from __future__ import annotations

import os
import pickle
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persist import DamagedJournal, DeadLetter, NewerFormat, NotAJournal, Recovered, Send, Transaction, read
from persist.files import Directory, File
from persist.format import SEGMENT_HEADER, TRANSACTION, encode_frame, encode_segment_header
from persist.history import POLL, Record, SentRun, apply, beginning, replay, tail
from persist.history_errors import CannotRepair, DiscardNeeded, NoSuchPosition, PositionGone

from .building import after, filled, in_segments, open_journal, path_of, series, transaction

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


def numbers(records: Iterator[Record] | list[Record]) -> list[int]:
    """Which transactions of the series these are."""
    return [record.consumed["left"] for record in records]


def state_after(state: Recovered, records: list[Record]) -> tuple:
    """What a follower of the series makes of the state it begins with, and the records."""
    states, table = dict(state.states), dict(state.tables.get("table", {}))
    watermarks, assigned = dict(state.watermarks), dict(state.assigned)
    for record in records:
        states |= record.states
        watermarks |= record.consumed
        for handler, key, value in record.keys:
            assert handler == "table"
            assert value is not None
            table[key] = value
        for run in record.sends:
            assigned |= {peer: first + run.count - 1 for peer, first in run.edges.items()}
    return states, {"table": table} if table else {}, watermarks, assigned, {}, []


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x55
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------------- replay
def test_a_record_is_a_transaction_by_name(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    dead = DeadLetter(0, 6, 1, "counter", "Row", "why", "trace", 3, 12345, b"letter")
    position = journal.append(
        Transaction([(0, 7)], [Send(1, 2, 5, [(1, 1), (0, 1)], b"body")], [(0, b"state")], [(1, b"k", None)], [dead])
    )
    (record,) = replay(tmp_path)
    assert (record.position, record.end, record.epoch, record.segment) == (position, journal.position, 1, 1)
    assert record.consumed == {"left": 7}
    assert record.sends == [SentRun(("table", "Row"), 2, 5, {"right": 1, "left": 1}, b"body")]
    assert record.states == {"counter": b"state"}
    assert record.keys == [("table", b"k", None)]
    (letter,) = record.dead
    assert (letter.peer, letter.route, letter.body) == ("left", ("table", "Row"), b"letter")
    journal.close()


def test_replay_from_every_position_gives_what_follows_it(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 3, 4, 0, 2)
    records = list(replay(tmp_path))
    assert numbers(records) == [*range(1, 10)]
    assert [record.position for record in records] == positions
    for index, record in enumerate(records):
        assert list(replay(tmp_path, record.position)) == records[index:]
        assert list(replay(tmp_path, record.end)) == records[index + 1 :], "an end is a place to go on from"


def test_names_are_those_of_the_segment(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    from .building import snapshots

    make = snapshots(peers=("right", "left"), handlers=("table", "counter"))
    journal, _ = open_journal(tmp_path, make_snapshot=make)
    journal.append(Transaction([(1, 2)], states=[(1, b"2")]))
    journal.close()
    assert [(record.consumed, record.states) for record in replay(tmp_path)] == [
        ({"left": 1}, {"counter": b"1"}),
        ({"left": 2}, {"counter": b"2"}),
    ]


@pytest.mark.parametrize("closed", [True, False])
def test_a_position_that_is_no_record_is_refused_with_the_nearest(tmp_path: Path, closed: bool) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 4):
        journal.append(transaction(number))
    journal.rotate(after(3))
    for number in range(4, 6):
        journal.append(transaction(number))
    if closed:
        journal.close()
    records = list(replay(tmp_path))
    ends = {record.end for record in records}
    good = {0, *ends, *(record.position for record in records)}
    for position in range(1, records[-1].end + 1000):
        if position in good:
            assert [r.position for r in replay(tmp_path, position)] == [
                r.position for r in records if r.position >= position
            ]
            continue
        with pytest.raises(NoSuchPosition) as caught:
            next(replay(tmp_path, position), None)
        assert caught.value.position == position
        assert caught.value.nearest == max(p for p in (*good, records[3].position) if p < position)
    journal.close()


def test_a_journal_without_segments_has_only_the_beginning(tmp_path: Path) -> None:
    assert list(replay(tmp_path)) == []
    assert beginning(tmp_path) == Recovered()
    with pytest.raises(NoSuchPosition):
        next(replay(tmp_path, 8))
    with pytest.raises(FileNotFoundError):
        next(replay(tmp_path / "missing"))


def test_what_was_trimmed_is_gone_and_says_where_to_go_on(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    positions = []
    for number in range(1, 10):
        positions.append(journal.append(transaction(number)))
        if number % 3 == 0:
            journal.rotate(after(number))
    assert journal.trim({0: 6}) == 2
    with pytest.raises(PositionGone) as caught:
        next(replay(tmp_path, positions[5]))
    assert caught.value.position == positions[5]
    assert numbers(replay(tmp_path, caught.value.oldest)) == [7, 8, 9]
    assert numbers(replay(tmp_path)) == [7, 8, 9], "0 is the beginning of what is left"
    journal.close()


def test_the_beginning_and_the_records_make_the_whole_state(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 12):
        journal.append(transaction(number))
        if number % 3 == 0:
            journal.rotate(after(number))
    for gone in (0, 3, 6, 9):
        journal.trim({0: gone})
        state = beginning(tmp_path)
        assert state_after(state, []) == series(gone)
        assert state.acked.get("left", 0) == gone
        assert state_after(state, list(replay(tmp_path, state.position))) == series(11)
    journal.close()


def test_an_open_directory_can_be_replayed_and_stays_open(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 2)
    directory = Directory(tmp_path, create=False)
    assert numbers(replay(directory)) == [1, 2, 3, 4]
    assert len(directory.list()) >= 2
    directory.close()


def test_replay_leaves_no_file_open(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 3, 3, 3)
    before = os.listdir("/proc/self/fd")
    list(replay(tmp_path))
    iterator = replay(tmp_path, positions[4])
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    with pytest.raises(NoSuchPosition):
        next(replay(tmp_path, positions[4] + 8))
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ------------------------------------------------------------------------------------------------------- damage
def test_every_damaged_frame_is_told_after_all_that_stand_before_it(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 3, 3, 3)
    segment_of = [1, 1, 1, 2, 2, 2, 3, 3]
    for index, number in enumerate(segment_of):
        begin = decode_first(tmp_path, number)
        offset = positions[index] - begin + SEGMENT_HEADER
        flip(path_of(tmp_path, number), offset + 20)
        seen: list[Record] = []
        with pytest.raises(DamagedJournal) as caught:
            seen.extend(replay(tmp_path))
        assert (caught.value.path, caught.value.offset) == (str(path_of(tmp_path, number)), offset)
        if index:
            assert next(iter(replay(tmp_path))).position == positions[0]
        reader = replay(tmp_path)
        for position in positions[:index]:
            assert next(reader).position == position
        with pytest.raises(DamagedJournal):
            next(reader)
        if number < 3:
            assert numbers(replay(tmp_path, positions[7])) == [8, 9], "damage that lies before it is not its affair"
        flip(path_of(tmp_path, number), offset + 20)


def decode_first(directory: Path, number: int) -> int:
    return int.from_bytes(path_of(directory, number).read_bytes()[24:32], "little")


def test_a_damaged_head_or_a_missing_segment_is_damage(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 2, 2)
    for offset in (0, 25, SEGMENT_HEADER + 20):
        flip(path_of(tmp_path, 2), offset)
        reader = replay(tmp_path)
        assert [next(reader).consumed["left"] for _ in range(2)] == [1, 2]
        with pytest.raises(DamagedJournal):
            next(reader)
        with pytest.raises((DamagedJournal, NotAJournal)):  # it cannot be told what a file was that has lost its magic
            next(replay(tmp_path, positions[3]))
        flip(path_of(tmp_path, 2), offset)
    path_of(tmp_path, 2).unlink()
    for read_on in (replay, tail):
        reader = read_on(tmp_path)
        assert [next(reader).consumed["left"] for _ in range(2)] == [1, 2]
        with pytest.raises(DamagedJournal, match="segment 2 is missing"):
            next(reader)


def test_a_torn_tail_is_the_end(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2, 2)
    path = path_of(tmp_path, 2)
    whole = path.read_bytes()
    frame = positions[3] - decode_first(tmp_path, 2) + SEGMENT_HEADER
    for size in range(frame + 1, len(whole) - 8, 5):
        for rest in (b"", bytes(64), bytes(100_000)):
            path.write_bytes(whole[:size] + rest)
            assert numbers(replay(tmp_path)) == [1, 2, 3]
            assert numbers(tail(tmp_path, positions[1], timeout=0)) == [2, 3]
    path.write_bytes(whole[:40])
    assert numbers(replay(tmp_path)) == [1, 2], "a segment whose head is cut short"
    assert numbers(tail(tmp_path, timeout=0)) == [1, 2]


def test_a_body_that_does_not_decode_is_damage(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 2)
    buffer = bytearray()
    for body in ([1], [[[5, 1]], [], [], [], []]):
        encode_frame(buffer, TRANSACTION, 1, positions[1], body)
        whole = path_of(tmp_path, 1).read_bytes()
        path_of(tmp_path, 1).write_bytes(whole[: SEGMENT_HEADER + positions[1]] + buffer)
        reader = replay(tmp_path)
        next(reader)
        with pytest.raises(DamagedJournal) as caught:
            next(reader)
        assert caught.value.offset == SEGMENT_HEADER + positions[1]


def test_a_newer_segment_is_refused_where_it_begins(tmp_path: Path) -> None:
    in_segments(tmp_path, 2, 2)
    path = path_of(tmp_path, 2)
    path.write_bytes(encode_segment_header(2, decode_first(tmp_path, 2), 99) + path.read_bytes()[SEGMENT_HEADER:])
    for reader in (replay(tmp_path), tail(tmp_path)):
        assert [next(reader).consumed["left"] for _ in range(2)] == [1, 2]
        with pytest.raises(NewerFormat):
            next(reader)


# ------------------------------------------------------------------------------------------------------- a live journal
def test_replay_of_a_live_journal_ends_at_its_present_end(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 4):
        journal.append(transaction(number))
        assert numbers(replay(tmp_path)) == [*range(1, number + 1)]
        assert numbers(replay(tmp_path, journal.position)) == []
    journal.rotate(after(3))
    assert numbers(replay(tmp_path)) == [1, 2, 3]
    journal.close()


def test_replay_ends_although_the_writer_is_always_ahead(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    written = 1
    for record in replay(tmp_path):
        assert record.consumed["left"] <= 3
        written += 1
        journal.append(transaction(written))
        if written % 2 == 0:
            journal.rotate(after(written))
    assert written >= 2
    journal.close()


def test_a_segment_that_is_trimmed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 7):
        journal.append(transaction(number))
        if number % 3 == 0:
            journal.rotate(after(number))
    reader = replay(tmp_path)
    assert next(reader).consumed["left"] == 1
    journal.trim({0: 3})
    assert numbers(reader) == [2, 3, 4, 5, 6]
    journal.close()


@pytest.mark.parametrize("read_on", [replay, tail])
def test_records_that_were_trimmed_before_they_were_read_are_never_passed_over(
    tmp_path: Path, read_on: Callable[[Path], Iterator[Record]]
) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 10):
        journal.append(transaction(number))
        if number % 3 == 0:
            journal.rotate(after(number))
    reader = read_on(tmp_path)
    assert next(reader).consumed["left"] == 1
    journal.trim({0: 6})
    assert [next(reader).consumed["left"] for _ in range(2)] == [2, 3]
    with pytest.raises(PositionGone) as caught:
        next(reader)
    assert numbers(replay(tmp_path, caught.value.oldest)) == [7, 8, 9]
    journal.close()


class Stale(Directory):
    """Shows what a file was, for so many reads: as a reader sees a frame that is written at this instant."""

    def __init__(self, path: Path, before: bytes) -> None:
        super().__init__(path, create=False)
        self.before = before
        self.reads = 0

    def open(self, name: str, *, writable: bool = False) -> File:
        opened = super().open(name, writable=writable)
        read, owner = opened.read, self

        def stale(size: int, offset: int) -> bytes:
            if size > 1000 and offset > SEGMENT_HEADER and owner.reads:
                owner.reads -= 1
                return owner.before[offset : offset + size]
            return read(size, offset)

        opened.read = stale  # type: ignore[method-assign]
        return opened


def test_a_frame_that_is_written_while_it_is_looked_at_is_no_damage(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    torn = bytearray(path_of(tmp_path, 1).read_bytes())
    offset = journal.position + SEGMENT_HEADER
    for number in (2, 3):
        journal.append(transaction(number))
    torn[offset : offset + 24] = path_of(tmp_path, 1).read_bytes()[offset : offset + 24]  # the first half of frame 2
    for stale in (1, 2, 3, 4):
        directory = Stale(tmp_path, bytes(torn))
        directory.reads = stale
        assert numbers(replay(directory)) == [1, 2, 3]
        assert directory.reads == 0
        directory.close()
    journal.close()


# ------------------------------------------------------------------------------------------------------- following
FOLLOWERS: list[Follower] = []


@pytest.fixture(autouse=True)
def followers_end() -> Iterator[None]:
    """Also those of a test that has failed."""
    yield
    while FOLLOWERS:
        FOLLOWERS.pop().end()


class Follower:
    """A tail in a thread; what it saw, and how it ended."""

    def __init__(
        self, directory: Path, from_position: int = 0, timeout: float | None = None, tells: Path | None = None
    ) -> None:
        self.records: list[Record] = []
        self._tells = tells  # how many it has seen, for a writer that is not to trim more
        self.times: list[float] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self.looks = 0
        self._reader = tail(directory, from_position, timeout=timeout, stop=self._stops)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        FOLLOWERS.append(self)

    def _stops(self) -> bool:
        self.looks += 1
        return self._stop.is_set()

    def _run(self) -> None:
        try:
            for record in self._reader:
                self.times.append(time.monotonic())
                self.records.append(record)
                if self._tells is not None and len(self.records) % 64 == 0:
                    self._tells.write_text(str(len(self.records)))
        except Exception as error:
            self.error = error

    def has(self, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while len(self.records) < count:
            assert self._thread.is_alive(), f"it ended after {len(self.records)} records: {self.error!r}"
            assert time.monotonic() < deadline, f"{len(self.records)} of {count} records"
            select.select([], [], [], 0.001)

    def ended(self) -> BaseException | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.error

    def end(self) -> BaseException | None:
        self._stop.set()
        return self.ended()

    def stop(self) -> list[int]:
        error = self.end()
        assert error is None, repr(error)
        return numbers(self.records)


def test_a_follower_sees_what_is_appended_in_later_segments_and_incarnations(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    journal, _ = open_journal(tmp_path)
    for number in range(1, 10):
        journal.append(transaction(number))
        follower.has(number)
        if number % 2 == 0:
            journal.rotate(after(number))
            journal.trim({0: number})
        if number % 4 == 0:
            journal.close()
            journal, _ = open_journal(tmp_path)
    assert follower.stop() == [*range(1, 10)]
    assert {record.epoch for record in follower.records} == {1, 2, 3}
    journal.close()


def test_a_follower_shows_a_frame_when_it_is_whole(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path = path_of(tmp_path, 1)
    end = path.stat().st_size
    buffer = bytearray()
    encode_frame(buffer, TRANSACTION, 1, end - SEGMENT_HEADER, transaction(2))
    with path.open("r+b") as file:
        file.truncate(end + 65536)
        follower = Follower(tmp_path)
        follower.has(1)
        for at in range(0, len(buffer), 3):
            assert numbers(follower.records) == [1]
            os.pwrite(file.fileno(), buffer[at : at + 3], end + at)
    follower.has(2)
    assert follower.stop() == [1, 2]


def test_a_torn_tail_is_never_shown_to_a_follower_that_sees_what_takes_its_place(tmp_path: Path) -> None:
    positions = filled(tmp_path, 3)
    path = path_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[: positions[2] + SEGMENT_HEADER + 30] + bytes(5000))
    follower = Follower(tmp_path)
    follower.has(2)
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(3))
    follower.has(3)
    assert follower.stop() == [1, 2, 3]
    assert follower.records[2].epoch == 2
    assert list(replay(tmp_path)) == follower.records
    journal.close()


def test_following_ends_after_the_timeout_without_anything_new(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    started = time.monotonic()
    assert numbers(tail(tmp_path, timeout=0.05)) == [1, 2]
    assert 0.05 <= time.monotonic() - started < SECONDS
    assert numbers(tail(tmp_path, timeout=0.0)) == [1, 2]


def test_following_stops_when_asked_to_even_between_records(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    seen: list[Record] = []
    for record in tail(tmp_path, stop=lambda: len(seen) == 3):
        seen.append(record)
    assert numbers(seen) == [1, 2, 3]


def test_a_follower_tells_damage_when_something_stands_behind_it_or_at_its_timeout(tmp_path: Path) -> None:
    positions = filled(tmp_path, 3)
    path = path_of(tmp_path, 1)
    flip(path, positions[1] + SEGMENT_HEADER + 20)
    follower = Follower(tmp_path, timeout=0.01)
    assert isinstance(follower.ended(), DamagedJournal)
    assert numbers(follower.records) == [1]
    follower = Follower(tmp_path)
    assert isinstance(follower.ended(), DamagedJournal), "it looks closely after a while without anything new"
    flip(path, positions[1] + SEGMENT_HEADER + 20)
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(4))
    journal.close()
    flip(path, positions[2] + SEGMENT_HEADER + 20)
    follower = Follower(tmp_path)
    error = follower.ended()
    assert isinstance(error, DamagedJournal)
    assert error.offset == positions[2] + SEGMENT_HEADER
    assert numbers(follower.records) == [1, 2]


def test_following_is_quick_while_records_come_and_cheap_while_none_do(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    follower = Follower(tmp_path)
    follower.has(1)
    delays = []
    for number in range(2, 42):
        appended = time.monotonic()
        journal.append(transaction(number))
        follower.has(number)
        delays.append(follower.times[-1] - appended)
    assert sorted(delays)[len(delays) // 2] < 0.5
    delays = []
    for number in range(42, 49):
        select.select([], [], [], 0.03)
        appended = time.monotonic()
        journal.append(transaction(number))
        follower.has(number)
        delays.append(follower.times[-1] - appended)
    assert sorted(delays)[3] < 0.5, "also after a pause"
    begun, before = time.monotonic(), follower.looks
    select.select([], [], [], 0.5)
    looks, took = follower.looks - before, time.monotonic() - begun
    assert looks <= took / POLL[1] + 10, "looks while there is nothing new"
    follower.stop()
    journal.close()


WRITER = """
import random, sys, time
from pathlib import Path
from tests.persist.building import after, open_journal, transaction

directory, seed = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
journal, recovered = open_journal(directory, segment_bytes=2000)
number = recovered.watermarks.get("left", 0)
print(number, flush=True)
while True:
    number += 1
    journal.append(transaction(number))
    if chance.random() < 0.02:
        journal.rotate(after(number))
    if chance.random() < 0.02:
        seen = int((directory / "seen").read_text() or 0) if (directory / "seen").exists() else 0
        journal.trim({0: max(0, min(seen, number - chance.randrange(1000, 2000)))})
    if number % 4 == 0:
        time.sleep(0.0001)
"""


def killed_writer(directory: Path, seed: int, seconds: float) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(seed)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline()
        select.select([writer.stdout], [], [], seconds)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()


def test_a_follower_of_a_writer_that_is_killed_again_and_again_sees_every_record_once(tmp_path: Path) -> None:
    chance = random.Random(7)
    follower = Follower(tmp_path, tells=tmp_path / "seen")
    for seed in range(5):
        killed_writer(tmp_path, seed, chance.uniform(0.02, 0.15))
        if chance.random() < 0.7:
            tear(tmp_path, chance)
        # From any position at which it ever was, a replay gives what the follower saw and what came since.
        kept = [record for record in list(follower.records) if record.position >= beginning(tmp_path).position]
        assert [*replay(tmp_path)][: len(kept)] == kept
    end = read(tmp_path).watermarks["left"]
    follower.has(end)
    assert follower.stop() == [*range(1, end + 1)]
    assert len({record.position for record in follower.records}) == end
    kept = [record for record in follower.records if record.position >= beginning(tmp_path).position]
    assert list(replay(tmp_path)) == kept
    middle = kept[len(kept) // 2]
    assert list(tail(tmp_path, middle.position, timeout=0)) == list(replay(tmp_path, middle.position))
    print(f"{end} records, {follower.records[-1].segment} segments")


def tear(directory: Path, chance: random.Random) -> None:
    """A frame that was being written when the writer died."""
    found = read(directory)
    last = max(int(path.name[:20]) for path in directory.glob("*.journal"))
    buffer = bytearray()
    encode_frame(buffer, TRANSACTION, found.epoch, found.position, transaction(found.watermarks.get("left", 0) + 1))
    with path_of(directory, last).open("r+b") as file:
        file.seek(found.position - decode_first(directory, last) + SEGMENT_HEADER)
        file.write(buffer[: chance.randrange(1, len(buffer) - 8)])


def test_a_history_applied_from_its_beginning_has_the_letters_and_the_attempts_that_recovery_has(
    tmp_path: Path,
) -> None:
    def letter(seq: int) -> DeadLetter:
        return DeadLetter(0, seq, 0, "counter", "Tick", "why", "", 3, 7, b"poison")

    journal, _ = open_journal(tmp_path)
    for made in (
        Transaction(attempts=[(0, 1, 1), (1, 5, 1)]),
        Transaction([(0, 1)], dead=[letter(1)]),
        Transaction([(0, 3)], dead=[letter(2), letter(3)], attempts=[(1, 5, 2), (0, 4, 1)]),
        Transaction(removed=[(0, 1), (0, 3)]),
    ):
        journal.append(made)
    journal.close()
    state = beginning(tmp_path)
    for record in replay(tmp_path):
        apply(state, record)
    found = read(tmp_path)
    assert state.dead == found.dead
    assert [one.seq for one in found.dead] == [2]
    assert state.attempts == found.attempts == {("right", 5): 2, ("left", 4): 1}


# ------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "error",
    [
        PositionGone("here", 5, 100),
        NoSuchPosition("here", 5, 0, "it ends at"),
        DiscardNeeded("here", "damaged", ["one", "two"]),
        CannotRepair("here", "nothing left", "copy"),
    ],
)
def test_errors_survive_pickling_with_their_values(error: Exception) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), vars(copied), str(copied)) == (type(error), vars(error), str(error))
    assert "here" in str(error)
