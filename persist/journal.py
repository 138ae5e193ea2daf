"""A worker's journal: segmented, append-only, one writer.

Contract
- What `append` returned from survives the death of every process; at level "power", what `sync` returned from survives
  power loss.
- `open` yields the state as of the last whole transaction. Before anything new is written, the torn tail is cut off
  and, at level "power", everything that was recovered is synced. A journal that is refused (locked, damaged, newer,
  foreign, or with messages pending for names that are gone) is left as it was.
- Every incarnation has an epoch above all earlier ones and begins a segment of its own.
- A segment is deleted only when every send in it is acknowledged and no history is to be kept, and only from the front.
- On a full disk what only sends raises JournalFull and nothing is written. What consumes goes on in space that was
  reserved for it, because it lets others forget what they sent: all of that space for what sends nothing, half of it
  for what does. History that is only retained goes first. All ends by itself when there is room.
- Once any other I/O call has failed, the journal is poisoned: every later call raises JournalPoisoned.
- One thread uses it. In a forked child it refuses to work.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Self

import msgspec
from msgspec.structs import replace

from persist.errors import JournalClosed, JournalFull, JournalPoisoned, SequenceBroken
from persist.files import Directory
from persist.format import SEGMENT_HEADER, TRANSACTION, Send, Snapshot, Transaction, segment_name
from persist.history import Record, replay
from persist.load import recover, refuse_unknown, sends_in
from persist.lock import DirectoryLock
from persist.names import bare, retired_part, verified, with_retired
from persist.reader import Segment, Survey, survey
from persist.recovery import Recovered, by_name
from persist.retention import NOTHING, Retain
from persist.spare import prepare_spare, wipe_spare
from persist.writer import AHEAD_BYTES, INTERRUPTED, RESERVE_BYTES, Writer, encode_head

SEGMENT_BYTES = 16 << 20
SEGMENT_FRAMES = 512  # recovery costs about 5 us a frame, and every restart waits for it
LEVELS = ("process", "power")

MakeSnapshot = Callable[[Recovered | None, int], Snapshot]


class _Closed(msgspec.Struct, frozen=True):
    """A segment that is no longer written to. `highest`: current peer -> last sequence number assigned by its end, of
    the peers that had not acknowledged it when the segment was closed; `closed_ns`: when that was, wall clock."""

    segment: Segment
    highest: dict[int, int]
    closed_ns: int


class Journal:
    """Made by `open`."""

    def __init__(
        self,
        directory: Directory,
        lock: DirectoryLock,
        level: str,
        segment_bytes: int,
        reserve: int,
        retain: Retain,
        clock: Callable[[], int],
    ) -> None:
        """Not for callers: `open` sets what is only declared here."""
        self._directory = directory
        self._lock = lock
        self._durable = level == "power"
        self._segment_bytes = segment_bytes
        self._reserve = reserve
        self._retain = retain
        self._clock = clock
        self._closed: deque[_Closed] = deque()
        self._current: Segment
        self._writer: Writer
        self._names: Snapshot  # the name tables, and what retired names carry
        self._assigned: dict[int, int]
        self._has_spare = False
        self._due_at = 0
        self._due_early_at = 0
        self._frames = 0  # since the last snapshot
        self._unusable = ""

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        epoch: int,
        level: str,
        segment_bytes: int = SEGMENT_BYTES,
        reserve: int = RESERVE_BYTES,
        retain: Retain = NOTHING,
        make_snapshot: MakeSnapshot,
        files: Callable[[str], Directory] = Directory,
        clock: Callable[[], int] = time.time_ns,
    ) -> tuple[Self, Recovered]:
        """Take the lock, recover, and begin a segment with `make_snapshot(recovered, new epoch)`, where `recovered` is
        None for a journal that was never written.

        The new epoch is one above the larger of `epoch` and the journal's. The snapshot must repeat the recovered
        sequence numbers (else SequenceBroken) and name every peer and route for which a message is pending above its
        `acked` (else UnknownName). `reserve`: bytes kept for transactions without sends; `retain`: the history that
        is kept although nobody needs it any more; `clock`: wall-clock time in ns.
        """
        if level not in LEVELS:
            raise ValueError(f"level {level!r} has no journal; those that have are {', '.join(LEVELS)}")
        opened = files(os.fspath(directory))
        lock = None
        try:
            lock = DirectoryLock(opened.path, opened.descriptor)
            # failpoint: journal-locked
            found = survey(opened)
            recovered = recover(opened, found)
            # failpoint: journal-recovered
            assigned, watermarks = dict(recovered.assigned), dict(recovered.watermarks)
            epoch = max(epoch, recovered.epoch) + 1
            snapshot = verified(make_snapshot(recovered if found.segments else None, epoch))
            _check_continues(assigned, watermarks, snapshot)
            refuse_unknown(opened, found, snapshot)
            journal = cls(opened, lock, level, segment_bytes, reserve, retain, clock)
            wipe_spare(opened, 2 * reserve)
            journal._cut(found, recovered)
            journal._adopt(found, assigned, recovered.position, snapshot)
            # failpoint: journal-adopted
            journal._begin_incarnation(found, recovered, epoch, snapshot)
        except BaseException:
            if lock is not None:
                lock.release()
            opened.close()
            raise
        _journals.add(journal)
        return journal, recovered

    def _cut(self, found: Survey, recovered: Recovered) -> None:
        """The torn tail goes before anything is appended, and at "power" what was recovered is on disk before that."""
        if found.torn is not None:
            self._directory.unlink(os.path.basename(found.torn.file))
        for segment in found.segments:
            cut = recovered.torn is not None and recovered.torn.file == segment.path
            if not cut and not self._durable:
                continue
            file = self._directory.open(segment.name, writable=True)
            try:
                if cut:
                    file.truncate(segment.offset(recovered.position))
                    # failpoint: tail-cut
                if self._durable:
                    file.fdatasync()
            finally:
                file.close()
        if self._durable:
            self._directory.sync()
            self._directory.anchor()

    def _adopt(self, found: Survey, assigned: Mapping[str, int], position: int, snapshot: Snapshot) -> None:
        """Keep what is needed of the segments that were there, in terms of the new names."""
        self._names = retired_part(snapshot)
        self._assigned = dict.fromkeys(range(len(snapshot.peers)), 0) | dict(snapshot.assigned)
        index = {name: peer for peer, name in enumerate(snapshot.peers)}
        for segment, after in found.pairs():
            ends = assigned if after is None else by_name(after.snapshot.peers, after.snapshot.assigned)
            size = segment.offset(position) if after is None else segment.size
            closed = replace(segment, size=size, snapshot=bare(segment.snapshot))
            last = {index[name]: last for name, last in ends.items() if name in index}
            self._close_segment(closed, last, snapshot, self._clock() if after is None else after.snapshot.time_ns)

    def _close_segment(self, segment: Segment, assigned: Mapping[int, int], snapshot: Snapshot, closed_ns: int) -> None:
        acked = dict(snapshot.acked)
        highest = {peer: last for peer, last in assigned.items() if last > acked.get(peer, 0)}
        self._closed.append(_Closed(segment, highest, closed_ns))

    def _begin_incarnation(self, found: Survey, recovered: Recovered, epoch: int, snapshot: Snapshot) -> None:
        """On a full disk, history goes first, and what the last incarnation had reserved only when this one has begun:
        others would take it."""
        last, position = found.segments[-1] if found.segments else None, recovered.position
        number = last.number + 1 if last else 1
        try:
            self._begin(number, position, epoch, snapshot)
        except JournalFull:
            before = len(self._closed)
            while len(self._closed) > 1 and not self._closed[0].highest:
                self._delete_oldest()
            if len(self._closed) == before:
                raise
            self._begin(number, position, epoch, snapshot)
        # failpoint: incarnation-begun
        try:
            if last is not None and recovered.torn is None and last.size > last.offset(position):
                file = self._directory.open(last.name, writable=True)
                try:
                    file.truncate(last.offset(position))
                finally:
                    file.close()
            self._has_spare = prepare_spare(self._directory, self._reserve)
        except BaseException:
            self._writer.close()
            raise

    def _begin(self, number: int, position: int, epoch: int, snapshot: Snapshot, old: Writer | None = None) -> None:
        """Write to segment `number` from now on; at "power" it and its name are on disk before anything follows. With
        `old`, both writers refuse to work until it is said that the rotation is over."""
        snapshot = copy(snapshot)
        snapshot.time_ns, snapshot.previous_crc = self._clock(), old.checksum if old else 0
        head = encode_head(number, position, epoch, snapshot)
        if old is not None:
            old.cause = INTERRUPTED  # holds if a signal handler raises: going on would make for two last segments
        writer = Writer.create(
            self._directory, head, number, position, epoch, durable=self._durable, reserve=self._reserve
        )
        self._has_spare = False  # it is this segment
        name, size, body = segment_name(number), writer.offset, writer.position
        writer.cause = old.cause if old else None
        self._writer = writer
        self._current = Segment(name, writer.path, number, position, size, epoch, bare(snapshot), body)
        self._due_at = body + max(self._segment_bytes, 2 * (body - position))
        self._due_early_at = body + 2 * (body - position)
        self._frames = 0

    @property
    def epoch(self) -> int:
        """Of this incarnation."""
        return self._writer.epoch

    @property
    def position(self) -> int:
        """Where the next frame will stand."""
        return self._writer.position

    @property
    def bytes(self) -> int:
        """On disk, in all segments."""
        first = self._closed[0].segment if self._closed else self._current
        return self._writer.position - first.first_position + SEGMENT_HEADER * self.segments

    @property
    def full(self) -> bool:
        """There was no room for more than the reserve when it was last asked for."""
        return self._writer.full

    @property
    def segments(self) -> int:
        """How many files."""
        return len(self._closed) + 1

    def append(self, transaction: Transaction) -> int:
        """Commit: one write(). Returns the position. Sequence numbers that do not continue, and what cannot be encoded,
        are the caller's fault: they raise and nothing is written; nor is anything when the disk is full (JournalFull).
        """
        if self._unusable or self._writer.cause is not None:
            self._check()
        assigned: dict[int, int] = {}
        for send in transaction.sends:
            for peer, first in send.edges:
                last = assigned.get(peer)
                if last is None:
                    last = self._assigned.get(peer)
                if last != first - 1 or send.count < 1:
                    raise self._broken(peer, first)
                assigned[peer] = first + send.count - 1
        keep = 0 if not transaction.sends else self._reserve // 2 if transaction.consumed else self._reserve
        position = self._writer.append(TRANSACTION, transaction, keep=keep)
        # failpoint: append-noted
        self._assigned.update(assigned)
        self._frames += 1
        return position

    def _broken(self, peer: int, got: int) -> SequenceBroken:
        peers = self._names.peers
        name = peers[peer] if 0 <= peer < len(peers) else f"peer {peer} of {len(peers)}"
        return SequenceBroken(name, self._assigned.get(peer, 0) + 1, got)

    def sync(self) -> None:
        """Make everything appended so far survive power loss."""
        self._check()
        self._writer.sync()

    def flush(self) -> None:
        """Only the waiting of `sync`: the one call that another thread may make, while this one appends and neither
        rotates nor closes. Whatever it raises, `fail` must be told of."""
        self._writer.flush()

    def fail(self, cause: str) -> JournalPoisoned:
        """Poison the journal; returns the error to raise."""
        return self._writer.poison(cause)

    @property
    def due(self) -> bool:
        """Time to `rotate`: more was appended since the last snapshot than a segment, or than a restart reads quickly;
        in either case more than twice that snapshot."""
        position = self._writer.position
        return position > self._due_at or (self._frames >= SEGMENT_FRAMES and position > self._due_early_at)

    def rotate(self, snapshot: Snapshot) -> None:
        """Go on in a new segment that begins with `snapshot`: what the worker is after the last transaction. Its names
        are those of the opening, with or without the retired ones, or more behind them. JournalFull when the disk is
        too full for that; everything is then as before."""
        self._check()
        snapshot = verified(with_retired(snapshot, self._names))
        for peer, last in (dict.fromkeys(self._assigned, 0) | dict(snapshot.assigned)).items():
            if self._assigned.get(peer, 0) != last:
                raise self._broken(peer, last + 1)
        old = self._writer
        closed = replace(self._current, size=old.offset)
        if self._durable:
            old.sync()
        try:
            self._begin(closed.number + 1, old.position, old.epoch, snapshot, old)
        except JournalFull:
            old.cause, old.full = None, True
            raise
        except (OSError, JournalPoisoned) as error:
            raise old.poison(f"the next segment could not be begun: {error}") from error
        # failpoint: rotate-begun
        self._close_segment(closed, self._assigned, snapshot, self._clock())
        if len(snapshot.peers) > len(self._names.peers):
            self._assigned = dict.fromkeys(range(len(snapshot.peers)), 0) | self._assigned
        self._names = retired_part(snapshot)
        old.cause = None
        # failpoint: rotate-switched
        try:
            old.cut()
            self._renew_reserves()
        except OSError as error:
            raise self._writer.poison(f"what was reserved could not be given back or renewed: {error}") from error
        finally:
            old.close()
        self._writer.cause = None

    def relieves(self, acked: Mapping[int, int]) -> bool:
        """Whether everything is acknowledged, and to begin a new segment, so that all old ones go, would free much, or
        anything on a full disk."""
        gain = self._writer.position - self._current.body
        much = gain > AHEAD_BYTES and self._writer.position > self._due_early_at
        any_of_it = self._writer.full and (gain > 0 or bool(self._closed))
        return (much or any_of_it) and all(acked.get(peer, 0) >= last for peer, last in self._assigned.items())

    def trim(self, acked: Mapping[int, int]) -> int:
        """Delete the leading segments in which every send is acknowledged, but for those that are to be retained and
        never the current one; returns how many. `acked`: peer -> durable watermark; who is not in it has acknowledged
        nothing new. On a full disk one retained segment goes, too."""
        self._check()
        if self._writer.full:
            self._writer.look_for_room()
        count = 0
        while self._closed and all(acked.get(peer, 0) >= last for peer, last in self._closed[0].highest.items()):
            oldest, now = self._closed[0], self._clock()
            if oldest.closed_ns > now:  # the clock was set back: their time begins now
                self._closed = deque(replace(one, closed_ns=min(one.closed_ns, now)) for one in self._closed)
            age = max(0, now - oldest.closed_ns)
            retained = self._retain.keeps(self.bytes - oldest.segment.size, age)
            if retained and (count or not self._writer.full):
                break
            try:
                self._delete_oldest()
            except OSError as error:
                raise self._writer.poison(f"a trimmed segment could not be deleted: {error}") from error
            count += 1
        if count:
            try:
                self._renew_reserves()
            except OSError as error:
                raise self._writer.poison(f"no spare segment could be made: {error}") from error
        return count

    def _renew_reserves(self) -> None:
        """At once, where something was given back: on a full disk others wait for it."""
        if not self._has_spare:
            self._has_spare = prepare_spare(self._directory, self._reserve)
        if self._writer.full:
            self._writer.renew_reserve()

    def _delete_oldest(self) -> None:
        self._directory.unlink(self._closed[0].segment.name)
        # failpoint: segment-deleted
        if self._durable:
            self._directory.sync()  # one by one: power loss must not leave a hole in the numbers
        self._closed.popleft()

    def sends(self, peer: int, after_seq: int, from_position: int) -> Iterator[tuple[int, Send]]:
        """(position, send) of every committed send to `peer` that ends above `after_seq`, oldest first, read from disk.

        `from_position` is the position of a frame or lies before all of them. Each send has the route and, as its only
        edge, the peer of the current names; one whose route is gone raises UnknownName. The iterator may be used while
        this journal is appended to, rotated and trimmed, and ends where the journal ends at that moment.
        """
        self._check()
        position = from_position
        while (segment := self._segment_behind(position)) is not None:
            position = max(position, segment.body)
            yield from sends_in(self._directory, segment, position, self._names, peer, after_seq)
            position = segment.end
            self._check()

    def read(self, from_position: int = 0) -> Iterator[Record]:
        """Everything that was ever committed and is retained, from a position on: see `persist.history.replay`. The
        journal may be appended to, rotated and trimmed meanwhile."""
        self._check()
        return replay(self._directory, from_position)

    def _segment_behind(self, position: int) -> Segment | None:
        """The first segment that goes on behind `position`, as far as it is written now."""
        for closed in self._closed:
            if closed.segment.end > position:
                return closed.segment
        return replace(self._current, size=self._writer.offset) if self._writer.position > position else None

    def _check(self) -> None:
        if self._unusable:
            raise JournalClosed(self._directory.path, self._unusable)
        self._writer.check()

    def close(self) -> None:
        """Idempotent. Syncs nothing."""
        _journals.discard(self)
        if not self._unusable:  # in a forked child the file is its parent's
            with contextlib.suppress(OSError):
                self._writer.cut()
        self._unusable = self._unusable or "it was closed"
        self._writer.close()
        self._lock.release()
        self._directory.close()

    def _disown(self) -> None:
        self._unusable = "it belongs to the process that this one was forked from"


def _check_continues(assigned: Mapping[str, int], watermarks: Mapping[str, int], snapshot: Snapshot) -> None:
    """SequenceBroken if a peer's numbers would go back, or skip, between the recovered state and the new snapshot."""
    for recovered, pairs in ((assigned, snapshot.assigned), (watermarks, snapshot.watermarks)):
        repeated = dict.fromkeys(snapshot.peers, 0) | by_name(snapshot.peers, pairs)
        for name, last in repeated.items():
            if last != recovered.get(name, 0):
                raise SequenceBroken(name, recovered.get(name, 0) + 1, last + 1)


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _disown_all() -> None:
    """The child would write to the same files as its parent, without the lock."""
    for journal in list(_journals):
        journal._disown()


os.register_at_fork(after_in_child=_disown_all)
