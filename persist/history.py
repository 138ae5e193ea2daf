"""A journal as history: every transaction from any position on, by name, once or following what is still appended.

Contract
- Nothing here takes a lock or changes anything. A writer, in this process or another, may append, rotate, trim, die and
  start again meanwhile.
- `replay` gives every record that was there when it began, in order, and may give some of those that came since; it
  always ends. `tail` from the same position gives exactly the same records and then goes on.
- There is never a silent hole. What was trimmed before it could be read raises PositionGone, damage DamagedJournal.
- A torn tail is never shown: a record is there when its whole frame is. What a crash has left half written, the next
  incarnation cuts off; until then it is taken for what is just being written.
- Records are shown as soon as they are appended. At level "power" one may be shown before it is synced, and power loss
  may take it back: then its position will be given to another record, of a later epoch.
- Errors come from the iterator, not from the call.

The states, watermarks and numbers that a trimmed history begins with are in `beginning`; its `position` is where to
replay from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from persist.errors import DamagedJournal
from persist.files import Directory
from persist.format import BadFrame, Frame, Send, decode_transaction
from persist.history_cursor import Cursor, head
from persist.reader import Segment
from persist.recovery import Fold, NamedDeadLetter, Outbox, Recovered, Route, by_name, name, named

POLL = (0.0005, 0.01)  # seconds between looks: as long as records come, and at most
LONG_IDLE = 3  # times as long, after a second without anything new: to wake up costs more than to look
SETTLE = 1.0  # seconds without anything new after which what stands at the end is looked at closely, again and again

LOST = 1 << 15
"""Flag of a run that stands for messages which could no longer be read when the journal was repaired. It has no body,
and is never sent."""

Place = str | os.PathLike[str] | Directory


class SentRun(msgspec.Struct, frozen=True):
    """A Send by name. `edges`: outbound peer -> first sequence number."""

    route: Route
    count: int
    flags: int
    edges: dict[str, int]
    body: bytes

    @property
    def lost(self) -> bool:
        return bool(self.flags & LOST)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction by name. `end` is the position behind it: where to go on.

    consumed  inbound peer -> watermark
    states    handler -> whole value
    keys      (handler, key, value or None if the key was removed)
    removed   (peer, sequence number) of dead letters that are no longer kept
    attempts  (inbound peer, sequence number) -> how often that message was tried in vain
    """

    position: int
    end: int
    segment: int
    epoch: int
    consumed: dict[str, int] = msgspec.field(default_factory=dict)
    sends: list[SentRun] = msgspec.field(default_factory=list)
    states: dict[str, bytes] = msgspec.field(default_factory=dict)
    keys: list[tuple[str, bytes, bytes | None]] = msgspec.field(default_factory=list)
    dead: list[NamedDeadLetter] = msgspec.field(default_factory=list)
    removed: list[tuple[str, int]] = msgspec.field(default_factory=list)
    attempts: dict[tuple[str, int], int] = msgspec.field(default_factory=dict)


def replay(directory: Place, from_position: int = 0) -> Iterator[Record]:
    """The history from a position to its present end. 0 is its beginning, whatever was trimmed; any other position must
    be that of a record, or an end, else PositionGone or NoSuchPosition."""
    with _opened(directory) as opened:
        cursor = Cursor(opened, from_position)
        try:
            if not cursor.begin():
                cursor.settle()
                return
            newest = cursor.newest()
            while True:
                yield from _records(cursor)
                if not cursor.advance():
                    if not cursor.settle():
                        return
                elif cursor.segment.number > newest:
                    return
        finally:
            cursor.close()


def tail(
    directory: Place,
    from_position: int = 0,
    *,
    timeout: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    poll: float = POLL[1],
) -> Iterator[Record]:
    """The history from a position on, and what is appended to it, by later incarnations and in later segments too.

    Ends after `timeout` seconds without a record (None: never), or when `stop`, which is asked between records and
    while waiting, says so. While there is nothing new it looks every `poll` seconds, and after a while less often.
    Damage where the journal ends is told once something stands behind it, or at the timeout.
    """
    with _opened(directory) as opened:
        cursor = Cursor(opened, from_position)
        try:
            since, pause, settle_after = time.monotonic(), POLL[0], SETTLE
            while not stop():
                begun, before = cursor.begin(), cursor.position
                for record in _records(cursor) if begun else ():
                    yield record
                    if stop():
                        return
                if cursor.position != before:
                    since, pause, settle_after = time.monotonic(), POLL[0], SETTLE
                    continue
                if begun and cursor.advance():
                    continue
                idle = time.monotonic() - since
                ended = timeout is not None and idle >= timeout
                if ended or idle >= settle_after:
                    settle_after = idle + SETTLE
                    if not cursor.settle() and ended:
                        return
                time.sleep(pause if timeout is None else max(0.0, min(pause, timeout - idle)))
                pause = min(2 * pause, poll if idle < SETTLE else LONG_IDLE * poll)
        finally:
            cursor.close()


