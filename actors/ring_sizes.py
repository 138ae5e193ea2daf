"""How large the rings of a system are, where nobody says and where room is short. Pure.

- A ring whose size was given has that size.
- Any other is as large as it may be (`Edge.ring_bytes`) as long as all rings together take at most half of the shared
  memory that is free and a quarter of the memory that there is; where they would take more, it is halved until they do
  not, down to the least that its messages need (`Edge.least_ring`). The rest is for claims, and for everybody else.
- A ring by which something of the run before may have to be sent again is not made smaller: a record that was
  committed when there was room for it must find room.
- Rings that do not fit at all are refused: RingsDoNotFit.

A mebibyte is as fast as more, but for batches of rows: what is longer than half of its ring is not written in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from actors.system_errors import RingsDoNotFit
from bus.layout import MAX_CAPACITY, MIN_CAPACITY, ring_size

if TYPE_CHECKING:
    from actors.plan import Edge

DEFAULT_RING = 1 << 20
ROW_RING = 1 << 22  # of an edge that carries fixed messages from handlers
LEAST_RING = 1 << 14  # of those that are made smaller because room is short
DEFAULT_MESSAGE = 256 << 10  # largest message that goes through a ring
SHARE_OF_SHARED = 2  # rings take at most the 2nd part of the shared memory that is free
SHARE_OF_MEMORY = 4  # and the 4th part of all memory
PAGE = 4096  # shared memory is given by pages


class Room(msgspec.Struct, frozen=True):
    """Bytes; None where it cannot be known, or where there is no limit."""

    shared: int | None  # shared memory that is free
    memory: int | None  # memory that this machine, or this container, has


def largest_message(ring_bytes: int) -> int:
    """How large a message may be to fit in a ring: half of it, less the headers of the record and of the run."""
    return ring_bytes // 2 - 32


def ring_for(message_bytes: int) -> int:
    """The smallest ring that holds messages of this size."""
    return max(MIN_CAPACITY, 1 << (2 * (message_bytes + 32) - 1).bit_length())


def default_message(ring_bytes: object) -> int:
    """The largest message that goes through a ring, where nobody says."""
    if ring_bytes is None or ring_wrong(ring_bytes):
        return DEFAULT_MESSAGE
    assert isinstance(ring_bytes, int)
    return min(DEFAULT_MESSAGE, largest_message(ring_bytes))


def ring_wrong(value: Any) -> tuple[str, str] | None:
    """What is wrong with the size of a ring, and what to do."""
    text = f"a whole number, a power of two, {MIN_CAPACITY} or more"
    if not isinstance(value, int) or isinstance(value, bool):
        return "not a whole number", f"it is {text}"
    if not MIN_CAPACITY <= value <= MAX_CAPACITY:
        return "out of range", f"it is {text}, {MAX_CAPACITY} at most"
    if value & (value - 1):
        return "not a power of two", f"take {1 << (value.bit_length() - 1)} or {1 << value.bit_length()}"
    return None


def fitted(edges: Iterable[Edge], other: int, room: Room, kept: Mapping[str, int]) -> dict[str, int]:
    """The size of each ring, by its edge's name. `other`: what is needed beside rings; `kept`: what some had before,
    and have to have again at least. Raises RingsDoNotFit."""
    edges = list(edges)
    shares = [(room.shared, SHARE_OF_SHARED), (room.memory, SHARE_OF_MEMORY)]
    share = min((free // part for free, part in shares if free is not None), default=None)
    most = max((edge.ring_bytes for edge in edges), default=LEAST_RING)
    while True:
        sizes = {edge.name: max(edge.least_ring, min(edge.ring_bytes, most), kept.get(edge.name, 0)) for edge in edges}
        needed = other + sum(_taken(size) for size in sizes.values())
        if share is None or needed <= share or most <= LEAST_RING:
            break
        most //= 2
    for kind, limit in (("shared", room.shared), ("memory", room.memory)):
        if limit is not None and needed > limit:
            largest = max(sizes, key=lambda name: sizes[name])
            raise RingsDoNotFit(needed, limit, kind, len(sizes), largest, sizes[largest])
    return sizes


def _taken(size: int) -> int:
    """Bytes that a ring takes, header and all."""
    return -(-ring_size(size) // PAGE) * PAGE
