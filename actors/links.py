"""A link: both directions between a worker and one peer, as its endpoint sees them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator

from msgspec import Struct

from actors.in_place import RingPlace
from bus import Doorbell, Ring
from persist import Entry, Inbound, Journal, Outbound

ENTRY_BYTES = 64  # what a buffered run costs beside its body
MARKS = 256  # commit times remembered per link, for the age of its oldest message
MARK_NS = 1_000_000  # commits closer together than this share a mark


class Arrival(Struct, frozen=True):
    """A run as it came from a peer. Messages `first` to `first + length - 1` of the link."""

    link: Link
    first: int
    length: int
    route: int
    flags: int
    body: memoryview | bytes


class Link:
    """Both directions with one peer: protocol state, rings, the peer's doorbell. Either ring may be missing."""

    __slots__ = (
        "bell", "claims", "consuming", "inbound", "index", "inside", "largest", "lends", "marks", "name", "outbound",
        "places", "producing", "resends", "resends_seen", "unsafe",
    )  # fmt: skip

    def __init__(self, index: int, name: str, memory_limit: int) -> None:
        self.index = index
        self.name = name
        self.outbound = Outbound(memory_limit)
        self.inbound = Inbound()
        self.producing: Ring | None = None  # the ring towards the peer
        self.consuming: Ring | None = None  # the ring from the peer
        self.bell: Doorbell | None = None
        self.largest = sys.maxsize  # bytes of a run that the ring towards the peer can carry
        self.inside = False  # the edge from the peer lies inside this worker's component: never paused
        self.lends = False  # some of what comes by it are rows, which are read where they are in the ring
        self.places: deque[RingPlace] = deque()  # in the ring towards the peer: reserved, not published
        self.resends = 0  # resends asked of the peer
        self.resends_seen = 0  # resends of the peer's that were served
        self.unsafe = 0  # level memory: last number sent without a cause that waits in a ring for its acknowledgement
        self.claims: deque[tuple[int, int]] = deque()  # (sequence number, claim) of what the peer has not consumed
        self.marks: deque[tuple[int, int]] = deque()  # (last sequence number, monotonic ns) of unacknowledged commits

    def mark(self, last: int, now: int) -> None:
        """Messages up to `last` were committed now."""
        marks = self.marks
        if marks and (now - marks[-1][1] < MARK_NS or len(marks) >= MARKS):
            marks[-1] = (last, marks[-1][1])
        else:
            marks.append((last, now))

    def forget_marks(self, acked: int) -> None:
        marks = self.marks
        while marks and marks[0][0] <= acked:
            marks.popleft()

    @property
    def oldest_ns(self) -> int:
        """When the oldest message that is not acknowledged was committed, at the latest; 0 if there is none."""
        return self.marks[0][1] if self.marks else 0

    def entries(self, journal: Journal) -> Iterator[Entry]:
        """The committed sends towards the peer, from where its backlog in memory ends."""
        outbound = self.outbound
        assert outbound.spilled_from is not None
        for position, send in journal.sends(self.index, outbound.published, outbound.spilled_from):
            first = next(seq for peer, seq in send.edges if peer == self.index)
            yield Entry(first, send.count, len(send.body) + ENTRY_BYTES, send, position)
