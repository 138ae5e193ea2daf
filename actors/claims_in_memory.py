"""Claims at level `memory`: files in shared memory, named so that whoever cleans up after the system finds them.

    header    magic 8 bytes | generation u64 | size u64 | edges u32 | looked at u32 | edges
    edge      peer u32 | zero u32 | sequence number u64
    message   from the next page on

New pages cost more than what is written to them, so a claim that was consumed is used again, with its next generation.
That is safe only when no receiver looks at it any more: one that keeps a view beyond the commit of its handling marks
the claim as looked at before it acknowledges, and then its owner lets go of it instead.

There is no journal: the edges in the header tell the owner's next incarnation what is still to be consumed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from actors.claims import Claims
from actors.tickets import Large, Ticket
from bus import Cell
from persist.errors import JournalFull
from persist.files import NO_ROOM
from persist.format import DeadLetter

if TYPE_CHECKING:
    from actors.links import Link
    from persist.journal import Journal

FOLDER = "/dev/shm"
MAGIC = b"RGLCLAIM"
PAGE = 4096
LETTER = 1 << 63  # in the number of a dead letter's
SPARE_BYTES = 64 << 20  # of free claims that are kept for the next messages
MAPPED_BYTES = 128 << 20  # of others' claims that stay mapped for the next use

_HEAD = struct.Struct("<8sQQII")
_EDGE = struct.Struct("<IIQ")
_COUNT = struct.Struct("<I")
_COUNT_AT, _LOOKED_AT = 24, 28
_UNSEEN = 3  # references to a mapping that nobody looks at: its holder's, a variable's, getrefcount's


class _Slot:
    """A claim of this owner, in use or free."""

    __slots__ = ("capacity", "generation", "map", "number")

    def __init__(self, number: int, mapped: mmap.mmap, header: int) -> None:
        self.number = number
        self.map = mapped
        self.capacity = len(mapped) - header
        self.generation = 0

    @property
    def looked_at(self) -> bool:
        mapped = self.map
        return bool(_COUNT.unpack_from(mapped, _LOOKED_AT)[0]) or sys.getrefcount(mapped) > _UNSEEN


class MemoryClaims(Claims):
    """`prefix`: of the names of all segments of the run; `peers`: all names, by index."""

    def __init__(self, owner: str, prefix: str, peers: Sequence[str]) -> None:
        super().__init__(owner)
        self._index = {name: index for index, name in enumerate(peers)}
        self._prefix = prefix
        self._header = -(-(_HEAD.size + len(peers) * _EDGE.size) // PAGE) * PAGE
        # A number is never used again, also not by the next incarnation: who has the file of an earlier one mapped
        # would take it for this.
        self._next = time.monotonic_ns()
        self._slots: dict[int, _Slot] = {}
        self._spare: deque[_Slot] = deque()  # the last one was used last
        self._spare_bytes = 0
        self._maps: OrderedDict[tuple[str, int], mmap.mmap] = OrderedDict()  # of others, the last one was used last
        self._mapped_bytes = 0
        self._redeemed: set[tuple[str, int]] = set()

    # ------------------------------------------------------------------------------------------------ sending
    def _make(self, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        slot = self._write(large)
        return self._told(slot, large, edges)

    def _lay(self, large: Large) -> Large:
        try:
            slot = self._write(large)
        except JournalFull:
            return large.copied()  # to be refused by `_make`, when the transaction can be
        begin = self._header
        return Large(large.codec, (memoryview(slot.map)[begin : begin + large.size].toreadonly(),), slot.number)

    def _seal(self, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        return self._told(self._slots[large.claim], large, edges)

    def _write(self, large: Large) -> _Slot:
        """All that is written but once, and by no other copy than this."""
        slot = self._take(large.size)
        slot.generation += 1
        mapped, at = slot.map, self._header
        _HEAD.pack_into(mapped, 0, MAGIC, slot.generation, large.size, 0, 0)
        for part in large.parts:
            mapped[at : at + len(part)] = part
            at += len(part)
        return slot

    def _told(self, slot: _Slot, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        """The edges count only when all is there."""
        for place, (peer, seq) in enumerate(edges):
            _EDGE.pack_into(slot.map, _HEAD.size + place * _EDGE.size, peer, 0, seq)
        # failpoint: claim-filled
        _COUNT.pack_into(slot.map, _COUNT_AT, len(edges))
        return Ticket(self.owner, slot.number, slot.generation, large.size, 0, large.codec)

    def _take(self, size: int) -> _Slot:
        capacity = _rounded(size)
        for place in range(len(self._spare) - 1, -1, -1):
            slot = self._spare[place]
            if slot.capacity == capacity:
                del self._spare[place]
                self._spare_bytes -= capacity
                # failpoint: claim-reused
                return slot
        try:
            return self._new(capacity)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        while self._spare:
            self._let_go(self._spare.popleft())
        self._spare_bytes = 0
        try:
            return self._new(capacity)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise JournalFull(FOLDER, capacity + self._header, 0) from None

    def _new(self, capacity: int) -> _Slot:
        """All of its space is really there, or OSError and nothing is."""
        self._next += 1
        path, size = self._path(self.owner, self._next), self._header + capacity
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.ftruncate(descriptor, size)
            slot = _Slot(self._next, mmap.mmap(descriptor, size), self._header)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        self._slots[slot.number] = slot
        return slot

    def _remove(self, number: int) -> None:
        slot = self._slots.get(number)
        if slot is None:  # of a dead letter
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(self.owner, number))
            return
        _COUNT.pack_into(slot.map, _COUNT_AT, 0)
        if slot.looked_at or slot.capacity > SPARE_BYTES // 2:
            self._let_go(slot)
            return
        self._spare.append(slot)
        self._spare_bytes += slot.capacity
        while self._spare_bytes > SPARE_BYTES:
            oldest = self._spare.popleft()
            self._spare_bytes -= oldest.capacity
            self._let_go(oldest)

    def _let_go(self, slot: _Slot) -> None:
        """The memory goes with the last one who has it mapped."""
        del self._slots[slot.number]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(self.owner, slot.number))
        # failpoint: claim-let-go

    # ------------------------------------------------------------------------------------------------ receiving
    def _open(self, ticket: Ticket) -> memoryview:
        mapped = self._map(ticket)
        magic, generation, size, _, _ = _HEAD.unpack_from(mapped)
        begin = self._header
        if magic != MAGIC or (generation, size) != (ticket.generation, ticket.size) or begin + size > len(mapped):
            raise ValueError(f"it holds message {generation} of {size} bytes, not {ticket.generation} of {ticket.size}")
        self._redeemed.add((ticket.owner, ticket.number))
        return memoryview(mapped)[begin : begin + size].toreadonly()

    def _map(self, ticket: Ticket) -> mmap.mmap:
        if ticket.owner == self.owner and ticket.number in self._slots:
            return self._slots[ticket.number].map
        key = (ticket.owner, ticket.number)
        found = self._maps.get(key)
        if found is not None:
            self._maps.move_to_end(key)
            return found
        descriptor = os.open(self._path(*key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self._maps[key] = found
        self._mapped_bytes += len(found)
        return found

    @property
    def pending(self) -> bool:
        return bool(self._fresh or self._laid or self._redeemed)

    def settle(self) -> None:
        if not self._redeemed:
            return
        for key in self._redeemed:
            mapped = self._maps.get(key)
            if mapped is not None and sys.getrefcount(mapped) > _UNSEEN:
                self._mark_looked_at(key)
                self._forget(key)
        self._redeemed.clear()
        while self._mapped_bytes > MAPPED_BYTES:
            self._forget(next(iter(self._maps)))

    def _mark_looked_at(self, key: tuple[str, int]) -> None:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._path(*key), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, _COUNT.pack(1), _LOOKED_AT)
                # failpoint: claim-looked-at
            finally:
                os.close(descriptor)

    def _forget(self, key: tuple[str, int]) -> None:
        self._mapped_bytes -= len(self._maps.pop(key))

    def _keep(self, ticket: Ticket) -> Ticket:
        """By a name of another kind: the next incarnation knows of no dead letters."""
        self._next += 1
        number = self._next | LETTER
        os.link(self._path(ticket.owner, ticket.number), self._path(self.owner, number), follow_symlinks=False)
        self._mark_looked_at((ticket.owner, ticket.number))
        slot = self._slots.get(ticket.number) if ticket.owner == self.owner else None
        if slot is not None:
            _COUNT.pack_into(slot.map, _LOOKED_AT, 1)
        return ticket._replace(owner=self.owner, number=number)

    def _path(self, owner: str, number: int) -> str:
        if owner not in self._index:
            raise OSError(errno.EINVAL, f"there is no {owner!r}")
        kind = "l" if number & LETTER else "c"
        return f"{FOLDER}/{self._prefix}{kind}{self._index[owner]}-{number:x}"

    # ------------------------------------------------------------------------------------------------ recovery
    def recover(self, links: Sequence[Link], journal: Journal | None, dead: Iterable[DeadLetter]) -> None:
        """What stands in rings may still be read, whether or not its sender came to know that it had put it there. What
        the last incarnation had sent itself is gone, and so are its dead letters."""
        numbers = self._there()
        found: list[tuple[int, int, Ticket]] = []
        for number in numbers:
            for peer, seq, ticket in self._left(number):
                ring = links[peer].producing
                # What was not published will be sent again, as another one.
                if ring is not None and ring.get(Cell.ACK) < seq <= links[peer].outbound.published:
                    found.append((seq, peer, ticket))
        for seq, peer, ticket in sorted(found):
            self.hold(links[peer], seq, ticket)
        for number in numbers:
            if number not in self._sizes:
                self._slots.pop(number, None)
                os.unlink(self._path(self.owner, number))

    def _there(self) -> list[int]:
        me = self._index[self.owner]
        kinds = tuple(f"{self._prefix}{kind}{me}-" for kind in "cl")
        with os.scandir(FOLDER) as entries:
            return [int(entry.name.rpartition("-")[2], 16) for entry in entries if entry.name.startswith(kinds)]

    def _left(self, number: int) -> list[tuple[int, int, Ticket]]:
        """(peer, sequence number, ticket) of its sends to others."""
        if number & LETTER:
            return []
        descriptor = os.open(self._path(self.owner, number), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < self._header:
                return []
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        magic, generation, length, count, _ = _HEAD.unpack_from(mapped)
        if magic != MAGIC or count > len(self._index):
            return []
        slot = self._slots[number] = _Slot(number, mapped, self._header)
        slot.generation = generation
        ticket = Ticket(self.owner, number, generation, length, 0, "")
        edges = [_EDGE.unpack_from(mapped, _HEAD.size + place * _EDGE.size) for place in range(count)]
        return [(peer, seq, ticket) for peer, _, seq in edges if peer < len(self._index)]


def _rounded(size: int) -> int:
    """So that messages of about the same size use the same claims, with at most a fifth more than needed."""
    step = max(PAGE, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step
