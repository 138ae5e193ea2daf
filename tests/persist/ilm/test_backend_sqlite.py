"""What the SQLite backend promises beside the contract of all backends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import persist.ilm.backend_sqlite
from persist.errors import NewerFormat
from persist.ilm.backend import Change, Run
from persist.ilm.backend_sqlite import SQLiteBackend
from persist.ilm.errors import BackendFailed, BackendInUse, NotAStore, StorageFull
from persist.ilm.sqlite_file import APPLICATION_ID, SCHEMA_VERSION

CHANGE = Change([("bob", Run(1, 2, b"body")), (5, Run(1, 1, b"five"))], [("bob", 9)], [("user/key", b"value")])


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(tmp_path / "ilm.db")
    backend.recover()
    yield backend
    backend.close()


def test_one_can_look_inside_with_sql_while_it_is_used(backend: SQLiteBackend) -> None:
    backend.commit(CHANGE)
    assert persist.ilm.backend_sqlite.__doc__ is not None
    queries = re.findall(r"SELECT [^;]*;", persist.ilm.backend_sqlite.__doc__)
    with closing(sqlite3.connect(f"file:{backend.path}?mode=ro", uri=True)) as other:
        rows = [other.execute(query).fetchall() for query in queries]
        backend.commit(Change(consumed=[("bob", 10)]))
        watermark = other.execute("SELECT watermark FROM peers WHERE name = 'bob'").fetchall()
    assert [sorted(found) for found in rows] == [
        [("5", 1, 0), ("bob", 2, 9)],
        [("5", 1, 1, 4), ("bob", 1, 2, 4)],
        [("user/key", b"value")],
    ]
    assert watermark == [(10,)]


def test_a_reader_that_does_not_end_does_not_keep_commits_from_going_on(backend: SQLiteBackend) -> None:
    backend.commit(CHANGE)
    with closing(sqlite3.connect(f"file:{backend.path}?mode=ro", uri=True)) as other:
        reading = other.execute("SELECT * FROM outbox")
        assert reading.fetchone() is not None
        for number in range(2, 100):
            backend.commit(Change([(5, Run(number, 1, bytes(100)))]))
        reading.close()


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_power_syncs_every_transaction(tmp_path: Path, durability: str, level: int) -> None:
    backend = SQLiteBackend(tmp_path / "ilm.db", durability)
    backend.recover()
    try:
        assert backend._database is not None
        assert backend._database.execute("PRAGMA synchronous").fetchone() == (level,)
        assert backend._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        backend.close()


def test_the_database_says_what_it_is(backend: SQLiteBackend) -> None:
    with closing(sqlite3.connect(f"file:{backend.path}?mode=ro", uri=True)) as other:
        assert other.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert other.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def of_another_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.executescript("PRAGMA application_id = 7; CREATE TABLE peers (a)")


def of_no_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE cakes (a); INSERT INTO cakes VALUES (1)")


def of_a_later_version(path: Path) -> None:
    backend = SQLiteBackend(path)
    backend.recover()
    backend.commit(CHANGE)
    assert backend._database is not None
    backend._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    backend.close()
    for suffix in ("-lock", "-reserve"):
        Path(f"{path}{suffix}").unlink()


@pytest.mark.parametrize(
    ("make", "error"),
    [(garbage, NotAStore), (of_another_application, NotAStore), (of_no_application, NotAStore),
     (of_a_later_version, NewerFormat)],
)  # fmt: skip
def test_what_is_not_ours_or_newer_is_refused_untouched(tmp_path: Path, make, error: type[Exception]) -> None:
    path = tmp_path / "ilm.db"
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(error, match=r"ilm\.db"):
            SQLiteBackend(path).recover()
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"ilm.db", "ilm.db-lock"}


def test_what_a_crash_left_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    """To open it in earnest would be to carry its log over."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.executescript("PRAGMA journal_mode = WAL; PRAGMA user_version = 1; CREATE TABLE cakes (a)")
        other.execute("PRAGMA wal_checkpoint")
        other.executescript("INSERT INTO cakes VALUES (1)")
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"other.db{suffix}", tmp_path / f"ilm.db{suffix}")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("ilm.db*")}
    with pytest.raises(NotAStore):
        SQLiteBackend(tmp_path / "ilm.db").recover()
    (tmp_path / "ilm.db-lock").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("ilm.db*")} == before


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """It is what a crash at the creation leaves."""
    (tmp_path / "ilm.db").touch()
    backend = SQLiteBackend(tmp_path / "ilm.db")
    assert backend.recover() == {}
    backend.commit(CHANGE)
    backend.close()


