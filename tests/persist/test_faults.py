"""Failing I/O: the journal is poisoned, nothing is retried, and recovery finds what was acknowledged.

Only where space is reserved, a full disk (or a full quota) is no fault: that is JournalFull, see test_disk_full.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from persist import Journal, JournalFull, JournalPoisoned, Recovered, Send, Transaction, check, read
from persist import writer as writer_module
from persist.files import NO_ROOM, Directory, File
from tests.persist.building import after, meaning, open_journal, path_of, series, snapshots, transaction

ERRORS = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EDQUOT", "EINTR")}


@dataclass
class Fault:
    """Fails call number `at`; `kind` says how: with an error, by a short write, or although it was done. (Calls that
    only sync are not really made: it takes too long.)"""

    at: int
    kind: str
    calls: list[str] = field(default_factory=list)
    hit: str = ""

    def before(self, call: str) -> bool:
        """Raise, or say whether this call is to be done all the same and then fail."""
        self.calls.append(call)
        if len(self.calls) != self.at:
            return False
        self.hit = call
        if self.kind == "after" or (self.kind == "short" and call == "write"):
            return True
        raise OSError(ERRORS.get(self.kind, errno.EIO), f"{self.kind} in call {self.at}, {call}")

    def after(self) -> OSError:
        return OSError(errno.EIO, f"failed after it was done, in call {self.at}")

    @property
    def is_full(self) -> bool:
        """What failed says that there is no room, and was a call that reserves some."""
        return self.hit == "allocate" and ERRORS.get(self.kind) in NO_ROOM


class FailingFile(File):
    def __init__(self, file: File, fault: Fault) -> None:
        super().__init__(file._descriptor, file.path)
        self.fault = fault

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        if not self.fault.before("write"):
            return super().write(data, offset)
        if self.fault.kind == "short":
            return super().write(bytes(data)[: len(data) // 2], offset)
        super().write(data, offset)
        raise self.fault.after()

    def allocate(self, offset: int, size: int) -> None:
        fails = self.fault.before("allocate")
        super().allocate(offset, size)
        if fails:
            raise self.fault.after()

    def read(self, size: int, offset: int) -> bytes:
        if self.fault.before("read"):
            raise self.fault.after()
        return super().read(size, offset)

    def size(self) -> int:
        if self.fault.before("size"):
            raise self.fault.after()
        return super().size()

    def fdatasync(self) -> None:
        if self.fault.before("fdatasync"):
            raise self.fault.after()

    def truncate(self, size: int) -> None:
        fails = self.fault.before("truncate")
        super().truncate(size)
        if fails:
            raise self.fault.after()


class FailingDirectory(Directory):
    def __init__(self, path: str, fault: Fault) -> None:
        super().__init__(path)
        self.fault = fault

    def list(self) -> list[str]:
        if self.fault.before("list"):
            raise self.fault.after()
        return super().list()

    def create(self, name: str) -> File:
        fails = self.fault.before("create")
        file = FailingFile(super().create(name), self.fault)
        if fails:
            file.close()
            raise self.fault.after()
        return file

    def open(self, name: str, *, writable: bool = False) -> File:
        if self.fault.before("open"):
            raise self.fault.after()
        return FailingFile(super().open(name, writable=writable), self.fault)

    def rename(self, old: str, new: str) -> None:
        fails = self.fault.before("rename")
        super().rename(old, new)
        if fails:
            raise self.fault.after()

    def unlink(self, name: str) -> None:
        fails = self.fault.before("unlink")
        super().unlink(name)
        if fails:
            raise self.fault.after()

    def sync(self) -> None:
        if self.fault.before("sync"):
            raise self.fault.after()

    def anchor(self) -> None:
        if self.fault.before("anchor"):
            raise self.fault.after()


@dataclass
class Life:
    """A run over a journal that ends, at the latest, at the first error. `acknowledged`: transactions that returned."""

    acknowledged: int = 3
    error: Exception | None = None
    opened: bool = False
    closing: bool = False

    def live(self, directory: Path, level: str, fault: Fault) -> None:
        journal: Journal | None = None
        try:
            journal, recovered = open_journal(
                directory, level=level, reserve=64, files=lambda path: FailingDirectory(path, fault)
            )
            self.opened = True
            assert meaning(recovered) == series(3)
            for number in range(4, 10):
                journal.append(transaction(number))
                if level == "power":
                    journal.sync()
                self.acknowledged = number
                if number == 6:
                    journal.rotate(after(6))
                    assert [send.edges for _, send in journal.sends(0, 5, 0)] == [[(0, 6)]]
                    journal.trim({0: 6})
            self.closing = True
        except (OSError, JournalPoisoned, JournalFull) as error:
            self.error = error
        finally:
            if journal is not None:
                if isinstance(self.error, JournalPoisoned):
                    stays_poisoned(journal)
                journal.close()


def stays_poisoned(journal: Journal) -> None:
    calls: list[Callable[[], object]] = [
        lambda: journal.append(transaction(4)),
        lambda: journal.append(Transaction(consumed=[(0, 99)])),
        journal.sync,
        lambda: journal.rotate(after(6)),
        lambda: journal.trim({0: 99}),
        lambda: next(journal.sends(0, 0, 0)),
    ]
    for call in calls:
        with pytest.raises(JournalPoisoned):
            call()


@pytest.fixture(scope="module")
def torn_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three transactions in two segments, and a torn tail."""
    directory = tmp_path_factory.mktemp("torn")
    journal, _ = open_journal(directory)
    journal.append(transaction(1))
    journal.append(transaction(2))
    journal.rotate(after(2))
    journal.append(transaction(3))
    journal.append(transaction(4))
    journal.close()
    path = path_of(directory, 2)
    path.write_bytes(path.read_bytes()[:-8])
    return directory


