"""What the file of a SQLite backend is: its schema, its identity, how others are told from it untouched, its log."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from urllib.parse import quote

from persist.errors import NewerFormat
from persist.ilm.errors import BackendFailed, NotAStore, StorageFull

APPLICATION_ID = int.from_bytes(b"RGLI", "big")
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE peers (
    peer INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('int', 'str')),
    name TEXT NOT NULL,
    assigned INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0,
    watermark INTEGER NOT NULL DEFAULT 0,
    position INTEGER NOT NULL DEFAULT 0, -- of the last transaction with a message to it
    UNIQUE (kind, name)
);
CREATE TABLE outbox (
    peer INTEGER NOT NULL REFERENCES peers,
    last INTEGER NOT NULL,
    first INTEGER NOT NULL,
    position INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (peer, last)
) WITHOUT ROWID;
CREATE TABLE keyed (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
PIECE_ROWS = 256
SHRINK_PAGES = 1024
SHRINK_STEP = 16
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100


def look(path: str) -> None:
    """Refuses what is not ours, without a lock, a log or anything else being made beside it.

    The identity is read from the file's header: it is in there since the transaction that made the database, before
    there was a log. SQLite itself cannot be asked without carrying over what a crash left in the log; nor can it while
    it ignores the log, since a checkpoint that was interrupted leaves a file that makes no sense without it.
    """
    # To close the file drops this process's POSIX locks of it. Whoever has locks for writing has our lock as well.
    with open(path, "rb", buffering=0) as file:
        header = file.read(_HEADER_BYTES)
    journal = os.path.exists(f"{path}-journal")
    if header.startswith(_MAGIC) and len(header) == _HEADER_BYTES:
        version, application = int.from_bytes(header[60:64], "big", signed=True), int.from_bytes(header[68:72], "big")
        _check(path, application, version)
        if application == APPLICATION_ID:
            return
    elif not journal:
        if header:
            raise NotAStore(path, "it is no database")
        return
    # No identity yet. Ours has none when it is empty, or when a rollback journal will make it so: there is one after a
    # crash in the transaction that made the database.
    if not journal and os.path.exists(f"{path}-wal"):
        raise NotAStore(path, "it is a database of no known application, with a log")
    mode = "mode=rw" if journal else "mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{mode}", uri=True)) as database:
        check_identity(path, database)
        ((tables,),) = database.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if tables and identity(database) == (0, 0):
            raise NotAStore(path, f"it is a database of no known application, with {tables} tables")


def check_identity(path: str, database: sqlite3.Connection) -> None:
    _check(path, *identity(database))


def _check(path: str, application: int, version: int) -> None:
    if application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise NewerFormat(path, version, SCHEMA_VERSION)
    if application != APPLICATION_ID and (application or version):
        raise NotAStore(path, f"it is a database with the application_id {application}")


def identity(database: sqlite3.Connection) -> tuple[int, int]:
    """(application_id, user_version)."""
    ((application,),) = database.execute("PRAGMA application_id").fetchall()
    ((version,),) = database.execute("PRAGMA user_version").fetchall()
    return application, version


def create(database: sqlite3.Connection) -> None:
    database.executescript(
        "PRAGMA auto_vacuum = INCREMENTAL;"  # so that `shrink` can
        f"BEGIN EXCLUSIVE; PRAGMA application_id = {APPLICATION_ID};"
        f"PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA} COMMIT;"
    )


def owed(path: str, database: sqlite3.Connection) -> int:
    """By how many bytes the file will grow when its log is carried over."""
    ((pages, page_size),) = database.execute("SELECT * FROM pragma_page_count, pragma_page_size").fetchall()
    grown: int = pages * page_size - os.stat(path).st_size
    return max(0, grown)


def empty_log(database: sqlite3.Connection) -> None:
    """Carry it over and give its room back, unless somebody reads in it or the file cannot grow."""
    database.execute("PRAGMA busy_timeout = 0")
    try:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if not is_full(error) and error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
    finally:
        database.execute("PRAGMA busy_timeout = 5000")


def delete_in_pieces(database: sqlite3.Connection, peer: int, acked: int) -> None:
    """Delete what is acknowledged in transactions that little room will do for. Not all of it if there is none."""
    deleted = 0
    while deleted < acked:
        piece = database.execute(
            "SELECT last FROM outbox WHERE peer = ? AND last <= ? ORDER BY last LIMIT 1 OFFSET ?",
            (peer, acked, PIECE_ROWS - 1),
        ).fetchone()
        deleted = piece[0] if piece else acked
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM outbox WHERE peer = ? AND last <= ?", (peer, deleted))
            database.execute("UPDATE peers SET acked = ? WHERE peer = ?", (deleted, peer))
            database.execute("COMMIT")
        except BaseException as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if is_full(error):
                return
            raise
        empty_log(database)


def shrink(database: sqlite3.Connection) -> None:
    """Give free pages back, in small steps for which little room will do, up to what a log needs to work in."""
    emptied = False
    for _ in range(SHRINK_PAGES // SHRINK_STEP):
        ((free,),) = database.execute("PRAGMA freelist_count").fetchall()
        if not free:
            break
        try:
            database.executescript(f"PRAGMA incremental_vacuum({SHRINK_STEP})")  # `execute` ends after one page
            emptied = False
        except sqlite3.OperationalError as error:
            if not is_full(error):
                raise
            if emptied:
                break
            empty_log(database)
            emptied = True
    empty_log(database)


def is_full(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL


def no_room_to_open(error: BaseException) -> bool:
    """None for what is carried over, or for the index of the log, which is made anew."""
    return is_full(error) or (
        isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_IOERR_SHMSIZE
    )


@contextlib.contextmanager
def errors_named(path: str) -> Iterator[None]:
    """What SQLite raises at an opening, as errors of ours that name the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if no_room_to_open(error):
            raise StorageFull(f"a database in {path}") from error
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            raise NotAStore(path, str(error)) from error
        raise BackendFailed(f"{path}: {error}") from error
