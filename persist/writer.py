"""Appends frames to one segment: one write() per frame, from one reused buffer.

Nothing is ever retried. Once a write or a sync has failed, or has been left half-way by an exception, nobody knows what
is on disk: the writer is poisoned and every further call raises JournalPoisoned.
"""

from __future__ import annotations

from typing import Any

from persist.errors import JournalPoisoned
from persist.files import Directory, File
from persist.format import SEGMENT_HEADER, SNAPSHOT, Snapshot, encode_frame, encode_segment_header, segment_name

KEPT_BUFFER = 1 << 20  # a buffer that one large frame made larger than this is given back

_INTERRUPTED = "a write was interrupted"


class Writer:
    """The end of a segment. `position` is where the next frame will stand; `cause` says why it is poisoned, if so."""

    def __init__(self, file: File, epoch: int, first_position: int) -> None:
        self.epoch = epoch
        self.first_position = first_position
        self.position = first_position
        self.synced = True  # nothing was written since the last sync
        self._file = file
        self._buffer = bytearray()
        self.cause: str | None = None

    @classmethod
    def create(cls, directory: Directory, number: int, first_position: int, epoch: int, snapshot: Snapshot) -> Writer:
        """A new segment, begun by its snapshot. Header and snapshot are one write(), so that a crash leaves either a
        segment or something that is recognised as the start of one."""
        buffer = bytearray()
        encode_frame(buffer, SNAPSHOT, epoch, first_position, snapshot)
        size = len(buffer)
        buffer[:0] = encode_segment_header(number, first_position)
        writer = cls(directory.create(segment_name(number)), epoch, first_position)
        try:
            writer._put(buffer, size)
        except BaseException:
            writer.close()
            raise
        return writer

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def offset(self) -> int:
        """Where the next frame will stand in the file."""
        return self.position - self.first_position + SEGMENT_HEADER

    def append(self, frame_type: int, record: Any) -> int:
        """Write one frame and return its position. What cannot be encoded raises and is not written."""
        if self.cause is not None:
            self.check()
        position = self.position
        encode_frame(self._buffer, frame_type, self.epoch, position, record)
        self._put(self._buffer, len(self._buffer))
        if len(self._buffer) > KEPT_BUFFER:
            self._buffer = bytearray()
        return position

    def _put(self, data: bytearray, size: int) -> None:
        """Write all of `data`, of which the last `size` bytes are a frame."""
        self.cause = _INTERRUPTED  # holds if a signal handler raises between the write and the last line
        self.synced = False
        try:
            written = self._file.write(data)
        except OSError as error:
            raise self.poison(f"write failed: {error}") from error
        if written != len(data):
            raise self.poison(f"short write: {written} of {len(data)} bytes")
        self.position += size
        self.cause = None

    def sync(self) -> None:
        """fdatasync, unless there is nothing to sync."""
        self.check()
        if self.synced:
            return
        try:
            self._file.fdatasync()
        except OSError as error:
            raise self.poison(f"fdatasync failed: {error}") from error
        self.synced = True

    def check(self) -> None:
        """JournalPoisoned if it is."""
        if self.cause is not None:
            raise JournalPoisoned(self._file.path, self.offset, self.cause)

    def poison(self, cause: str) -> JournalPoisoned:
        """Refuse everything from now on; returns the error to raise."""
        self.cause = cause
        return JournalPoisoned(self._file.path, self.offset, cause)

    def close(self) -> None:
        self._file.close()