@pytest.mark.parametrize("level", ["process", "power"])
@pytest.mark.parametrize("kind", [*ERRORS, "short", "after"])
def test_every_failing_call_poisons_and_recovery_finds_what_was_acknowledged(
    kind: str, level: str, torn_journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "AHEAD_BYTES", 0)  # space is reserved for every frame
    at, hits = 0, set()
    while True:
        at += 1
        directory = tmp_path / str(at)
        shutil.copytree(torn_journal, directory)
        life, fault = Life(), Fault(at, kind)
        life.live(directory, level, fault)
        if not fault.hit:
            assert life.error is None
            break
        hits.add(fault.hit)
        if fault.is_full:
            assert life.error is None, f"call {at}: less was enough, and {life.error!r}"
        elif life.error is None and fault.hit in ("create", "open", "size"):
            assert ERRORS.get(kind) in NO_ROOM  # then the spare can wait
        elif life.closing:
            assert (fault.hit, life.error) == ("truncate", None)  # readers do not mind what was reserved
        else:
            assert life.error is not None, f"call {at}, {fault.hit}, failed and nobody heard"
            if life.opened and fault.hit not in ("read", "open", "size"):
                assert isinstance(life.error, JournalPoisoned), f"call {at}: {life.error!r}"
            if isinstance(life.error, JournalPoisoned):
                assert len(fault.calls) == at, f"went on after call {at}: {fault.calls[at:]}"
        found = read(directory)
        assert meaning(found) in (series(life.acknowledged), series(life.acknowledged + 1)), f"call {at}, {fault.hit}"
        journal, recovered = open_journal(directory)
        number = recovered.assigned["left"]
        assert meaning(recovered) == series(number)
        pending = [send.edges[0][1] for _, send in journal.sends(0, 0, 0)]
        trimmed = range(1, 7) if life.acknowledged >= 6 else ()
        assert set(range(1, number + 1)).difference(pending, trimmed) == set()
        assert pending == sorted(set(pending))
        journal.append(transaction(number + 1))
        journal.close()
        report = check(directory)
        assert report.ok, f"call {at}: {report}"
        shutil.rmtree(directory)
    expected = {"list", "open", "read", "size", "create", "allocate", "write", "truncate", "rename", "unlink"}
    assert hits == expected | ({"fdatasync", "sync", "anchor"} if level == "power" else set())
    assert at > 50


