"""Where ILM keeps what must not be forgotten, as a typed protocol: outbox, watermarks, keyed values.

outbox      per peer, the runs of messages that it has not acknowledged; numbered 1, 2, 3, ... without holes
watermark   per peer, the number of the last message from it that was delivered
values      a keyed table: ILM's own keys begin with "ilm/", those of the user with "user/"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec import Struct

from persist.ilm.message import PeerId


class Run(Struct, frozen=True, gc=False):
    """Messages `first` to `first + count - 1` to one peer. `position` is where the backend keeps the run: it grows
    from commit to commit, and belongs to the backend."""

    first: int
    count: int
    body: bytes
    position: int = 0

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(slots=True)
class PeerState:
    """What a backend recovered of one peer.

    assigned       number of the last message committed to it
    acked          everything up to here is known to be acknowledged; may be older than the truth
    watermark      number of the last message from it that was delivered
    from_position  a position at or before that of the first run above `acked`; None if there is no such run
    """

    assigned: int = 0
    acked: int = 0
    watermark: int = 0
    from_position: int | None = None


class Change(NamedTuple):
    """What one commit does, all of it or nothing: `sends` enter outboxes (each continues the numbers of its peer),
    watermarks move to `consumed`, `values` are set, or removed where None."""

    sends: Sequence[tuple[PeerId, Run]] = ()
    consumed: Sequence[tuple[PeerId, int]] = ()
    values: Sequence[tuple[str, bytes | None]] = ()


class Backend(Protocol):
    """Contract
    - `commit` is atomic: after a crash at any moment, `recover` finds all of a change or nothing of it, and every
      change that came before one that it finds.
    - A change that `commit` returned from survives the death of the process (unless the backend is memory); one that
      a later `sync` returned from survives whatever `durability` names.
    - What cannot be kept for want of space raises StorageFull and changes nothing; the backend stays usable, and takes
      changes without sends for as long as it can. Any other error means that the backend has failed.
    - One ILM uses it, from one thread. `recover` comes first and exactly once between an opening and `close`.
    """

    @property
    def durability(self) -> str:
        """ "memory", "process" or "power"."""

    def recover(self) -> Mapping[PeerId, PeerState]:
        """Take possession of the storage, and say what it holds. Raises if another has it."""

    def commit(self, change: Change) -> int:
        """Returns the position of the change's sends."""

    async def sync(self) -> None:
        """Returns when everything committed before the call is as durable as `durability` says. Calls that overlap
        share the work."""

    def runs(self, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        """The committed runs to `peer` that end above number `after`, oldest first, from `from_position` (that of a
        run, or before it) on. Loads in batches; commits may happen meanwhile."""

    def acknowledged(self, peer: PeerId, through: int) -> None:
        """The peer has everything up to `through` for good: it may be dropped, at any later time. A hint that need not
        be durable."""

    def forget(self, peer: PeerId) -> None:
        """Durably drop all there is of a peer but for keyed values: outbox, numbers, watermark. It is as if it had
        never been heard of."""

    def get(self, key: str) -> bytes | None:
        """The committed value of a key."""

    def close(self) -> None:
        """Give the storage back. Idempotent; syncs nothing."""
