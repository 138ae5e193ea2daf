"""From names to indices: makes the snapshot that begins a segment. Pure.

A topology's names keep the places it gives them. Names that it no longer has, but something durable does, stand behind
them as *retired*: no state, watermark or dead letter is lost because a name went away, and all is there when it comes
back. Only pending messages cannot wait for what is gone: opening the journal refuses them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from persist.format import DeadLetter, Snapshot
from persist.recovery import Recovered, Route

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
        tables=[(handler(name), key, value) for name, table in recovered.tables.items() for key, value in table.items()],
        attempts=[(peer(name), seq, count) for (name, seq), count in recovered.attempts.items()],
        dead=dead,
    )
    snapshot.retired_peers = peer.retired
    snapshot.retired_handlers = handler.retired
    snapshot.retired_routes = route.retired
    return snapshot


def with_retired(snapshot: Snapshot, opened: Snapshot) -> Snapshot:
    """A later snapshot of the same incarnation, completed by what retired names of `opened` still carry. Dead letters
    are the caller's to pass on. ValueError if the names themselves differ: they change only when a journal is opened.
    """
    tables = (snapshot.peers, snapshot.handlers, snapshot.routes)
    complete = (opened.peers, opened.handlers, opened.routes)
    if tables == complete:
        return snapshot
    peers = len(opened.peers) - opened.retired_peers
    handlers = len(opened.handlers) - opened.retired_handlers
    routes = len(opened.routes) - opened.retired_routes
    if tables != (opened.peers[:peers], opened.handlers[:handlers], opened.routes[:routes]):
        raise ValueError("the names of a snapshot differ from those the journal was opened with")
    return Snapshot(
        snapshot.level,
        snapshot.fingerprint,
        opened.peers,
        opened.handlers,
        opened.routes,
        watermarks=snapshot.watermarks + [pair for pair in opened.watermarks if pair[0] >= peers],
        assigned=snapshot.assigned + [pair for pair in opened.assigned if pair[0] >= peers],
        acked=snapshot.acked + [pair for pair in opened.acked if pair[0] >= peers],
        states=snapshot.states + [pair for pair in opened.states if pair[0] >= handlers],
        tables=snapshot.tables + [row for row in opened.tables if row[0] >= handlers],
        attempts=snapshot.attempts + [row for row in opened.attempts if row[0] >= peers],
        dead=snapshot.dead,
        retired_peers=opened.retired_peers,
        retired_handlers=opened.retired_handlers,
        retired_routes=opened.retired_routes,
    )
