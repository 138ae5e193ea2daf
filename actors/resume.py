"""What an incarnation begins with: the first snapshot of its journal, from what the last one left. Pure.

The attempt of the message that its predecessor died of is counted here, in the snapshot that becomes durable before
any handler runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.plan import GATEWAY, Plan
from persist import DeadLetter, Recovered, Snapshot, snapshot_of

RUNTIME = "#runtime"  # the name under which the runtime keeps its own few keys
SESSION = b"session"  # the start of the system whose on_start has taken effect


class Names:
    """The name tables of one peer's journal under a plan; ids in transactions are places in them."""

    def __init__(self, plan: Plan, me: str) -> None:
        self.level = plan.level
        self.fingerprint = plan.fingerprint
        self.peers = list(plan.peers)
        hosted = () if me == GATEWAY else plan.worker(me).handlers
        self.handlers = [*(handler.name for handler in hosted), RUNTIME]
        self.routes = [route.key for route in plan.routes]

    def first(self, recovered: Recovered | None, suspect: tuple[str, int] | None, *, alone: bool = True) -> Snapshot:
        """The snapshot of a new incarnation. Counts the attempt of `suspect` in `recovered`; forgets those passed. Not
        `alone`: it was the last of several, any of which is to blame, so that it counts as suspect, but not as tried.
        """
        recovered = recovered if recovered is not None else Recovered()
        attempts, watermarks = recovered.attempts, recovered.watermarks
        if suspect is not None:
            attempts[suspect] = attempts.get(suspect, 0) + alone
        for peer, seq in [key for key in attempts if key[1] <= watermarks.get(key[0], 0)]:
            del attempts[peer, seq]
        return snapshot_of(
            recovered,
            level=self.level,
            fingerprint=self.fingerprint,
            peers=self.peers,
            handlers=self.handlers,
            routes=self.routes,
        )

    def later(
        self,
        *,
        watermarks: Sequence[int],
        assigned: Sequence[int],
        acked: Sequence[int],
        states: Mapping[int, bytes],
        tables: Mapping[int, Mapping[bytes, bytes]],
        attempts: Mapping[tuple[int, int], int],
        dead: Sequence[DeadLetter],
    ) -> Snapshot:
        """The snapshot of a running incarnation, by which an older segment becomes dispensable."""
        return Snapshot(
            level=self.level,
            fingerprint=self.fingerprint,
            peers=self.peers,
            handlers=self.handlers,
            routes=self.routes,
            watermarks=[(peer, seq) for peer, seq in enumerate(watermarks) if seq],
            assigned=[(peer, seq) for peer, seq in enumerate(assigned) if seq],
            acked=[(peer, seq) for peer, seq in enumerate(acked) if seq],
            states=list(states.items()),
            tables=[(handler, key, value) for handler, items in tables.items() for key, value in items.items()],
            attempts=[(peer, seq, count) for (peer, seq), count in attempts.items()],
            dead=list(dead),
        )
