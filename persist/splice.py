"""What a repair appends behind the last transaction that it keeps, so that the numbers go on and nobody is misled."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from persist.errors import JournalLocked
from persist.format import DeadLetter, Send, Snapshot, Transaction
from persist.history import LOST, Record
from persist.journal import Journal
from persist.names import snapshot_of
from persist.reader import Segment
from persist.recovery import Recovered, Route
from persist.setting_aside import Unmarked

LOCK_SECONDS = 10.0  # whoever tries to open the journal meanwhile has its lock for a moment, and is refused

Range = tuple[str, int, int]  # peer, first and last number


@dataclass(slots=True)
class Names:
    """All that the readable segments name; the last segment's come first, in its order."""

    peers: list[str]
    handlers: list[str]
    routes: list[Route]
    level: str
    fingerprint: str

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Names:
        tables = [segment.snapshot for segment in reversed(segments)]
        return cls(
            list(dict.fromkeys(name for table in tables for name in table.peers)),
            list(dict.fromkeys(name for table in tables for name in table.handlers)),
            list(dict.fromkeys((source, kind) for table in tables for source, kind in table.routes)),
            tables[0].level,
            tables[0].fingerprint,
        )

    def snapshot(self, state: Recovered) -> Snapshot:
        return snapshot_of(
            state,
            level=self.level,
            fingerprint=self.fingerprint,
            peers=self.peers,
            handlers=self.handlers,
            routes=self.routes,
        )


@dataclass(slots=True)
class Splice:
    """From `base`, the state as of the last transaction that is kept, to `target`, with the numbers up to `upto`
    (outbound peer -> last number). Runs are taken from `records`; `missing` are the numbers that those do not have and
    that are not known to be `received`."""

    names: Names
    base: Recovered
    target: Recovered
    epoch: int  # of the last incarnation
    received: Mapping[str, int]
    transactions: list[Transaction] = field(default_factory=list)
    missing: list[Range] = field(default_factory=list)
    _assigned: dict[str, int] = field(default_factory=dict)

    def build(self, records: Iterable[Record], upto: Mapping[str, int]) -> None:
        """Fill in `transactions` and `missing`."""
        self._assigned = dict(self.base.assigned)
        for record in records:
            sends: list[Send] = []
            for run in record.sends:
                for peer, first in run.edges.items():
                    last = first + run.count - 1
                    if self._assigned.get(peer, 0) < first and last <= upto.get(peer, 0):
                        sends += self._lost(peer, first - 1)
                        sends.append(
                            Send(self._route(run.route), run.count, run.flags, [self._edge(peer, first)], run.body)
                        )
                        self._assigned[peer] = last
            if sends:
                self.transactions.append(Transaction(sends=sends))
        sends = [send for peer, last in upto.items() for send in self._lost(peer, last)]
        bridge = self._bridge(sends)
        if bridge != Transaction():
            self.transactions.append(bridge)

    def _lost(self, peer: str, last: int) -> Iterator[Send]:
        """Stands for all numbers up to `last` that are not there."""
        first = self._assigned.get(peer, 0) + 1
        if last < first:
            return
        self._assigned[peer] = last
        if last > self.received.get(peer, 0):
            self.missing.append((peer, max(first, self.received.get(peer, 0) + 1), last))
        yield Send(0, last - first + 1, LOST, [self._edge(peer, first)], b"")

    def _edge(self, peer: str, first: int) -> tuple[int, int]:
        return self.names.peers.index(peer), first

    def _route(self, route: Route) -> int:
        return self.names.routes.index((route[0], route[1]))

    def _bridge(self, sends: list[Send]) -> Transaction:
        base, target, handlers = self.base, self.target, self.names.handlers
        keys: list[tuple[int, bytes, bytes | None]] = []
        for handler in base.tables.keys() | target.tables.keys():
            then, now = base.tables.get(handler, {}), target.tables.get(handler, {})
            index = handlers.index(handler)
            keys += [(index, key, now.get(key)) for key in then.keys() | now.keys() if then.get(key) != now.get(key)]
        peer = self.names.peers.index
        letters = [letter for letter in target.dead if letter not in base.dead]
        kept = {(letter.peer, letter.seq) for letter in target.dead}
        return Transaction(
            consumed=[(peer(p), last) for p, last in target.watermarks.items() if last > base.watermarks.get(p, 0)],
            sends=sends,
            states=[(handlers.index(h), value) for h, value in target.states.items() if base.states.get(h) != value],
            keys=sorted(keys, key=lambda row: row[:2]),
            dead=[
                DeadLetter(
                    peer(one.peer),
                    one.seq,
                    self._route(one.route),
                    one.handler,
                    one.type,
                    one.reason,
                    one.detail,
                    one.attempts,
                    one.time_ns,
                    one.body,
                )
                for one in letters
            ],
            removed=[(peer(one.peer), one.seq) for one in base.dead if (one.peer, one.seq) not in kept],
        )

    def final(self) -> Recovered:
        """The state behind all of it. What stands for lost messages counts as acknowledged."""
        state = deepcopy(self.target)
        state.states = self.base.states | self.target.states
        state.watermarks = self.base.watermarks | self.target.watermarks
        state.assigned = dict(self._assigned)
        known = {**state.acked, **self.received}
        state.acked = {peer: min(known.get(peer, 0), last) for peer, last in self._assigned.items()}
        for peer, _, last in self.missing:
            state.acked[peer] = max(state.acked.get(peer, 0), last)
        return state


def perform(path: str, splice: Splice) -> None:
    """Append it to the journal at `path`, which ends with what is to be kept and has the marker. Everything is synced,
    but for the directory's names."""
    journal = _open(path, splice)
    try:
        for transaction in splice.transactions:
            journal.append(transaction)
        journal.sync()
        journal.rotate(splice.names.snapshot(splice.final()))
        journal.sync()
    finally:
        journal.close()


def _open(path: str, splice: Splice) -> Journal:
    def make(recovered: Recovered | None, epoch: int) -> Snapshot:
        return splice.names.snapshot(recovered or Recovered())

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return Journal.open(path, epoch=splice.epoch, level=splice.names.level, make_snapshot=make, files=Unmarked)[
                0
            ]
        except JournalLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
