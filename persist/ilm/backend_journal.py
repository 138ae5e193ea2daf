"""A backend over a journal directory: the quick one.

Contract: that of persist.ilm.backend, at durability "process" or "power", and
- one write per commit; at "power" `sync` does its fdatasync in another thread, one for all who wait for it;
- old segments go as soon as everything in them is acknowledged (unless they are retained as history), and what is kept
  begins with a snapshot: the directory is as large as what is pending, the keyed values, and at most about a segment;
- the first message to or from a peer that was never heard of begins a new segment, since names stand at its head.

How it lies in the journal: a peer is a name, "i:5" for 5 and "s:bob" for "bob"; keyed values are the keyed table of the
only handler; a run is a send of the only route. The numbers of a name never go back, so a peer that was forgotten goes
on under another name, "2/s:bob", then "3/s:bob"; the old one has everything acknowledged, and is dropped by an opening
that finds no segment from before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from persist.errors import JournalFull, JournalLocked
from persist.files import Directory
from persist.format import Send, Snapshot, Transaction
from persist.ilm.backend import Change, PeerState, Run
from persist.ilm.errors import BackendFailed, BackendInUse, NotAStore, StorageFull
from persist.ilm.group_sync import GroupSync
from persist.ilm.message import PeerId
from persist.journal import LEVELS, SEGMENT_BYTES, Journal
from persist.recovery import Recovered
from persist.retention import NOTHING, Retain
from persist.writer import RESERVE_BYTES

FINGERPRINT = "ilm backend 1"
HANDLER = "ilm"
ROUTE = (HANDLER, "run")
HOUSEKEEPING_NS = 50_000_000  # between two looks for segments that can go, and after a rotation that found no room


class _Peer:
    """A name of the journal. `stale`: of a peer that was forgotten."""

    __slots__ = ("acked", "assigned", "generation", "id", "index", "stale", "watermark")

    def __init__(self, peer: PeerId, generation: int, index: int) -> None:
        self.id = peer
        self.generation = generation
        self.index = index
        self.assigned = 0
        self.acked = 0
        self.watermark = 0
        self.stale = False


class JournalBackend:
    """`directory` is made if it is missing; nothing is touched before `recover`. The other arguments are those of
    `Journal.open`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        durability: str = "process",
        *,
        segment_bytes: int = SEGMENT_BYTES,
        reserve: int = RESERVE_BYTES,
        retain: Retain = NOTHING,
        files: Callable[[str], Directory] = Directory,
    ) -> None:
        if durability not in LEVELS:
            raise ValueError(f"a journal has no durability {durability!r}; choose from {', '.join(LEVELS)}")
        self.directory = os.fspath(directory)
        self._durability = durability
        self._segment_bytes = segment_bytes
        self._reserve = reserve
        self._retain = retain
        self._files = files
        self._journal: Journal | None = None
        self._sync: GroupSync | None = None
        self._peers: dict[PeerId, _Peer] = {}
        self._table: list[_Peer] = []  # the names of the journal, in their order
        self._values: dict[str, bytes] = {}
        self._acked: dict[int, int] = {}  # by index; a stale name has acknowledged everything
        self._pending = 0  # messages
        self._look_at = 0  # when to look next for segments that can go, monotonic ns
        self._renew_at = 0  # not before this, since there was no room for a new segment

    @property
    def durability(self) -> str:
        return self._durability

    # ------------------------------------------------------------------------------------------------ opening
    def recover(self) -> Mapping[PeerId, PeerState]:
        try:
            journal, recovered = Journal.open(
                self.directory,
                epoch=0,
                level=self._durability,
                segment_bytes=self._segment_bytes,
                reserve=self._reserve,
                retain=self._retain,
                make_snapshot=lambda recovered, _: self._restore(recovered),
                files=self._files,
            )
        except JournalLocked as locked:
            raise BackendInUse(f"{locked.directory} (process {locked.pid or 'unknown'})") from locked
        self._journal = journal
        if self._durability == "power":
            self._sync = GroupSync(
                journal.flush, lambda error: journal.fail(f"fdatasync failed: {error}"), journal.position
            )
        self._look_at = self._renew_at = 0
        unacked = recovered.unacked_from
        return {
            peer.id: PeerState(peer.assigned, peer.acked, peer.watermark, unacked.get(_name(peer)))
            for peer in self._table
            if not peer.stale and (peer.assigned or peer.watermark)
        }

    def _restore(self, recovered: Recovered | None) -> Snapshot:
        """Take over what was recovered; the snapshot to begin with."""
        self._peers, self._table, self._values, self._acked, self._pending = {}, [], {}, {}, 0
        if recovered is None:
            return self._snapshot()
        if recovered.fingerprint != FINGERPRINT:
            raise NotAStore(self.directory, f"it is a journal with the fingerprint {recovered.fingerprint!r}")
        found = sorted(_parse(name) for name in recovered.watermarks)
        newest = {(kind, text): generation for kind, text, generation in found}
        for kind, text, generation in found:
            stale = generation < newest[kind, text]
            # A single segment began with, or after, the newest name: nothing in it belongs to an older one.
            if stale and len(recovered.routes) < 2:
                continue
            peer = self._add(int(text) if kind == "i" else text, generation)
            name = _name(peer)
            peer.assigned = recovered.assigned.get(name, 0)
            peer.watermark = recovered.watermarks[name]
            peer.acked = min(peer.assigned, recovered.acked.get(name, 0))
            peer.stale = stale
            self._acked[peer.index] = peer.acked
            self._pending += peer.assigned - peer.acked
        self._values = {key.decode(): value for key, value in recovered.tables.get(HANDLER, {}).items()}
        return self._snapshot()

    def _add(self, peer: PeerId, generation: int) -> _Peer:
        added = self._peers[peer] = _Peer(peer, generation, len(self._table))
        self._table.append(added)
        return added

    def _snapshot(self) -> Snapshot:
        table = self._table
        return Snapshot(
            self._durability,
            FINGERPRINT,
            [_name(peer) for peer in table],
            [HANDLER],
            [ROUTE],
            watermarks=[(peer.index, peer.watermark) for peer in table],  # zeros too: by these a name is known to exist
            assigned=[(peer.index, peer.assigned) for peer in table if peer.assigned],
            acked=[(peer.index, peer.acked) for peer in table if peer.acked],
            tables=[(0, key.encode(), value) for key, value in self._values.items()],
        )

    # ------------------------------------------------------------------------------------------------ committing
    def commit(self, change: Change) -> int:
        journal = self._journal
        if journal is None:
            raise self._closed()
        sends, consumed, values = change
        peers = self._peers
        try:
            transaction = Transaction(
                [(peers[peer].index, watermark) for peer, watermark in consumed] if consumed else [],
                [Send(0, run.count, 0, [(peers[peer].index, run.first)], run.body) for peer, run in sends],
                [],
                [(0, key.encode(), value) for key, value in values] if values else [],
            )
        except KeyError:
            self._introduce(journal, [peer for peer, _ in sends] + [peer for peer, _ in consumed])
            return self.commit(change)
        try:
            position = journal.append(transaction)
        except JournalFull:
            position = self._append_after_relief(journal, transaction)
        for peer, run in sends:
            peers[peer].assigned = run.first + run.count - 1
            self._pending += run.count
        for peer, watermark in consumed:
            peers[peer].watermark = watermark
        for key, value in values:
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value
        if journal.due and time.monotonic_ns() >= self._renew_at:
            self._renew(journal)
        return position

    def _append_after_relief(self, journal: Journal, transaction: Transaction) -> int:
        """The disk is full. What was acknowledged goes now, all of it if nothing is pending; is there room then?"""
        journal.trim(self._acked)
        if journal.relieves(self._acked):
            self._renew(journal)
        try:
            return journal.append(transaction)
        except JournalFull as full:
            raise StorageFull(f"{full.needed} bytes on the disk of {full.path}") from full

    def _introduce(self, journal: Journal, peers: Iterable[PeerId]) -> None:
        """Names for those who have none. Nothing has changed if there is no room for that."""
        known = len(self._table)
        for peer in peers:
            if peer not in self._peers:
                self._add(peer, 1)
        try:
            self._rotate(journal)
        except BaseException as error:
            for added in self._table[known:]:
                del self._peers[added.id]
            del self._table[known:]
            if isinstance(error, JournalFull):
                raise StorageFull(f"a new peer on the disk of {error.path}") from error
            raise
        self._trim(journal)

    async def sync(self) -> None:
        journal, sync = self._journal, self._sync
        if journal is None:
            raise self._closed()
        if sync is not None:
            await sync.through(journal.position, lambda: journal.position)

    # ------------------------------------------------------------------------------------------------ housekeeping
    def _rotate(self, journal: Journal) -> None:
        """Begin a new segment. At "power" all that came before is durable afterwards."""
        if self._sync is not None:
            self._sync.settle()
        try:
            journal.rotate(self._snapshot())
        except JournalFull:
            if not journal.trim(self._acked):
                raise
            journal.rotate(self._snapshot())  # that made room
        if self._sync is not None:
            self._sync.synced = journal.position

    def _trim(self, journal: Journal) -> None:
        journal.trim(self._acked)
        self._look_at = time.monotonic_ns() + HOUSEKEEPING_NS

    def _renew(self, journal: Journal) -> None:
        try:
            self._rotate(journal)
        except JournalFull:
            self._renew_at = time.monotonic_ns() + HOUSEKEEPING_NS  # the journal goes on as it is
        self._trim(journal)

    def acknowledged(self, peer: PeerId, through: int) -> None:
        journal = self._journal
        if journal is None:
            raise self._closed()
        known = self._peers.get(peer)
        if known is None or through <= known.acked:
            return
        acked = min(through, known.assigned)
        self._pending -= acked - known.acked
        self._acked[known.index] = known.acked = acked
        if journal.segments > 1 and (self._pending == 0 or time.monotonic_ns() >= self._look_at):
            self._trim(journal)

    def forget(self, peer: PeerId) -> None:
        journal = self._journal
        if journal is None:
            raise self._closed()
        old = self._peers.get(peer)
        if old is None or not (old.assigned or old.watermark):
            return
        acked, old.acked, old.stale = old.acked, old.assigned, True
        new = self._add(peer, old.generation + 1)
        try:
            self._rotate(journal)
        except BaseException as error:
            self._peers[peer] = old
            self._table.remove(new)
            old.acked, old.stale = acked, False
            if isinstance(error, JournalFull):
                raise StorageFull(f"a new beginning on the disk of {error.path}") from error
            raise
        self._acked[old.index] = old.assigned
        self._pending -= old.assigned - acked
        self._trim(journal)

    # ------------------------------------------------------------------------------------------------ reading
    def runs(self, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        journal = self._journal
        if journal is None:
            raise self._closed()
        return self._load(journal, peer, after, from_position)

    def _load(self, journal: Journal, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        known = self._peers.get(peer)
        if known is None:
            return
        for position, send in journal.sends(known.index, after, from_position):
            if known.stale:
                return  # forgotten meanwhile
            yield Run(send.edges[0][1], send.count, send.body, position)

    def get(self, key: str) -> bytes | None:
        if self._journal is None:
            raise self._closed()
        return self._values.get(key)

    def close(self) -> None:
        sync, self._sync = self._sync, None
        journal, self._journal = self._journal, None
        if sync is not None:
            sync.close(self._closed())  # first: the file stays open while it is synced
        if journal is not None:
            journal.close()

    def _closed(self) -> BackendFailed:
        return BackendFailed(f"{self.directory} is not open: recover comes first, close last")


def _name(peer: _Peer) -> str:
    name = f"i:{peer.id}" if isinstance(peer.id, int) else f"s:{peer.id}"
    return name if peer.generation == 1 else f"{peer.generation}/{name}"


def _parse(name: str) -> tuple[str, str, int]:
    """(kind, text, generation)."""
    generation = 1
    if name[0].isdigit():
        number, _, name = name.partition("/")
        generation = int(number)
    return name[0], name[2:], generation
