"""What a journal means: folds snapshots and transactions into Recovered, in which everything goes by name.

Pure. Indices are only valid within their segment; names are what lasts, so a topology may reorder, add and remove.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from persist.format import BadFrame, DeadLetter, Send, Snapshot, TornTail, Transaction

Route = tuple[str, str]  # source handler, message type
T = TypeVar("T")


class NamedDeadLetter(msgspec.Struct, kw_only=True):
    """A DeadLetter whose peer and route are names."""

    peer: str
    seq: int
    route: Route
    handler: str
    type: str
    reason: str
    detail: str
    attempts: int
    time_ns: int
    body: bytes


class Recovered(msgspec.Struct, kw_only=True):
    """A worker as its journal has it. A journal that was never written is one of epoch 0 and otherwise empty.

    watermarks    inbound peer -> last sequence number durably consumed
    assigned      outbound peer -> last sequence number committed
    acked         outbound peer -> the receiver's watermark as far as the journal shows; it may be further by now
    unacked_from  outbound peer -> a position at or before the first frame with a send above `acked`, None if there is
                  no such send
    unacked_bytes outbound peer -> about how many bytes those sends have
    attempts      (inbound peer, sequence number) -> how often that message was tried in vain: deaths that it was in
                  progress at, and failures that were counted durably
    routes        segment number -> its table of routes
    position      where the journal ends; torn: what a crash left behind that
    """

    epoch: int = 0
    level: str = ""
    fingerprint: str = ""
    states: dict[str, bytes] = msgspec.field(default_factory=dict)
    tables: dict[str, dict[bytes, bytes]] = msgspec.field(default_factory=dict)
    watermarks: dict[str, int] = msgspec.field(default_factory=dict)
    assigned: dict[str, int] = msgspec.field(default_factory=dict)
    acked: dict[str, int] = msgspec.field(default_factory=dict)
    unacked_from: dict[str, int | None] = msgspec.field(default_factory=dict)
    unacked_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    attempts: dict[tuple[str, int], int] = msgspec.field(default_factory=dict)
    dead: list[NamedDeadLetter] = msgspec.field(default_factory=list)
    routes: dict[int, tuple[Route, ...]] = msgspec.field(default_factory=dict)
    position: int = 0
    torn: TornTail | None = None


def name(table: Sequence[T], index: int) -> T:
    """BadFrame for an index that the segment's table does not have."""
    if not 0 <= index < len(table):
        raise BadFrame(f"index {index} is outside a table of {len(table)} names")
    return table[index]


def by_name(peers: Sequence[str], numbers: Iterable[tuple[int, int]]) -> dict[str, int]:
    return {name(peers, peer): number for peer, number in numbers}


class Outbox:
    """Finds the first unacknowledged send to each peer, over all segments, oldest first."""

    def __init__(self, acked: Mapping[str, int]) -> None:
        self.acked = acked
        self.first: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def wants(self, before: Mapping[str, int], after: Mapping[str, int]) -> bool:
        """Whether a segment that took the assigned numbers from `before` to `after` has anything unacknowledged."""
        return any(last > max(self.acked.get(peer, 0), before.get(peer, 0)) for peer, last in after.items())

    def is_whole(self, before: Mapping[str, int], after: Mapping[str, int]) -> bool:
        """Whether, of what a segment has for each peer, all is acknowledged or nothing."""
        return not any(before.get(peer, 0) < self.acked.get(peer, 0) < last for peer, last in after.items())

    def see_all(self, position: int, size: int, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """All of a segment at once, if it `is_whole`; its size is told apart by numbers of messages."""
        counts = {peer: last - before.get(peer, 0) for peer, last in after.items() if last > before.get(peer, 0)}
        for peer, count in counts.items():
            if after[peer] <= self.acked.get(peer, 0):
                continue
            self.first.setdefault(peer, position)
            self.bytes[peer] = self.bytes.get(peer, 0) + size * count // sum(counts.values())

    def see(self, position: int, peers: Sequence[str], sends: Iterable[Send]) -> None:
        for send in sends:
            for index, first in send.edges:
                peer = name(peers, index)
                if first + send.count - 1 > self.acked.get(peer, 0):
                    self.first.setdefault(peer, position)
                    self.bytes[peer] = self.bytes.get(peer, 0) + len(send.body)


class Fold:
    """One segment: its snapshot, then its transactions in order. Works on indices; `result` resolves them."""

    def __init__(self, epoch: int, snapshot: Snapshot) -> None:
        self.epoch = epoch
        self.snapshot = snapshot
        self.states = dict(snapshot.states)
        self.tables: dict[int, dict[bytes, bytes]] = {}
        for handler, key, value in snapshot.tables:
            self.tables.setdefault(handler, {})[key] = value
        self.watermarks = dict(snapshot.watermarks)
        self.assigned = dict(snapshot.assigned)
        self.attempts = {(peer, seq): count for peer, seq, count in snapshot.attempts}
        self.dead: list[DeadLetter] = list(snapshot.dead)

    def apply(self, transaction: Transaction) -> None:
        self.watermarks.update(transaction.consumed)
        self.states.update(transaction.states)
        for send in transaction.sends:
            for peer, first in send.edges:
                self.assigned[peer] = first + send.count - 1
        for handler, key, value in transaction.keys:
            if value is not None:
                self.tables.setdefault(handler, {})[key] = value
            elif handler in self.tables:
                self.tables[handler].pop(key, None)
        if transaction.removed:
            gone = set(transaction.removed)
            self.dead = [letter for letter in self.dead if (letter.peer, letter.seq) not in gone]
        self.dead += transaction.dead
        for peer, seq, count in transaction.attempts:
            self.attempts[peer, seq] = count

    def result(self, outbox: Outbox) -> Recovered:
        snapshot = self.snapshot
        peers, handlers = snapshot.peers, snapshot.handlers
        watermarks = by_name(peers, self.watermarks.items())
        assigned = by_name(peers, self.assigned.items())
        attempts = {(name(peers, peer), seq): count for (peer, seq), count in self.attempts.items()}
        return Recovered(
            epoch=self.epoch,
            level=snapshot.level,
            fingerprint=snapshot.fingerprint,
            states={name(handlers, handler): value for handler, value in self.states.items()},
            tables={name(handlers, handler): table for handler, table in self.tables.items() if table},
            watermarks=watermarks,
            assigned=assigned,
            acked=dict(outbox.acked),
            unacked_from={peer: outbox.first.get(peer) for peer in assigned},
            unacked_bytes={peer: outbox.bytes.get(peer, 0) for peer in assigned},
            attempts={key: count for key, count in attempts.items() if key[1] > watermarks.get(key[0], 0)},
            dead=[named(letter, peers, snapshot.routes) for letter in self.dead],
        )


def named(letter: DeadLetter, peers: Sequence[str], routes: Sequence[Route]) -> NamedDeadLetter:
    return NamedDeadLetter(
        peer=name(peers, letter.peer),
        seq=letter.seq,
        route=name(routes, letter.route),
        handler=letter.handler,
        type=letter.type,
        reason=letter.reason,
        detail=letter.detail,
        attempts=letter.attempts,
        time_ns=letter.time_ns,
        body=letter.body,
    )