def test_a_creation_that_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    """All is in the file, and the journal that would undo it as well: the commit was not reached."""
    backend = SQLiteBackend(tmp_path / "a.db")
    creating = (
        "import os, sqlite3, sys\n"
        "from persist.ilm.sqlite_file import APPLICATION_ID, SCHEMA, SCHEMA_VERSION\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA cache_size = 1')\n"
        "database.executescript(f'BEGIN EXCLUSIVE; PRAGMA application_id = {APPLICATION_ID};'\n"
        "                       f'PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA}')\n"
        "database.execute('INSERT INTO keyed VALUES (1, zeroblob(1000000))')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", creating, backend.path], check=True, timeout=60)
    assert (tmp_path / "a.db-journal").exists()
    assert (tmp_path / "a.db").stat().st_size > 0
    assert backend.recover() == {}
    backend.commit(CHANGE)
    backend.close()
    assert backend.recover().keys() == {"bob", 5}
    backend.close()


def test_a_database_that_fails_is_not_used_any_more(backend: SQLiteBackend) -> None:
    backend.commit(CHANGE)
    with closing(sqlite3.connect(backend.path)) as other:
        other.execute("DROP TABLE keyed")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        backend.commit(Change(values=[("user/key", b"1")]))
    with pytest.raises(BackendFailed, match="no such table"):
        backend.commit(Change([("bob", Run(3, 1, b""))]))
    with pytest.raises(BackendFailed):
        backend.acknowledged("bob", 1)
    backend.close()
    assert backend.recover()["bob"].assigned == 2


def test_a_value_that_cannot_be_kept_is_the_callers_fault(backend: SQLiteBackend) -> None:
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        backend.commit(Change([("bob", Run(1, 1, b""))], values=[("user/key", object())]))  # type: ignore[list-item]
    backend.commit(CHANGE)
    assert backend.get("user/key") == b"value"


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SQLiteBackend(tmp_path / "missing" / "ilm.db").recover()


def test_a_refused_storage_is_not_locked(tmp_path: Path) -> None:
    garbage(tmp_path / "ilm.db")
    backend = SQLiteBackend(tmp_path / "ilm.db")
    with pytest.raises(NotAStore):
        backend.recover()
    (tmp_path / "ilm.db").unlink()
    assert backend.recover() == {}
    with pytest.raises(BackendInUse):
        SQLiteBackend(os.path.relpath(tmp_path / "ilm.db")).recover()
    backend.close()


def test_acknowledged_messages_are_gone_from_the_database_after_a_close(backend: SQLiteBackend) -> None:
    for number in range(1, 11):
        backend.commit(Change([("bob", Run(number, 1, b""))]))
    backend.acknowledged("bob", 10)
    backend.close()
    with closing(sqlite3.connect(backend.path)) as other:
        assert other.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        assert other.execute("SELECT acked FROM peers").fetchone() == (10,)


def test_acknowledgements_alone_empty_the_database_by_and_by(backend: SQLiteBackend) -> None:
    for number in range(1, 201):
        backend.commit(Change([("bob", Run(number, 1, b""))]))
    for number in range(1, 201):
        backend.acknowledged("bob", number)
    with closing(sqlite3.connect(f"file:{backend.path}?mode=ro", uri=True)) as other:
        ((left,),) = other.execute("SELECT count(*) FROM outbox").fetchall()
    assert left < 64


def test_a_copy_of_database_and_log_is_a_backup(backend: SQLiteBackend, tmp_path: Path) -> None:
    """What a crash leaves is a database whose last transactions are in its log."""
    backend.commit(CHANGE)
    copy = tmp_path / "copy.db"
    shutil.copy(backend.path, copy)
    shutil.copy(f"{backend.path}-wal", f"{copy}-wal")
    restored = SQLiteBackend(copy)
    assert restored.recover().keys() == {"bob", 5}
    restored.close()


FORKING = """
import os, sys
from persist.ilm.backend import Change, Run
from persist.ilm.backend_sqlite import SQLiteBackend
from persist.ilm.errors import BackendFailed
backend = SQLiteBackend(sys.argv[1])
backend.recover()
backend.commit(Change([("bob", Run(1, 1, b""))]))
child = os.fork()
if child == 0:
    try:
        backend.commit(Change([("bob", Run(2, 1, b""))]))
    except BackendFailed as failed:
        backend.close()
        os._exit(7)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
backend.commit(Change([("bob", Run(2, 1, b""))]))
backend.close()
sys.exit(0 if code == 7 and backend.recover()["bob"].assigned == 2 else 1)
"""


def test_a_forked_child_cannot_use_its_parents_database(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKING, str(tmp_path / "ilm.db")], check=True, timeout=60)


# ---------------------------------------------------------------------------------------------------- kill -9
GROWING = """
import os, signal, sys
from persist.ilm.backend import Change, Run
from persist.ilm.backend_sqlite import SQLiteBackend
backend = SQLiteBackend(sys.argv[1])
assigned = backend.recover().get("bob")
number = assigned.assigned if assigned else 0
while number < 40:  # whoever is to kill it may be late, and disks have an end
    number += 1
    backend.commit(Change([("bob", Run(number, 1, bytes(960_000)))]))
    os.write(1, b"%d\\n" % number)
signal.pause()
"""


