"""From names to indices: makes the snapshot that begins a segment. Pure.

A topology's names keep the places it gives them. Names that it no longer has, but something durable does, stand behind
them as *retired*: no state, watermark or dead letter is lost because a name went away, and all is there when it comes
back. Only pending messages cannot wait for what is gone: opening the journal refuses them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from typing import Generic, TypeVar

from persist.format import BadFrame, DeadLetter, Snapshot
from persist.recovery import Fold, Outbox, Recovered, Route

T = TypeVar("T", bound=Hashable)


class _Table(Generic[T]):
    def __init__(self, current: Sequence[T]) -> None:
        self.names = list(current)
        self._current = len(current)
        self._index = {name: index for index, name in enumerate(current)}

    def __call__(self, name: T) -> int:
        index = self._index.get(name)
        if index is None:
            index = self._index[name] = len(self.names)
            self.names.append(name)
        return index

    @property
    def retired(self) -> int:
        return len(self.names) - self._current


def snapshot_of(
    recovered: Recovered,
    *,
    level: str,
    fingerprint: str,
    peers: Sequence[str],
    handlers: Sequence[str],
    routes: Sequence[Route],
) -> Snapshot:
    """The recovered worker as the first snapshot under a topology with these names."""
    peer: _Table[str] = _Table(peers)
    handler: _Table[str] = _Table(handlers)
    route: _Table[Route] = _Table(routes)
    dead = [
        DeadLetter(
            peer(letter.peer),
            letter.seq,
            route(letter.route),
            letter.handler,
            letter.type,
            letter.reason,
            letter.detail,
            letter.attempts,
            letter.time_ns,
            letter.body,
        )
        for letter in recovered.dead
    ]
    snapshot = Snapshot(
        level,
        fingerprint,
        peer.names,
        handler.names,
        route.names,
        watermarks=[(peer(name), seq) for name, seq in recovered.watermarks.items()],
        assigned=[(peer(name), seq) for name, seq in recovered.assigned.items()],
        acked=[(peer(name), seq) for name, seq in recovered.acked.items()],
        states=[(handler(name), value) for name, value in recovered.states.items()],
        tables=[
            (handler(name), key, value) for name, table in recovered.tables.items() for key, value in table.items()
        ],
        attempts=[(peer(name), seq, count) for (name, seq), count in recovered.attempts.items()],
        dead=dead,
    )
    snapshot.retired_peers = peer.retired
    snapshot.retired_handlers = handler.retired
    snapshot.retired_routes = route.retired
    return snapshot


def current_peers(snapshot: Snapshot) -> list[str]:
    return snapshot.peers[: len(snapshot.peers) - snapshot.retired_peers]


def current_handlers(snapshot: Snapshot) -> list[str]:
    return snapshot.handlers[: len(snapshot.handlers) - snapshot.retired_handlers]


def current_routes(snapshot: Snapshot) -> list[Route]:
    return snapshot.routes[: len(snapshot.routes) - snapshot.retired_routes]


def verified(snapshot: Snapshot) -> Snapshot:
    """The same; ValueError for one that could not be recovered from."""
    try:
        Fold(0, snapshot).result(Outbox({}))
    except BadFrame as bad:
        raise ValueError(f"the snapshot does not hold together: {bad.reason}") from None
    for table in (snapshot.peers, snapshot.handlers, snapshot.routes):
        if len(set(table)) < len(table):
            raise ValueError(f"the snapshot names something twice: {table}")
    return snapshot


def bare(snapshot: Snapshot) -> Snapshot:
    """Its names and sequence numbers, without what may be large; shares no name table with it."""
    kept = copy(snapshot)
    kept.peers, kept.handlers, kept.routes = list(kept.peers), list(kept.handlers), list(kept.routes)
    kept.states, kept.tables, kept.attempts, kept.dead = [], [], [], []
    return kept


def retired_part(snapshot: Snapshot) -> Snapshot:
    """Its names, and what the retired ones among them carry."""
    peers, handlers = len(current_peers(snapshot)), len(current_handlers(snapshot))
    kept = bare(snapshot)
    for numbers in ("watermarks", "assigned", "acked", "attempts"):
        setattr(kept, numbers, [row for row in getattr(snapshot, numbers) if row[0] >= peers])
    kept.states = [row for row in snapshot.states if row[0] >= handlers]
    kept.tables = [row for row in snapshot.tables if row[0] >= handlers]
    return kept


def with_retired(snapshot: Snapshot, retired: Snapshot) -> Snapshot:
    """A later snapshot of the incarnation whose `retired_part` is given, completed by that. Dead letters are the
    caller's to pass on. Where nothing is retired, more names may follow. ValueError if they differ otherwise: names
    change only when a journal is opened."""
    tables = (snapshot.peers, snapshot.handlers, snapshot.routes)
    if tables == (retired.peers, retired.handlers, retired.routes):
        return snapshot
    if not (retired.retired_peers or retired.retired_handlers or retired.retired_routes) and (
        snapshot.peers[: len(retired.peers)] == retired.peers
        and snapshot.handlers[: len(retired.handlers)] == retired.handlers
        and snapshot.routes[: len(retired.routes)] == retired.routes
    ):
        return snapshot
    if tables != (current_peers(retired), current_handlers(retired), current_routes(retired)):
        raise ValueError("the names of a snapshot differ from those the journal was opened with")
    complete = copy(retired)
    complete.level, complete.fingerprint, complete.dead = snapshot.level, snapshot.fingerprint, snapshot.dead
    for numbers in ("watermarks", "assigned", "acked", "states", "tables", "attempts"):
        setattr(complete, numbers, getattr(snapshot, numbers) + getattr(retired, numbers))
    return complete
