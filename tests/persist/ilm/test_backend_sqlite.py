"""What the SQLite backend promises beside the contract of all backends."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import persist.ilm.backend_sqlite
from persist.errors import NewerFormat
from persist.ilm.backend import Change, Run
from persist.ilm.backend_sqlite import APPLICATION_ID, SCHEMA_VERSION, SQLiteBackend
from persist.ilm.errors import BackendFailed, BackendInUse, NotAStore

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
    Path(f"{path}-lock").unlink()


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
        "from persist.ilm.backend_sqlite import APPLICATION_ID, SCHEMA, SCHEMA_VERSION\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA cache_size = 1')\n"
        "database.executescript(f'BEGIN EXCLUSIVE; PRAGMA application_id = {APPLICATION_ID};'\n"
        "                       f'PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA}')\n"
        "database.execute('INSERT INTO keyed VALUES (1, zeroblob(1000000))')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", creating, backend.path], check=True, timeout=30)
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
    subprocess.run([sys.executable, "-c", FORKING, str(tmp_path / "ilm.db")], check=True, timeout=30)