def beginning(directory: Place) -> Recovered:
    """What the worker was where the retained history begins. `position` is that of its first record. Everything sent
    before was acknowledged, or the segment would be there. A journal that was never written is empty."""
    with _opened(directory) as opened:
        cursor = Cursor(opened, 0)
        try:
            segment = head(opened, cursor.segment.name) if cursor.begin() else None
            if segment is None:
                cursor.settle()
                return Recovered()
        finally:
            cursor.close()
    state = state_at_start(segment)
    state.acked |= state.assigned
    return state


def state_at_start(segment: Segment) -> Recovered:
    """What the snapshot of a segment says. The segment's `snapshot` must be whole."""
    snapshot = segment.snapshot
    state = Fold(segment.epoch, snapshot).result(Outbox(by_name(snapshot.peers, snapshot.acked)))
    state.position = segment.body
    state.routes = {segment.number: tuple(snapshot.routes)}
    return state


def apply(state: Recovered, record: Record) -> None:
    """Bring a state that ends where the record begins to where it ends."""
    state.watermarks |= record.consumed
    state.states |= record.states
    for run in record.sends:
        state.assigned |= {peer: first + run.count - 1 for peer, first in run.edges.items()}
    for handler, key, value in record.keys:
        if value is not None:
            state.tables.setdefault(handler, {})[key] = value
        elif key in state.tables.get(handler, {}):
            del state.tables[handler][key]
            if not state.tables[handler]:
                del state.tables[handler]
    if record.removed:
        state.dead = [letter for letter in state.dead if (letter.peer, letter.seq) not in record.removed]
    state.dead += record.dead
    attempts = (state.attempts | record.attempts).items()
    state.attempts = {key: count for key, count in attempts if key[1] > state.watermarks.get(key[0], 0)}
    state.epoch, state.position = record.epoch, record.end


def record_of(frame: Frame, segment: Segment) -> Record:
    """DamagedJournal for a body that does not decode, or an index that the segment has no name for."""
    snapshot = segment.snapshot
    peers, handlers, routes = snapshot.peers, snapshot.handlers, snapshot.routes
    try:
        transaction = decode_transaction(frame.body)
        return Record(
            position=frame.position,
            end=frame.end,
            segment=segment.number,
            epoch=frame.epoch,
            consumed=by_name(peers, transaction.consumed),
            sends=[_sent(send, peers, routes) for send in transaction.sends],
            states={name(handlers, handler): value for handler, value in transaction.states},
            keys=[(name(handlers, handler), key, value) for handler, key, value in transaction.keys],
            dead=[named(letter, peers, routes) for letter in transaction.dead],
            removed=[(name(peers, peer), seq) for peer, seq in transaction.removed],
            attempts={(name(peers, peer), seq): count for peer, seq, count in transaction.attempts},
        )
    except (msgspec.DecodeError, BadFrame) as error:
        offset = segment.offset(frame.position)
        raise DamagedJournal(segment.path, offset, max(segment.size - offset, 0), str(error)) from None


def _sent(send: Send, peers: list[str], routes: list[Route]) -> SentRun:
    return SentRun(name(routes, send.route), send.count, send.flags, by_name(peers, send.edges), send.body)


def _records(cursor: Cursor) -> Iterator[Record]:
    for frame in cursor.frames():
        yield record_of(frame, cursor.segment)


@contextmanager
def _opened(place: Place) -> Iterator[Directory]:
    """One that was opened by the caller is left open."""
    if isinstance(place, Directory):
        yield place
        return
    opened = Directory(place, create=False)
    try:
        yield opened
    finally:
        opened.close()
