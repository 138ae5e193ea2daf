"""Appends frames to one segment: one pwrite() per frame, from one reused buffer, into space that is already reserved.

The space is reserved ahead, and a part of it is kept for what lets others free theirs: when the disk is full, frames
that are not to use it are refused with JournalFull, and the others go on. A refusal changes nothing, and ends by itself
as soon as there is room again.

Nothing else is ever retried. Once a write or a sync has failed, or has been left half-way by an exception, nobody knows
what is on disk: the writer is poisoned and every further call raises JournalPoisoned.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from persist.errors import JournalFull, JournalPoisoned
from persist.files import NO_ROOM, Directory, File
from persist.format import SEGMENT_HEADER, SNAPSHOT, Snapshot, encode_frame, encode_segment_header, segment_name
from persist.spare import NAME as SPARE
from persist.spare import take_spare

KEPT_BUFFER = 1 << 20  # a buffer that one large frame made larger than this is given back
RESERVE_BYTES = 1 << 18  # kept of the current segment for frames without sends, and again for the next segment's head
SUMMED = 4096  # bytes; a segment with a larger transaction has no checksum: summing costs more than it saves
AHEAD_BYTES = 1 << 20  # reserved at once, when there is room: it takes a system call and, at "power", metadata

INTERRUPTED = "it was interrupted"


def encode_head(number: int, first_position: int, epoch: int, snapshot: Snapshot) -> bytearray:
    """What a segment begins with. Raises for a snapshot that cannot be encoded."""
    head = bytearray()
    encode_frame(head, SNAPSHOT, epoch, first_position, snapshot)
    head[:0] = encode_segment_header(number, first_position)
    return head


class Writer:
    """The end of a segment.

    position  where the next frame will stand
    durable   up to where power loss takes nothing; None if nobody is to know (level "process")
    checksum  CRC-32 of the whole file so far; 0 once it has a large frame
    cause     why it is poisoned, if so
    full      there was no room beyond the reserve when it was last asked for: not for the frame that is refused
    """

    def __init__(
        self, file: File, epoch: int, first_position: int, allocated: int, reserve: int, *, durable: bool
    ) -> None:
        self.epoch = epoch
        self.first_position = first_position
        self.position = first_position
        self.durable = first_position if durable else None
        self.checksum = 0
        self._summed = True
        self.synced = True  # nothing was written since the last sync
        self.cause: str | None = None
        self.full = False
        self._file = file
        self._buffer = bytearray()
        self._reserve = reserve
        self._allocated = allocated  # bytes of the file
        self._room = 0  # up to this position nothing needs to be asked for
        self._refused = 0  # bytes of the largest frame that found no room since there was room for all
        self._measure()

    @classmethod
    def create(
        cls,
        directory: Directory,
        head: bytearray,
        number: int,
        first_position: int,
        epoch: int,
        *,
        durable: bool,
        reserve: int,
    ) -> Writer:
        """A new segment, begun by its `head`, in a file that gets its name only then: whoever sees a segment sees its
        head. `durable`: both are synced. JournalFull if not even the head finds room; then nothing has changed."""
        file, allocated = take_spare(directory, len(head), reserve)
        # failpoint: segment-made
        writer = cls(file, epoch, first_position, allocated, reserve, durable=durable)
        writer.full = allocated < len(head) + reserve
        try:
            writer._put(head, len(head) - SEGMENT_HEADER, 0)
            # failpoint: snapshot-written
            if durable:
                writer.sync()
            directory.rename(SPARE, segment_name(number))
            # failpoint: segment-renamed
            if durable:
                directory.sync()
        except BaseException:
            writer.close()
            raise
        file.path = directory.locate(segment_name(number))
        return writer

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def offset(self) -> int:
        """Where the next frame will stand in the file."""
        return self.position - self.first_position + SEGMENT_HEADER

    def append(self, frame_type: int, record: Any, *, keep: int) -> int:
        """Write one frame and return its position. What cannot be encoded raises and is not written; neither is what
        finds no room (JournalFull): it must leave `keep` bytes of what is reserved."""
        if self.cause is not None:
            self.check()
        position = self.position
        buffer = self._buffer
        loose = 0 if self.durable is None else position - self.durable
        encode_frame(buffer, frame_type, self.epoch, position, record, loose)
        # failpoint: frame-encoded
        size = len(buffer)
        if position + size > self._room:
            self._make_room(size, keep)
        self._put(buffer, size, position - self.first_position + SEGMENT_HEADER)
        if size > KEPT_BUFFER:
            self._buffer = bytearray()
        return position

    def _put(self, data: bytearray, size: int, offset: int) -> None:
        """Write all of `data`, of which the last `size` bytes are a frame."""
        self.cause = INTERRUPTED  # holds if a signal handler raises between the write and the last line
        self.synced = False
        # failpoint: append-before-write
        try:
            written = self._file.write(data, offset)
        except OSError as error:
            raise self.poison(f"write failed: {error}") from error
        # failpoint: append-written
        if written != len(data):
            raise self.poison(f"short write: {written} of {len(data)} bytes")
        if self._summed:
            # For segments of many small frames, which would take long to verify one by one.
            self._summed = size <= SUMMED or offset == 0
            self.checksum = crc32(data, self.checksum) if self._summed else 0
        self.position += size
        self.cause = None

    def look_for_room(self) -> None:
        """See whether it still is `full`."""
        self._make_room(0, 0)

    def renew_reserve(self) -> None:
        """Take what is missing of the reserve, and nothing ahead: others may need that more."""
        self._allocate(self.offset + self._reserve)

    def _make_room(self, size: int, keep: int) -> None:
        """Reserve space for a frame of `size` bytes and what is to be kept behind it; at best for many more."""
        needed = self.offset + max(size, self._refused) + self._reserve
        if self._allocate(needed + AHEAD_BYTES) or self._allocate(needed):
            self.full, self._refused = False, 0
            return
        self.full = True
        if not self._allocate(self.offset + size + keep):
            self._refused = max(self._refused, size)
            raise JournalFull(self._file.path, size, max(0, self._allocated - self.offset))

    def _allocate(self, size: int) -> bool:
        """Whether the file now has so many bytes."""
        if size > self._allocated:
            try:
                self._file.allocate(self._allocated, size - self._allocated)
            except OSError as error:
                if error.errno in NO_ROOM:
                    return False
                raise self.poison(f"space could not be reserved: {error}") from error
            self._allocated = size
            self._measure()
        return True

    def _measure(self) -> None:
        self._room = self.first_position - SEGMENT_HEADER + self._allocated - self._reserve

    def sync(self) -> None:
        """fdatasync, unless there is nothing to sync."""
        self.check()
        if self.synced:
            return
        try:
            self.flush()
        except OSError as error:
            raise self.poison(f"fdatasync failed: {error}") from error
        self.synced = True

    def flush(self) -> None:
        """Only the waiting of `sync`: the one call that another thread may make. OSError must then be given to
        `poison`."""
        covers = self.position
        self._file.fdatasync()
        # failpoint: sync-done
        if self.durable is not None:
            self.durable = covers

    def check(self) -> None:
        """JournalPoisoned if it is."""
        if self.cause is not None:
            raise JournalPoisoned(self._file.path, self.offset, self.cause)

    def poison(self, cause: str) -> JournalPoisoned:
        """Refuse everything from now on; returns the error to raise."""
        self.cause = cause
        return JournalPoisoned(self._file.path, self.offset, cause)

    def cut(self) -> None:
        """Give back the space that was reserved and not used. Readers do not mind if it stays. May raise OSError."""
        if self.cause is None and self._allocated > self.offset:
            self._file.truncate(self.offset)
            self._allocated = self.offset
            self._measure()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()
