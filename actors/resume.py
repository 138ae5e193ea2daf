"""What an incarnation begins with: the first snapshot of its journal, from what the last one left. Pure.

The attempt of the message that its predecessor died of is counted here, in the snapshot that becomes durable before
any handler runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from actors.plan import Plan
from actors.system_errors import PendingForUnknown
from persist.format import DeadLetter, Snapshot
from persist.recovery import Recovered

V = TypeVar("V")

RUNTIME = "#runtime"  # the name under which the runtime keeps its own few keys
SESSION = b"session"  # the start of the system whose on_start has taken effect


@dataclass(frozen=True)
class Names:
    """The name tables of a worker's journal; ids in transactions are places in them.

    The present plan's names come first, in its order; behind them what only dead letters of `recovered` still name.
    """

    plan: Plan
    me: str
    recovered: Recovered | None = None
    peers: tuple[str, ...] = field(init=False)
    handlers: tuple[str, ...] = field(init=False)
    routes: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        hosted = next((worker.handlers for worker in self.plan.workers if worker.name == self.me), ())
        dead = self.recovered.dead if self.recovered is not None else ()
        peers = dict.fromkeys((*self.plan.peers, *(letter.peer for letter in dead)))
        routes = dict.fromkeys((*(route.key for route in self.plan.routes), *(letter.route for letter in dead)))
        object.__setattr__(self, "peers", tuple(peers))
        object.__setattr__(self, "handlers", (*(handler.name for handler in hosted), RUNTIME))
        object.__setattr__(self, "routes", tuple(routes))

    def snapshot(
        self,
        *,
        watermarks: Mapping[str, int],
        assigned: Mapping[str, int],
        acked: Mapping[str, int],
        states: Mapping[str, bytes],
        tables: Mapping[str, Mapping[bytes, bytes]],
        attempts: Mapping[tuple[str, int], int],
        dead: Iterable[DeadLetter],
    ) -> Snapshot:
        peer = {name: index for index, name in enumerate(self.peers)}
        handler = {name: index for index, name in enumerate(self.handlers)}
        return Snapshot(
            level=self.plan.level,
            fingerprint=self.plan.fingerprint,
            peers=list(self.peers),
            handlers=list(self.handlers),
            routes=list(self.routes),
            watermarks=[(peer[name], n) for name, n in watermarks.items() if n],
            assigned=[(peer[name], n) for name, n in assigned.items() if n],
            acked=[(peer[name], n) for name, n in acked.items() if n],
            states=[(handler[name], value) for name, value in states.items()],
            tables=[(handler[name], k, v) for name, items in tables.items() for k, v in items.items()],
            attempts=[(peer[name], seq, n) for (name, seq), n in attempts.items()],
            dead=list(dead),
        )

    def first(self, suspect: tuple[str, int] | None) -> Snapshot:
        """The snapshot of a new incarnation. Raises PendingForUnknown where the plan lost whom messages wait for."""
        recovered, known = self.recovered, self.plan.peers
        if recovered is None:
            return self.snapshot(watermarks={}, assigned={}, acked={}, states={}, tables={}, attempts={}, dead=())
        gone = sorted(name for name, at in recovered.unacked_from.items() if at is not None and name not in known)
        if gone:
            raise PendingForUnknown(
                self.me, {name: recovered.assigned[name] - recovered.acked.get(name, 0) for name in gone}
            )
        attempts = {key: n for key, n in recovered.attempts.items() if key[1] > recovered.watermarks.get(key[0], 0)}
        if suspect is not None and suspect[1] > recovered.watermarks.get(suspect[0], 0):
            attempts[suspect] = attempts.get(suspect, 0) + 1
        return self.snapshot(
            watermarks=_known(recovered.watermarks, self.peers),
            assigned=_known(recovered.assigned, self.peers),
            acked=_known(recovered.acked, self.peers),
            states=_known(recovered.states, self.handlers),
            tables=_known(recovered.tables, self.handlers),
            attempts={key: n for key, n in attempts.items() if key[0] in self.peers},
            dead=self.letters(),
        )

    def letters(self) -> list[DeadLetter]:
        """The recovered dead letters under these name tables."""
        peer = {name: index for index, name in enumerate(self.peers)}
        route = {key: index for index, key in enumerate(self.routes)}
        return [
            DeadLetter(
                peer=peer[letter.peer],
                seq=letter.seq,
                route=route[letter.route],
                handler=letter.handler,
                type=letter.type,
                reason=letter.reason,
                detail=letter.detail,
                attempts=letter.attempts,
                time_ns=letter.time_ns,
                body=letter.body,
            )
            for letter in (self.recovered.dead if self.recovered is not None else ())
        ]


def _known(items: Mapping[str, V], names: tuple[str, ...]) -> dict[str, V]:
    return {name: value for name, value in items.items() if name in names}