def kill_while_the_outbox_grows(path: Path, commits: int, moment: float) -> int:
    """The last number that was reported."""
    with subprocess.Popen([sys.executable, "-c", GROWING, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        reported = 0
        for _ in range(commits):
            reported = int(child.stdout.readline())
        time.sleep(moment)  # somewhere within the next commits, and the checkpoints that they bring
        child.send_signal(signal.SIGKILL)
        return [reported, *(int(line) for line in child.stdout if line.endswith(b"\n"))][-1]


def test_a_process_killed_while_its_outbox_grows_leaves_what_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "ilm.db"
    for turn in range(20):
        reported = kill_while_the_outbox_grows(path, 4, turn % 10 * 0.0008)  # the fifth commit brings a checkpoint
        backend = SQLiteBackend(path)
        assert backend.recover()["bob"].assigned in (reported, reported + 1)
        backend.close()
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_checkpoint_that_was_interrupted_is_no_fault(tmp_path: Path) -> None:
    """The first page is in its place and names pages that are in the log only."""
    backend = SQLiteBackend(tmp_path / "a.db")
    backend.recover()
    backend.commit(Change([("bob", Run(1, 1, bytes(300_000)))]))
    for suffix in ("", "-wal"):
        shutil.copy(f"{backend.path}{suffix}", tmp_path / f"b.db{suffix}")
    backend.close()
    with open(backend.path, "rb") as whole, open(tmp_path / "b.db", "r+b") as part:
        part.write(whole.read(4096))
    interrupted = SQLiteBackend(tmp_path / "b.db")
    assert interrupted.recover()["bob"].assigned == 1
    assert [len(run.body) for run in interrupted.runs("bob", 0, 0)] == [300_000]
    interrupted.close()


def test_a_damaged_database_is_named(backend: SQLiteBackend) -> None:
    backend.commit(CHANGE)
    backend.close()
    with open(backend.path, "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3996)
    with pytest.raises(BackendFailed, match=r"ilm\.db"):
        backend.recover()


# ---------------------------------------------------------------------------------------------------- a full disk
def test_the_reserve_is_private_and_no_link_is_followed(backend: SQLiteBackend, tmp_path: Path) -> None:
    reserve = Path(f"{backend.path}-reserve")
    assert stat.S_IMODE(reserve.stat().st_mode) == 0o600
    assert reserve.stat().st_blocks * 512 >= 1 << 18
    backend.close()
    reserve.unlink()
    (tmp_path / "precious").write_bytes(b"contents")
    reserve.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        backend.recover()
    assert (tmp_path / "precious").read_bytes() == b"contents"
    reserve.unlink()
    assert backend.recover() == {}


def send_until_full(backend: SQLiteBackend, number: int, size: int) -> int:
    """The last number that found room. What finds none is refused again."""
    while True:
        try:
            backend.commit(Change([("bob", Run(number + 1, 1, bytes(size)))]))
        except StorageFull:
            break
        number += 1
    for _ in range(3):
        with pytest.raises(StorageFull):
            backend.commit(Change([("bob", Run(number + 1, 1, bytes(size)))]))
    return number


def stuff(place: Path) -> None:
    """Take what is left of the disk, to the last byte."""
    size = 1 << 20
    with (place / "filler").open("ab", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def really_full(place: Path, durability: str, size: int) -> None:
    """Fails with an AssertionError. `place`: a directory of some MiB."""
    backend = SQLiteBackend(place / "ilm.db", durability)
    backend.recover()
    number = watermark = 0
    for turn in range(5):
        begun, number = number, send_until_full(backend, number, size)
        assert (number - begun) * size > 1_000_000, f"in turn {turn} there was room for {number - begun} only"
        if turn % 2:
            stuff(place)
        for _ in range(200):
            watermark += 1
            backend.commit(Change(consumed=[("bob", watermark)], values=[("user/key", b"%d" % watermark)]))
        if turn % 3 == 1:  # dies on the full disk
            child = os.fork()
            if not child:
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
        if turn > 1:
            backend.close()
            found = backend.recover()["bob"]
            assert (found.assigned, found.watermark) == (number, watermark)
            watermark += 1
            backend.commit(Change(consumed=[("bob", watermark)]))
        assert [run.first for run in backend.runs("bob", 0, 0)] == list(range(begun + 1, number + 1))
        backend.acknowledged("bob", number)
    backend.close()


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("size", [2000, 60_000])
def test_file_system_that_is_really_full(tmp_path: Path, durability: str, size: int) -> None:
    """A small tmpfs, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    small = f"mount -t tmpfs -o size=6m,mode=700 small {tmp_path}"
    alone = [] if unshare is None else [unshare, "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if unshare is None or subprocess.run([*alone, "sh", "-c", small], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    program = f"{sys.executable} -m tests.persist.ilm.test_backend_sqlite {tmp_path} {durability} {size}"
    root = Path(__file__).parents[3]
    subprocess.run([*alone, "sh", "-c", f"{small} && exec {program}"], check=True, cwd=root, timeout=60)


if __name__ == "__main__":
    really_full(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
