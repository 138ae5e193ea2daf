"""A backend in a SQLite database: the one to look into. Much slower than the journal.

Contract: that of persist.ilm.backend, at durability "process" or "power", and
- one transaction per commit. At "power" it is synced before `commit` returns (synchronous = FULL), so that `sync` has
  nothing left to do; at "process" SQLite syncs at checkpoints only (synchronous = NORMAL).
- While an ILM uses it, others may read it with any SQLite client: it is in WAL mode. They must not write to it.
- Its application_id is "RGLI", its user_version the version of the schema below. A database of a later version, or one
  that is something else, is refused and left as it is.
- On a full disk, what is committed and not yet in the database proper can be carried over: the file PATH-reserve
  takes the room that needs (256 KiB at least) and is given up for it. Thus the log can be emptied, changes without
  sends go on in the room of the log, and so do deletions; sends when the reserve has been taken again.

What is in it, most of which can be read as it stands:

    peers    everyone messages were exchanged with. kind: 'int' or 'str'; name: 5 or 'bob'
             assigned   number of the last message to it          acked   of the last one that it is known to have
             watermark  number of the last message from it that was delivered
    outbox   messages first to last to a peer, which it has not acknowledged (or not long ago); body is ILM's encoding,
             position the number of the transaction that sent them
    keyed    the keyed values: 'ilm/...' are ILM's own, 'user/...' those of the user

    SELECT name, assigned - acked AS pending, watermark FROM peers;
    SELECT name, first, last, length(body) FROM outbox JOIN peers USING (peer) ORDER BY peer, last;
    SELECT key, value FROM keyed WHERE key LIKE 'user/%';
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping

from persist.errors import JournalLocked, SequenceBroken
from persist.ilm import sqlite_file
from persist.ilm.backend import Change, PeerState, Run
from persist.ilm.errors import BackendFailed, BackendInUse, NotAStore, StorageFull
from persist.ilm.message import PeerId
from persist.ilm.reserve_file import ReserveFile
from persist.lock import DirectoryLock

SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}
BATCH = 64  # runs loaded at a time by `runs`
ACKNOWLEDGEMENTS = 64  # are deleted together, unless a commit comes first that takes them along
RESERVE_BYTES = 1 << 18  # kept at least; grows in steps of that
SLACK_BYTES = RESERVE_BYTES // 2  # of the reserve, is beside what sends may need

_CALLERS_FAULT = (sqlite3.ProgrammingError, sqlite3.DataError)  # nothing is wrong with the database


class _Peer:
    __slots__ = ("acked", "assigned", "row")

    def __init__(self, row: int, assigned: int = 0, acked: int = 0) -> None:
        self.row = row
        self.assigned = assigned
        self.acked = acked


class SQLiteBackend:
    """`path`: of the database, which is made if it is missing, readable by its owner only; its directory must exist.
    Nothing is touched before `recover`."""

    def __init__(self, path: str | os.PathLike[str], durability: str = "process") -> None:
        if durability not in SYNCHRONOUS:
            raise ValueError(f"SQLite has no durability {durability!r}; choose from {', '.join(SYNCHRONOUS)}")
        self.path = os.path.abspath(path)
        self._durability = durability
        self._database: sqlite3.Connection | None = None
        self._lock: DirectoryLock | None = None
        self._process = 0
        self._failed = ""
        self._peers: dict[PeerId, _Peer] = {}
        self._position = 0
        self._unwritten: set[PeerId] = set()  # acknowledgements that the database does not show
        self._calls = 0  # of `acknowledged` since it showed all
        self._reserve: ReserveFile | None = None
        self._owed = 0  # bytes by which the database will grow when its log is carried over; or less

    @property
    def durability(self) -> str:
        return self._durability

    # ------------------------------------------------------------------------------------------------ opening
    def recover(self) -> Mapping[PeerId, PeerState]:
        parent, name = os.path.split(self.path)
        directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                lock = DirectoryLock(parent, directory, f"{name}-lock")
            except JournalLocked as locked:
                raise BackendInUse(f"{self.path} (process {locked.pid or 'unknown'})") from locked
            reserve: ReserveFile | None = None
            try:
                with sqlite_file.errors_named(self.path):
                    with contextlib.suppress(FileExistsError):
                        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                        os.close(os.open(name, flags, 0o600, dir_fd=directory))
                    sqlite_file.look(self.path)
                    reserve = ReserveFile(f"{name}-reserve", directory)
                    try:
                        database, found = self._open(directory)
                    except sqlite3.OperationalError as error:
                        if not (reserve.size and sqlite_file.no_room_to_open(error)):
                            raise
                        reserve.cut(0)
                        database, found = self._open(directory)
            except BaseException:
                if reserve is not None:
                    reserve.close()
                lock.release()
                raise
        finally:
            os.close(directory)
        self._database, self._lock, self._process, self._failed = database, lock, os.getpid(), ""
        self._reserve = reserve
        self._provide(database, reserve, 0)
        reserve.cut(_stepped(self._owed))
        return found

    def _open(self, directory: int) -> tuple[sqlite3.Connection, dict[PeerId, PeerState]]:
        database = sqlite3.connect(self.path, isolation_level=None)
        try:
            database.execute(f"PRAGMA synchronous = {SYNCHRONOUS[self._durability]}")
            database.execute("PRAGMA fullfsync = ON")  # fsync alone does less than it says on some systems
            database.execute("PRAGMA secure_delete = FAST")  # to overwrite what is deleted would take room in the log
            sqlite_file.check_identity(
                self.path, database
            )  # again: what a later version did last may be in its log only
            if sqlite_file.identity(database) == (0, 0):
                sqlite_file.create(database)
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise NotAStore(self.path, f"SQLite can keep no write-ahead log there (journal mode {mode!r})")
            if self._durability == "power":
                os.fsync(directory)
            return database, self._load(database)
        except BaseException:
            database.close()
            raise

    def _load(self, database: sqlite3.Connection) -> dict[PeerId, PeerState]:
        self._peers.clear()
        self._all_deleted()
        self._position = 0
        found: dict[PeerId, PeerState] = {}
        rows = database.execute("SELECT peer, kind, name, assigned, acked, watermark, position FROM peers").fetchall()
        for row, kind, name, assigned, acked, watermark, position in rows:
            peer: PeerId = int(name) if kind == "int" else name
            self._peers[peer] = _Peer(row, assigned, acked)
            self._position = max(self._position, position)
            begin = database.execute(
                "SELECT position FROM outbox WHERE peer = ? AND last > ? ORDER BY last LIMIT 1", (row, acked)
            ).fetchall()
            found[peer] = PeerState(assigned, acked, watermark, begin[0][0] if begin else None)
        return found

    # ------------------------------------------------------------------------------------------------ committing
    def commit(self, change: Change) -> int:
        try:
            return self._commit(change)
        except StorageFull:
            if not (change.sends and self._nothing_to_gain()):
                self._relieve()
        try:
            return self._commit(change)
        except StorageFull:
            if change.sends or self._reserve is None:
                raise
        self._reserve.cut(0)
        return self._commit(change)

    def _commit(self, change: Change) -> int:
        database = self._usable()
        sends, consumed, values = change
        reserve = self._reserve
        assert reserve is not None
        size = 0
        peers = self._peers
        ends: dict[PeerId, int] = {}
        for peer, run in sends:
            last = ends[peer] if peer in ends else peers[peer].assigned if peer in peers else 0
            if run.first != last + 1 or run.count < 1:
                raise SequenceBroken(str(peer), last + 1, run.first)
            ends[peer] = run.first + run.count - 1
            size += len(run.body) + min(len(run.body), 4096) + 200
        for _, value in values:
            size += 2 * len(value) + 200 if isinstance(value, bytes) else 0
        if sends and self._owed + size + SLACK_BYTES > reserve.size and not self._provide(database, reserve, size):
            raise StorageFull(f"a transaction in {self.path}")
        watermarks = dict(consumed)
        position = self._position + 1
        added: dict[PeerId, _Peer] = {}
        execute = database.execute
        try:
            execute("BEGIN IMMEDIATE")
            for peer in (*ends, *watermarks):
                if peer not in peers and peer not in added:
                    added[peer] = self._insert(database, peer)
            rows = {**peers, **added} if added else peers
            for peer, run in sends:
                execute(
                    "INSERT INTO outbox (peer, last, first, position, body) VALUES (?, ?, ?, ?, ?)",
                    (rows[peer].row, run.first + run.count - 1, run.first, position, run.body),
                )
            for peer, last in ends.items():
                execute("UPDATE peers SET assigned = ?, position = ? WHERE peer = ?", (last, position, rows[peer].row))
            for peer, watermark in watermarks.items():
                execute("UPDATE peers SET watermark = ? WHERE peer = ?", (watermark, rows[peer].row))
            for key, value in values:
                if value is None:
                    execute("DELETE FROM keyed WHERE key = ?", (key,))
                else:
                    execute("INSERT OR REPLACE INTO keyed VALUES (?, ?)", (key, value))
            if self._calls:
                self._delete_acknowledged(database)
            execute("COMMIT")
        except BaseException as error:
            if not self._undo(database, error):
                raise
            raise StorageFull(f"a transaction in {self.path}") from error
        self._owed += size
        self._position = position
        peers.update(added)
        for peer, last in ends.items():
            peers[peer].assigned = last
        if self._calls:
            self._all_deleted()
        return position

    @staticmethod
    def _insert(database: sqlite3.Connection, peer: PeerId) -> _Peer:
        kind = "int" if isinstance(peer, int) else "str"
        row = database.execute("INSERT INTO peers (kind, name) VALUES (?, ?)", (kind, str(peer))).lastrowid
        assert row is not None
        return _Peer(row)

    def _undo(self, database: sqlite3.Connection, error: BaseException) -> bool:
        """Roll back; True if that was for want of room. If it cannot be rolled back, or the database itself is at
        fault, nobody knows what it holds: it is not used any more."""
        full = sqlite_file.is_full(error)
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
            elif not isinstance(error, sqlite3.Error):
                self._failed = f"interrupted by {error!r}"  # perhaps behind COMMIT
        except sqlite3.Error as another:
            self._failed = str(another)
            return False
        if isinstance(error, sqlite3.DatabaseError) and not (full or isinstance(error, _CALLERS_FAULT)):
            self._failed = str(error)
        return full

    async def sync(self) -> None:
        self._usable()

    # ------------------------------------------------------------------------------------------------ letting go
    def acknowledged(self, peer: PeerId, through: int) -> None:
        database = self._usable()
        known = self._peers.get(peer)
        if known is None or through <= known.acked:
            return
        known.acked = min(through, known.assigned)
        self._unwritten.add(peer)
        self._calls += 1
        if self._calls >= ACKNOWLEDGEMENTS and not self._forget_acknowledged(database):
            self._relieve()

    def _forget_acknowledged(self, database: sqlite3.Connection) -> bool:
        """In a transaction of its own. False if there is no room even for that."""
        try:
            database.execute("BEGIN IMMEDIATE")
            self._delete_acknowledged(database)
            database.execute("COMMIT")
        except BaseException as error:
            if self._undo(database, error):
                self._calls = 0  # not again with every call
                return False
            raise
        self._all_deleted()
        return True

    def _delete_acknowledged(self, database: sqlite3.Connection) -> None:
        for peer in self._unwritten:
            known = self._peers[peer]
            database.execute("DELETE FROM outbox WHERE peer = ? AND last <= ?", (known.row, known.acked))
            database.execute("UPDATE peers SET acked = ? WHERE peer = ?", (known.acked, known.row))

    def _all_deleted(self) -> None:
        self._unwritten.clear()
        self._calls = 0

    def forget(self, peer: PeerId) -> None:
        try:
            self._forget(peer)
        except StorageFull:
            self._relieve()
            self._forget(peer)

    def _forget(self, peer: PeerId) -> None:
        database = self._usable()
        known = self._peers.get(peer)
        if known is None:
            return
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM outbox WHERE peer = ?", (known.row,))
            database.execute("DELETE FROM peers WHERE peer = ?", (known.row,))
            database.execute("COMMIT")
        except BaseException as error:
            if self._undo(database, error):
                raise StorageFull(f"a transaction in {self.path}") from error
            raise
        del self._peers[peer]
        self._unwritten.discard(peer)

    # ------------------------------------------------------------------------------------------------ finding room
    def _provide(self, database: sqlite3.Connection, reserve: ReserveFile, size: int) -> bool:
        """There is a reserve for what is owed and `size` more; False if there is no room for it."""
        self._owed = sqlite_file.owed(self.path, database)
        return reserve.hold(_stepped(self._owed + size))

    def _nothing_to_gain(self) -> bool:
        """Nothing is in the log and nothing acknowledged: to give the reserve up would only put it at risk."""
        return not self._unwritten and not os.stat(f"{self.path}-wal").st_size

    def _relieve(self) -> None:
        """Make all the room there can be, and take the reserve again if that is enough."""
        database, reserve = self._usable(), self._reserve
        assert reserve is not None
        reserve.cut(0)
        try:
            sqlite_file.empty_log(database)
            for peer in self._unwritten:
                sqlite_file.delete_in_pieces(database, self._peers[peer].row, self._peers[peer].acked)
            sqlite_file.shrink(database)
        except sqlite3.DatabaseError as error:
            self._failed = self._failed or str(error)
            raise
        self._provide(database, reserve, 0)

    # ------------------------------------------------------------------------------------------------ reading
    def runs(self, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        self._usable()
        known = self._peers.get(peer)
        return iter(()) if known is None else self._runs(peer, known, after, from_position)

    def _runs(self, peer: PeerId, known: _Peer, after: int, from_position: int) -> Iterator[Run]:
        while self._peers.get(peer) is known:  # not forgotten meanwhile
            # Every batch is read to its end: a statement left open would keep the log from being checkpointed.
            batch = self._usable().execute(
                "SELECT first, last, body, position FROM outbox WHERE peer = ? AND last > ? AND position >= ? "
                "ORDER BY last LIMIT ?",
                (known.row, after, from_position, BATCH),
            )
            after = 0
            for first, after, body, position in batch.fetchall():
                yield Run(first, after - first + 1, body, position)
            if not after:
                return

    def get(self, key: str) -> bytes | None:
        row = self._usable().execute("SELECT value FROM keyed WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    # ------------------------------------------------------------------------------------------------ closing
    def _usable(self) -> sqlite3.Connection:
        if self._database is None:
            raise BackendFailed(f"{self.path} is not open: recover comes first, close last")
        if self._failed:
            raise BackendFailed(f"{self.path}: {self._failed}")
        if self._process != os.getpid():
            raise BackendFailed(f"{self.path} belongs to the process that this one was forked from")
        return self._database

    def close(self) -> None:
        database, self._database = self._database, None
        lock, self._lock = self._lock, None
        if database is not None:
            if self._process == os.getpid():
                with contextlib.suppress(sqlite3.Error):
                    if self._unwritten and not self._failed:
                        self._forget_acknowledged(database)
            database.close()
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        if lock is not None:
            lock.release()


def _stepped(owed: int) -> int:
    return -(-(owed + SLACK_BYTES) // RESERVE_BYTES) * RESERVE_BYTES
