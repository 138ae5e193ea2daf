"""A full disk: sending is refused and nothing is written, consuming goes on for a while, and room mends everything."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from persist import Journal, JournalFull, Recovered, Retain, Send, Transaction
from persist import files as files_module
from persist import journal as journal_module
from persist import writer as writer_module
from persist.files import Directory
from persist.format import Snapshot
from persist.retention import NOTHING
from tests.persist.building import after, meaning, series, snapshots
from tests.persist.power_loss import Allocate, Disk, NameOperation, Operation, Write

RESERVE = 1000
AHEAD = 3000
NAME_BYTES = 100  # what a new name takes


class NoLock:
    def __init__(self, path: str, descriptor: int) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch)


def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "DirectoryLock", NoLock)
    monkeypatch.setattr(writer_module, "AHEAD_BYTES", AHEAD)


class Budget:
    """A disk with so many bytes. It never fails but where that is told beforehand: when space is reserved, or a file
    is created."""

    def __init__(self, size: int, error: int = errno.ENOSPC) -> None:
        self.disk = Disk()
        self.size = size
        self.error = error
        self.refused = 0
        self.disk.watch = self._watch

    @property
    def used(self) -> int:
        return sum(len(node.data) + NAME_BYTES for node in self.disk.names.values())

    def _watch(self, operation: Operation) -> None:
        grows = 0
        if isinstance(operation, Allocate):
            grows = operation.size - len(operation.node.data)
        elif isinstance(operation, NameOperation) and not operation.old:
            grows = NAME_BYTES
        elif isinstance(operation, Write):
            end = operation.offset + len(operation.content)
            assert end <= len(operation.node.data), "written where nothing was reserved"
        if grows > 0 and self.used + grows > self.size:
            self.refused += 1
            raise OSError(self.error, os.strerror(self.error))

    def contents(self) -> dict[str, bytes]:
        return {name: data.rstrip(b"\0") for name, data in self.disk.contents().items()}


def opened(
    budget: Budget,
    level: str = "process",
    make: Callable[..., Snapshot] | None = None,
    reserve: int = RESERVE,
    retain: Retain = NOTHING,
) -> tuple[Journal, Recovered]:
    return Journal.open(
        "/journal",
        epoch=0,
        level=level,
        make_snapshot=make or snapshots(level=level),
        files=budget.disk.directory,
        clock=lambda: 1,
        reserve=reserve,
        retain=retain,
    )


def sending(number: int, size: int = 200) -> Transaction:
    return Transaction(
        consumed=[(0, number)],
        sends=[Send(0, 1, 0, [(0, number)], bytes(size))],
        states=[(0, b"%d" % number)],
        keys=[(1, b"key %d" % (number % 3), b"%d" % number)],
    )


def fill(journal: Journal, number: int = 0, size: int = 200) -> int:
    """The last number that found room."""
    while True:
        try:
            journal.append(sending(number + 1, size))
        except JournalFull:
            return number
        number += 1


def consume(journal: Journal, number: int) -> None:
    """Changes nothing of what was consumed up to `number`, and takes room."""
    journal.append(Transaction(consumed=[(0, number)] if number else [(1, 0)]))


LEVELS = pytest.mark.parametrize("level", ["process", "power"])


@LEVELS
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_sends_are_refused_and_nothing_is_written(level: str, error: int) -> None:
    budget = Budget(8000, error)
    journal, _ = opened(budget, level)
    number = fill(journal)
    assert number > 10
    assert journal.full
    before, position = budget.contents(), journal.position
    for _ in range(3):
        with pytest.raises(JournalFull) as full:
            journal.append(sending(number + 1))
        assert full.value.needed > 200
        assert 0 < full.value.room < RESERVE + full.value.needed
    assert (budget.contents(), journal.position) == (before, position)
    journal.close()
    assert meaning(opened(budget, level)[1]) == series(number)


@LEVELS
def test_transactions_without_sends_go_on_in_the_reserve_and_no_further(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = fill(journal)
    before = journal.position
    for _ in range(1000):
        try:
            consume(journal, number)
        except JournalFull:
            break
    assert journal.position - before > 0.4 * RESERVE
    assert budget.used <= budget.size
    with pytest.raises(JournalFull):
        consume(journal, number)
    journal.sync()
    journal.close()
    assert meaning(opened(budget, level)[1]) == series(number)


def test_small_send_does_not_use_what_a_large_one_found_no_room_in() -> None:
    """The reserve is for those that consume, and small sends would eat it up."""
    budget = Budget(6000)
    journal, _ = opened(budget)
    number = fill(journal)
    number = fill(journal, number, 0)
    for _ in range(RESERVE // 2 // 32):
        consume(journal, number)
    journal.close()


@LEVELS
def test_what_only_sends_is_refused_first_what_does_both_then_what_only_consumes_last(level: str) -> None:
    """Else a source that takes what its receiver frees would keep that one from handling anything, for ever."""
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    sent = consumed = 0

    def found_room(transaction: Transaction) -> bool:
        try:
            journal.append(transaction)
        except JournalFull:
            return False
        return True

    def send() -> list[Send]:
        return [Send(0, 1, 0, [(0, sent + 1)], b"")]

    while found_room(Transaction(sends=send())):
        sent += 1
    left = budget.used
    while found_room(Transaction(consumed=[(0, consumed + 1)], sends=send())):
        sent, consumed = sent + 1, consumed + 1
    assert consumed >= RESERVE // 2 // 48 - 2
    both = consumed
    while found_room(Transaction(consumed=[(0, consumed + 1)])):
        consumed += 1
    assert consumed - both >= RESERVE // 2 // 32 - 2
    assert budget.used - left < 64, "but for what a larger transaction had found too small"
    journal.close()
    recovered = opened(budget, level)[1]
    assert (recovered.assigned["left"], recovered.watermarks["left"]) == (sent, consumed)


@LEVELS
def test_restarts_on_a_disk_that_others_keep_full_lose_no_reserve(level: str) -> None:
    budget = Budget(60_000)
    journal, _ = opened(budget, level, reserve=20 * RESERVE)
    number = fill(journal)
    for _ in range(30):
        budget.size = budget.used  # whatever is given back, somebody else takes at once
        journal, recovered = opened(budget, level, reserve=20 * RESERVE)
        assert meaning(recovered) == series(number)
        consume(journal, number)


@LEVELS
def test_retained_history_goes_before_anything_is_refused_for_long(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level, retain=Retain(bytes=1 << 30))
    number = refused = 0
    while number < 200:
        try:
            journal.append(sending(number + 1))
        except JournalFull:
            refused += 1
            assert refused < 5, "it is refused again and again"
            if journal.relieves({0: number}):
                journal.rotate(after(number, [(0, number)]))
            journal.trim({0: number})
            continue
        number, refused = number + 1, 0
        if number % 5 == 0 and not journal.full:
            journal.rotate(after(number, [(0, number)]))
            assert journal.trim({0: number}) == 0 or journal.full
    assert journal.segments > 2
    budget.size = budget.used
    journal, recovered = opened(budget, level, retain=Retain(bytes=1 << 30))
    assert meaning(recovered) == series(number)
    journal.close()


@LEVELS
def test_sending_goes_on_by_itself_when_there_is_room_again(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number, told = 0, []
    for _ in range(3):
        filled = fill(journal, number)
        assert filled > number + 10
        number = filled + 1
        told.append(journal.full)
        budget.size += 5000
        journal.append(sending(number))
        told.append(journal.full)
    assert told == [True, False] * 3
    journal.close()


@LEVELS
def test_it_is_full_until_there_is_room_for_what_was_refused(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)

    def send(number: int) -> None:
        journal.append(Transaction(sends=[Send(0, 1, 0, [(0, number)], bytes(900))]))

    number = 0
    with contextlib.suppress(JournalFull):
        while True:
            send(number + 1)
            number += 1
    assert budget.size - budget.used < 900
    for more, still in ((100, True), (100, True), (900, False)):
        budget.size += more
        journal.trim({})
        assert journal.full is still
        journal.append(Transaction(consumed=[(1, more)]))
        assert journal.full is still
    send(number + 1)
    journal.close()


@LEVELS
def test_what_is_let_go_renews_the_reserve_before_others_take_it(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = fill(journal)
    journal.rotate(after(number, [(0, number)]))
    budget.size = budget.used
    assert journal.trim({0: number}) == 1
    budget.size = budget.used
    begun = journal.position
    while journal.position < begun + RESERVE - 50:
        consume(journal, number)
    journal.close()


@LEVELS
def test_acknowledgements_free_the_room_that_sending_needs(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = 0
    for _ in range(20):
        filled = fill(journal, number)
        assert filled > number + 5
        number = filled
        assert not journal.relieves({0: number - 1})
        assert journal.relieves({0: number})
        journal.rotate(after(number, [(0, number)]))
        assert journal.trim({0: number}) == 1
        assert not journal.relieves({0: number})
        assert "spare" in budget.disk.names
    journal.close()
    assert meaning(opened(budget, level)[1]) == series(number)


@LEVELS
def test_what_is_acknowledged_is_let_go_before_anybody_misses_its_room(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may: a journal that is not full itself would keep up to a whole segment that nobody needs."""
    monkeypatch.setattr(journal_module, "AHEAD_BYTES", 3000)
    budget = Budget(100_000)
    journal, _ = opened(budget, level)
    number = 0
    while not journal.relieves({0: number}):
        number += 1
        journal.append(sending(number))
        assert not journal.relieves({0: number - 1})
        assert number < 50
    assert not journal.full
    journal.rotate(after(number, [(0, number)]))
    assert journal.trim({0: number}) == 1
    assert not journal.relieves({0: number})
    journal.close()


