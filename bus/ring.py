"""The ring in plain Python: the readable specification of `_ring.c`, and the fallback where that was not built.

One producer, one consumer; `layout` shows the memory. The contract of both implementations:

- One object serves one end, producer or consumer. An end that died may be replaced by a new object on the same buffer.
- The producer writes records behind the tail, where nobody looks, and then moves the tail: a producer that dies in the
  middle of anything leaves nothing visible. A call moves the tail at most once.
- The consumer copies records out up to its *cursor*. HEAD moves only at `release`, so whoever takes over after a
  crash, or calls `rewind`, sees everything again that was not released.
- Nothing that the other process wrote is trusted: positions and lengths are checked against the ring before a byte is
  touched, and what cannot be is `RingCorrupt`. Each end keeps its own position to itself.
- A call that raises has moved nothing: neither tail, nor head, nor cursor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

from bus.errors import LayoutError, RecordTooLarge, RingCorrupt
from bus.layout import (
    HEADER_SIZE,
    PADDING,
    POSITION_LIMIT,
    RECORD,
    RECORD_HEADER,
    WORD,
    Cell,
    check_ring,
    framed,
    max_record,
    ring_size,
)
from bus.memory import STRONGLY_ORDERED, address_of, fence

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

MOST_VIEWS: Final = 256
MOST_RESERVED: Final = 64
_FIRST_CELL: Final = Cell.TAIL
_CELLS: Final = HEADER_SIZE // WORD
_TAIL: Final = Cell.TAIL
_HEAD: Final = Cell.HEAD
_LENGTH_MASK: Final = 2**32 - 1
_RECORD_BITS: Final = RECORD << 32
_PADDING_BITS: Final = PADDING << 32


class Ring:
    """One end of a ring in `buffer`, which `layout.format_ring` has formatted; `LayoutError` if it is not a ring."""

    __slots__ = (
        "_answer",
        "_closed",
        "_cursor",
        "_data",
        "_head",
        "_head_seen",
        "_reserved",
        "_tail",
        "_words",
        "capacity",
        "epoch",
        "max_record",
    )

    def __init__(self, buffer: WriteableBuffer, /) -> None:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if view.readonly:
                raise BufferError("a ring needs a writable buffer")
            self.capacity, self.epoch = check_ring(view)
            if address_of(view) % WORD:
                raise LayoutError("ring", "address of the buffer", address_of(view), f"a multiple of {WORD}")
            self.max_record = max_record(self.capacity)
            with view[: ring_size(self.capacity)] as segment:
                self._words = segment.cast("Q")  # header and data as aligned words
            self._data = view[HEADER_SIZE : ring_size(self.capacity)]
        self._reserved: deque[tuple[memoryview, int]] = deque()  # and where their records end
        self._answer = (0, 0)
        self._closed = False
        try:
            head, tail = self._position(_HEAD), self._position(_TAIL)
        except RingCorrupt:
            self.close()
            raise
        self._head = self._cursor = head
        self._tail = tail
        self._head_seen = tail - self.capacity  # as if full: the first push looks at the head

    # -- the producer's end --------------------------------------------------------------------------------------------

    def push(self, *parts: ReadableBuffer) -> bool:
        """Appends one record made of these parts. False: there is no room now, and nothing is visible."""
        self._require_no_reservation()
        pieces = [_as_bytes(part) for part in parts]
        size = sum(map(len, pieces))
        start = self._place(self._tail, size)
        if start < 0:
            return False
        # failpoint: ring-claimed
        at = (start & (self.capacity - 1)) + RECORD_HEADER
        for piece in pieces:
            self._data[at : at + len(piece)] = piece
            at += len(piece)
            # failpoint: ring-copying
        # failpoint: ring-copied
        self._publish(start + framed(size))
        return True

    def push_many(self, records: Iterable[ReadableBuffer], /) -> int:
        """Appends as many records as there is room for, from the first on; how many. They become visible together."""
        self._require_no_reservation()
        tail = self._tail
        pushed = 0
        for record in records if isinstance(records, (list, tuple)) else list(records):
            piece = _as_bytes(record)
            size = len(piece)
            start = self._place(tail, size)
            if start < 0:
                break
            at = (start & (self.capacity - 1)) + RECORD_HEADER
            # failpoint: ring-claimed
            self._data[at : at + size] = piece
            # failpoint: ring-copying
            tail = start + framed(size)
            pushed += 1
        if pushed:
            # failpoint: ring-copied
            self._publish(tail)
        return pushed

    def reserve(self, size: int, /) -> memoryview | None:
        """Room for one record to be written in place, behind all that is reserved, invisible until its `commit`. None:
        there is no room now, or MOST_RESERVED wait for theirs."""
        self._require_open()
        if size < 0:
            raise ValueError(f"a record cannot have {size} bytes")
        if size > self.max_record:
            raise RecordTooLarge(size, self.max_record)
        if len(self._reserved) == MOST_RESERVED:
            return None
        start = self._place(self._reserved[-1][1] if self._reserved else self._tail, size)
        if start < 0:
            return None
        # failpoint: ring-claimed
        at = (start & (self.capacity - 1)) + RECORD_HEADER
        view = self._data[at : at + size]
        self._reserved.append((view, start + framed(size)))
        return view

    def commit(self) -> None:
        """Takes the first reserved view back and makes its record visible. BufferError while something exports it."""
        self._require_reservation()
        view, end = self._reserved[0]
        view.release()
        self._reserved.popleft()
        # failpoint: ring-copied
        self._publish(end)

    def abandon(self) -> None:
        """Takes the last reserved view back; its record never was."""
        self._require_reservation()
        self._reserved[-1][0].release()
        self._reserved.pop()

    # -- the consumer's end --------------------------------------------------------------------------------------------

    def take_many(self, max_records: int, max_bytes: int, /) -> list[bytes]:
        """Copies of the records from the cursor on, which moves behind them. HEAD stays.

        At most `max_records`, and of `max_bytes` together, but always the first one. Records before a damaged one are
        handed out; the call that finds the damage first raises `RingCorrupt`.
        """
        before = self._cursor
        try:
            return [bytes(record) for record in self._take(max_records, max_bytes)]
        except MemoryError:
            self._cursor = before
            raise

    def take_views(self, max_records: int, max_bytes: int, /) -> list[memoryview]:
        """The same where they are, as read-only views, and at most MOST_VIEWS: after `release` they show what comes
        next, so it is the caller's to see that nobody looks at them any more."""
        return self._take(min(max_records, MOST_VIEWS), max_bytes)

    def _take(self, max_records: int, max_bytes: int) -> list[memoryview]:
        self._require_open()
        words, data, capacity, limit, mask = self._words, self._data, self.capacity, self.max_record, self.capacity - 1
        cursor, tail = self._cursor, self._position(_TAIL)
        if not cursor <= tail <= self._head + capacity:
            raise RingCorrupt(cursor, tail, "the tail is not within one capacity of the head")
        taken: list[memoryview] = []
        room = max_bytes
        while cursor < tail and len(taken) < max_records:
            index = cursor & mask
            word = words[_CELLS + index // WORD]
            length = word & _LENGTH_MASK
            start = index + RECORD_HEADER
            after = start + ((length + WORD - 1) & -WORD)
            if word >> 32 == RECORD and length <= limit and after <= capacity and after - index <= tail - cursor:
                if taken and length > room:
                    break
                taken.append(data[start : start + length].toreadonly())
                room -= length
                # failpoint: ring-record-copied
            elif word >> 32 != PADDING or start + length != capacity or after - index > tail - cursor:
                if taken:
                    break
                raise RingCorrupt(cursor, *self._problem(word, index))
            cursor += after - index
        self._cursor = cursor
        return taken

    def release(self) -> None:
        """HEAD := cursor. What was taken may be overwritten from now on."""
        self._require_open()
        self._head = self._cursor
        self.set(_HEAD, self._head)
        # failpoint: ring-head-stored

    def rewind(self) -> None:
        """Cursor := HEAD. What was taken and not released will be taken again."""
        self._require_open()
        self._cursor = self._head
        # failpoint: ring-rewound

    def pending(self) -> int:
        """Bytes between cursor and tail, framing included."""
        self._require_open()
        tail = self._position(_TAIL)
        if not self._cursor <= tail <= self._head + self.capacity:
            raise RingCorrupt(self._cursor, tail, "the tail is not within one capacity of the head")
        return tail - self._cursor

    # -- many rings at once --------------------------------------------------------------------------------------------

    @classmethod
    def waiting(cls, rings: list[Self], seconds: float = 0.0, /) -> list[int]:
        """As their consumer: the indices of those that have records behind their cursors.

        If there are none, the ring in C goes on looking for so many seconds, and whoever publishes meanwhile has nobody
        to wake. In Python, where other threads could hardly run meanwhile, one look is all.
        """
        if not math.isfinite(seconds):
            raise ValueError(f"a look has to be bounded, not for {seconds} seconds")
        return [index for index, ring in enumerate(rings) if ring.pending()]

    @classmethod
    def answered(cls, rings: list[Self], /) -> list[int]:
        """As their producer: the indices of those whose consumer has acknowledged something, or asked for a resend,
        since they were looked at by this. At first: at all."""
        return [index for index, ring in enumerate(rings) if ring._has_answered()]

    def _has_answered(self) -> bool:
        before, self._answer = self._answer, (self.get(Cell.ACK), self.get(Cell.RESEND_ASKED))
        return self._answer != before

    # -- either end, or an observer ------------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes between head and tail, framing included, as they are now in shared memory."""
        self._require_open()
        head, tail = self._position(_HEAD), self._position(_TAIL)
        if tail < head:
            raise RingCorrupt(head, tail, "the tail is before the head")
        return min(tail - head, self.capacity)  # to an observer the tail may have moved on since the head was read

    def get(self, cell: int, /) -> int:
        """Acquire: what its writer stored before it is visible after this."""
        self._require_open()
        if not _FIRST_CELL <= cell < _CELLS:
            raise IndexError(f"no cell {cell} in a ring")
        value = self._words[cell]
        if not STRONGLY_ORDERED:
            fence()
        return value

    def set(self, cell: int, value: int, /) -> None:
        """Release: whoever sees this value sees everything that was stored before."""
        self._require_open()
        if not _FIRST_CELL <= cell < _CELLS:
            raise IndexError(f"no cell {cell} in a ring")
        if not STRONGLY_ORDERED:
            fence()
        self._words[cell] = value

    def close(self) -> None:
        """Lets go of the buffer. BufferError while something exports a reserved view. Closing twice is fine."""
        if self._closed:
            return
        while self._reserved:
            self.abandon()
        self._words.release()
        self._data.release()
        self._closed = True

    # ------------------------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the ring is closed")

    def _require_no_reservation(self) -> None:
        self._require_open()
        if self._reserved:
            size = sum(len(view) for view, _ in self._reserved)
            raise RuntimeError(f"{size} bytes are reserved in this ring: commit or abandon them first")

    def _require_reservation(self) -> None:
        self._require_open()
        if not self._reserved:
            raise RuntimeError("nothing is reserved in this ring")

    def _position(self, cell: int) -> int:
        position = self.get(cell)
        if position >= POSITION_LIMIT or position % WORD:
            raise RingCorrupt(
                0, position, "the head is not a position" if cell == _HEAD else "the tail is not a position"
            )
        return position

    def _place(self, tail: int, size: int) -> int:
        """Where a record of this size goes when the tail is `tail`; header and padding are written. -1: no room."""
        if size > self.max_record:
            raise RecordTooLarge(size, self.max_record)
        index = tail & (self.capacity - 1)
        left = self.capacity - index
        total = framed(size)
        skip = left if left < total else 0
        end = tail + skip + total
        if end - self._head_seen > self.capacity:
            head = self._position(_HEAD)
            if not head <= self._tail <= head + self.capacity:
                raise RingCorrupt(self._tail, head, "the head is not within one capacity of the tail")
            self._head_seen = head
            if end - head > self.capacity:
                return -1
        if skip:
            self._words[_CELLS + index // WORD] = (skip - RECORD_HEADER) | _PADDING_BITS
            index = 0
        self._words[_CELLS + index // WORD] = size | _RECORD_BITS
        return tail + skip

    def _publish(self, tail: int) -> None:
        self.set(_TAIL, tail)
        # failpoint: ring-tail-stored
        self._tail = tail

    def _problem(self, word: int, index: int) -> tuple[int, str]:
        """What is wrong with a record header at `index`: the bad value and the reason."""
        kind, length = word >> 32, word & _LENGTH_MASK
        if kind not in {RECORD, PADDING}:
            return kind, "unknown kind of record"
        if kind == PADDING and index + RECORD_HEADER + length != self.capacity:
            return length, "padding does not end where the data ends"
        if kind == RECORD and length > self.max_record:
            return length, "the record is longer than the limit"
        if kind == RECORD and index + framed(length) > self.capacity:
            return length, "the record runs past the end of the data"
        return length, "the record runs past the tail"


def _as_bytes(part: ReadableBuffer) -> bytes | memoryview:
    """The part as something whose length is in bytes and which can be assigned to a slice of bytes."""
    if isinstance(part, bytes):
        return part
    view = memoryview(part)
    if not view.c_contiguous:
        raise BufferError("a record's buffer has to be contiguous")
    return view.cast("B") if view.nbytes else b""