def test_poisoned_journal_says_where_and_why(tmp_path: Path) -> None:
    fault = Fault(-1, "short")
    journal, _ = open_journal(tmp_path, files=lambda path: FailingDirectory(path, fault))
    journal.append(transaction(1))
    size = journal._writer.offset
    fault.at = len(fault.calls) + 1
    with pytest.raises(JournalPoisoned) as poisoned:
        journal.append(transaction(2))
    assert (poisoned.value.path, poisoned.value.offset) == (str(path_of(tmp_path, 1)), size)
    assert poisoned.value.cause.startswith("short write: ")
    stays_poisoned(journal)
    journal.close()
    found = read(tmp_path)
    assert meaning(found) == series(1)
    assert found.torn is not None
    assert found.torn.offset == size


def test_failed_sync_is_never_retried(tmp_path: Path) -> None:
    """The kernel forgets a failed write-back: a second fdatasync would succeed and lie."""
    fault = Fault(-1, "EIO")
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: FailingDirectory(path, fault))
    journal.append(transaction(1))
    fault.at = len(fault.calls) + 1
    with pytest.raises(JournalPoisoned, match="fdatasync failed"):
        journal.sync()
    count = len(fault.calls)
    stays_poisoned(journal)
    assert len(fault.calls) == count
    journal.close()


class Interrupt(BaseException):
    pass


class Interrupting(Fault):
    """A signal handler raises when the call has been made and nobody has taken note of it yet."""

    def after(self) -> OSError:
        raise Interrupt


def test_interrupted_write_poisons(tmp_path: Path) -> None:
    """Going on would write the next frame for a position that is taken."""
    fault = Interrupting(-1, "after")
    journal, _ = open_journal(tmp_path, files=lambda path: FailingDirectory(path, fault))
    journal.append(transaction(1))
    fault.at = len(fault.calls) + 1
    with pytest.raises(Interrupt):
        journal.append(transaction(2))
    assert fault.hit == "write"
    stays_poisoned(journal)
    journal.close()
    assert meaning(read(tmp_path)) == series(2)


@pytest.mark.parametrize("level", ["process", "power"])
def test_interrupted_rotation_poisons(level: str, tmp_path: Path) -> None:
    """Going on in the old segment when the new one has its name would leave a journal that nobody can read."""
    hits = set()
    for ahead in range(1, 20):
        fault, directory = Interrupting(-1, "after"), tmp_path / str(ahead)
        journal, _ = open_journal(directory, level=level, files=lambda path, f=fault: FailingDirectory(path, f))
        journal.append(transaction(1))
        fault.at = len(fault.calls) + ahead
        try:
            journal.rotate(after(1))
        except Interrupt:
            hits.add(fault.hit)
            if fault.hit == "fdatasync" and ahead == 1:
                journal.append(transaction(2))  # of the old segment: that changed nothing
            else:
                stays_poisoned(journal)
        fault.at = -1
        journal.close()
        assert meaning(read(directory)) in (series(1), series(2))
        if not fault.hit:
            break
    assert hits == {"open", "size", "create", "allocate", "write", "rename", "truncate"} | (
        {"fdatasync", "sync"} if level == "power" else set()
    )


def test_large_write_leaves_no_large_buffer_behind(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(sends=[Send(0, 1, 0, [(0, 1)], bytes(8 << 20))]))
    assert len(journal._writer._buffer) == 0
    journal.close()


def test_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        open_journal(tmp_path / "file" / "journal")


def test_snapshot_maker_sees_what_recovery_found(torn_journal: Path, tmp_path: Path) -> None:
    shutil.copytree(torn_journal, tmp_path / "journal")
    given: list[Recovered | None] = []

    def make(recovered: Recovered | None, epoch: int) -> object:
        given.append(recovered)
        return snapshots()(recovered, epoch)

    journal, recovered = open_journal(tmp_path / "journal", make_snapshot=make)
    assert given == [recovered]
    assert recovered.torn is not None
    journal.close()