@LEVELS
def test_snapshot_larger_than_the_spare_is_refused_and_everything_is_as_before(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = fill(journal)
    before, segments = budget.contents(), journal.segments
    large = after(number, states=[(0, bytes(3 * RESERVE))])
    for _ in range(3):
        with pytest.raises(JournalFull) as full:
            journal.rotate(large)
        assert full.value.needed > 3 * RESERVE
    assert (budget.contents(), journal.segments) == (before, segments)
    consume(journal, number)
    journal.rotate(after(number))
    assert journal.trim({0: number}) == 1
    journal.rotate(large)
    journal.close()
    assert opened(budget, level)[1].states == {"counter": bytes(3 * RESERVE)}


@LEVELS
def test_recovery_after_a_death_on_a_full_disk_needs_no_room(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = fill(journal)
    budget.size = budget.used
    journal, recovered = opened(budget, level)
    assert meaning(recovered) == series(number)
    assert [send.edges[0][1] for _, send in journal.sends(0, 0, 0)] == list(range(1, number + 1))
    consume(journal, number)
    number = fill(journal, number)
    journal.trim({0: number})
    journal.close()


@LEVELS
def test_opening_without_any_room_is_refused_and_changes_nothing(level: str) -> None:
    budget = Budget(8000)
    journal, _ = opened(budget, level)
    number = fill(journal)
    journal.close()
    del budget.disk.names["spare"]
    budget.size = budget.used
    before = budget.contents()
    for _ in range(3):
        with pytest.raises(JournalFull):
            opened(budget, level)
        assert budget.contents() == before
    budget.size += NAME_BYTES
    with pytest.raises(JournalFull):
        opened(budget, level)
    assert budget.contents() == before | {"spare": b""}
    budget.size += 5000
    assert meaning(opened(budget, level)[1]) == series(number)


@LEVELS
def test_first_opening_without_any_room_is_refused(level: str) -> None:
    for size in (0, NAME_BYTES, NAME_BYTES + 50):
        budget = Budget(size)
        with pytest.raises(JournalFull):
            opened(budget, level)
        assert set(budget.contents()) <= {"spare"}
        budget.size = 8000
        journal, recovered = opened(budget, level)
        assert meaning(recovered) == series(0)
        journal.close()


def test_spare_is_made_as_soon_as_there_is_room_for_it() -> None:
    budget = Budget(8000)
    journal, _ = opened(budget)
    fill(journal)
    journal.close()
    budget.size = budget.used
    journal, recovered = opened(budget)  # takes the spare
    number = recovered.assigned["left"]
    with pytest.raises(JournalFull):
        journal.rotate(after(number))
    assert journal.trim({0: number}) == 1
    journal.rotate(after(number))
    journal.close()


class DiskFull(RuleBasedStateMachine):
    """Whatever is tried, in whatever room there is: what raised JournalFull has not happened, all else has."""

    @initialize(level=st.sampled_from(["process", "power"]), room=st.integers(3000, 12_000))
    def begin(self, level: str, room: int) -> None:
        self.patch = pytest.MonkeyPatch()
        patched(self.patch)
        self.level = level
        self.budget = Budget(room)
        self.number = 0
        self.acked = 0
        self.journal, _ = opened(self.budget, level)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.journal.close()
            self.patch.undo()

    def attempt(self, change: Callable[[], object]) -> bool:
        """Whether there was room for it."""
        before, position, refused = self.budget.contents(), self.journal.position, self.budget.refused
        try:
            change()
        except JournalFull:
            found = self.budget.contents()
            found.setdefault("spare", b"")
            assert found == {"spare": b""} | before
            assert self.journal.position == position
            assert self.budget.refused > refused
            return False
        return True

    @rule(size=st.sampled_from([0, 100, 1000, 4000]))
    def send(self, size: int) -> None:
        self.number += self.attempt(lambda: self.journal.append(sending(self.number + 1, size)))

    @rule(count=st.integers(1, 30))
    def consume(self, count: int) -> None:
        for _ in range(count):
            if not self.attempt(lambda: consume(self.journal, self.number)):
                assert self.journal.full
                break

    @rule(large=st.sampled_from([0, 0, 500, 2500]))
    def rotate(self, large: int) -> None:
        made = after(self.number, [(0, self.acked)])
        made.states = made.states or [(0, b"0")]
        made.dead = []
        made.fingerprint = "f" * (1 + large)
        self.attempt(lambda: self.journal.rotate(made))

    @rule(behind=st.integers(0, 3))
    def acknowledge(self, behind: int) -> None:
        self.acked = max(self.acked, self.number - behind)
        self.journal.trim({0: self.acked})

    @precondition(lambda self: self.journal.full)
    @rule()
    def relieve(self) -> None:
        """What the runtime does: afterwards there is room, if it was the journal that took it."""
        self.acked = self.number
        if self.journal.relieves({0: self.acked}):
            small = after(self.number, [(0, self.acked)])
            small.states = small.states or [(0, b"0")]
            if self.attempt(lambda: self.journal.rotate(small)):
                self.journal.trim({0: self.acked})
                assert self.journal.segments == 1

    @rule(room=st.integers(0, 4000))
    def others_take_or_leave(self, room: int) -> None:
        self.budget.size = self.budget.used + room

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        if not killed:
            self.journal.close()
        before = self.budget.contents()
        try:
            self.journal, recovered = opened(self.budget, self.level)
        except JournalFull:
            found = self.budget.contents()
            kept = {name: before[name] for name in found if name != "spare"}  # old ones that nobody needs may be gone
            assert {name: found[name] for name in kept} == kept
            assert max(kept) == max(name for name in before if name != "spare")
            self.budget.size = self.budget.used + 3000
            self.journal, recovered = opened(self.budget, self.level)
        numbers = {"left": self.number} if self.number else {}
        assert recovered.assigned == numbers
        assert {peer: last for peer, last in recovered.watermarks.items() if last} == numbers
        assert recovered.tables == series(self.number)[1]

    @invariant()
    def has_all_that_is_not_acknowledged(self) -> None:
        if hasattr(self, "journal"):
            self.journal._check()
            pending = [send.edges[0][1] for _, send in self.journal.sends(0, self.acked, 0)]
            assert pending == list(range(self.acked + 1, self.number + 1))
            assert self.journal._assigned[0] == self.number


DiskFull.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDiskFull = DiskFull.TestCase


@pytest.mark.parametrize("fallocate", [True, False])
def test_space_is_really_reserved(fallocate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fallocate:
        monkeypatch.setattr(files_module, "_fallocate", None)
    directory = Directory(tmp_path)
    file = directory.create("file")
    file.write(b"content", 0)
    file.allocate(7, 600_000)
    assert file.size() == 600_007
    assert file.read(20, 0) == b"content" + bytes(13)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 600_007
    file.close()
    directory.close()


def test_file_system_that_is_really_full(tmp_path: Path) -> None:
    """A small tmpfs, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    small = f"mount -t tmpfs -o size=4m,mode=700 small {tmp_path}"
    alone = [] if unshare is None else [unshare, "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if unshare is None or subprocess.run([*alone, "sh", "-c", small], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    program = f"{sys.executable} -m tests.persist.full_disk {tmp_path / 'journal'}"
    root = Path(__file__).parents[2]
    subprocess.run([*alone, "sh", "-c", f"{small} && exec {program}"], check=True, cwd=root, timeout=60)
