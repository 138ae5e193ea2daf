"""Frames in a stream of bytes, and their seals. Pure.

     0          4                      4 + length
     +----------+----------------------+            length: u32, little endian. A frame without contents is a
     |  length  |  contents   [ seal ] |            heartbeat. The seal, where there is one, counts in the length.
     +----------+----------------------+

Contract
- A length is looked at before anything is allocated for it, and memory for a frame is only taken as its bytes come.
- What comes is cut the same, however the stream was cut on its way.
- A seal is the first 16 bytes of HMAC-SHA256 over the number of the frame (u64, from 0 in each direction) and the
  contents: frames that were changed, left out, doubled, reordered, or come from somebody else do not pass. It hides
  nothing.
"""

from __future__ import annotations

import hmac
from typing import Final

from bus.streams.errors import FrameForged, FrameTooLong

HEADER_BYTES: Final = 4
SEAL_BYTES: Final = 16
INITIAL_BYTES: Final = 1 << 12  # enough for handshakes
HEARTBEAT: Final = b""


def frame(contents: bytes) -> bytes:
    return len(contents).to_bytes(4, "little") + contents


class FrameBuffer:
    """Takes in bytes, gives out contents. `limit` may change between frames."""

    __slots__ = ("_data", "_end", "_start", "_view", "limit", "usual_bytes")

    def __init__(self, limit: int, usual_bytes: int = INITIAL_BYTES) -> None:
        self.limit = limit
        self.usual_bytes = usual_bytes  # of the memory held while frames are short
        self._allot(INITIAL_BYTES)
        self._start = self._end = 0

    def _allot(self, size: int) -> None:
        self._data = bytearray(size)
        self._view = memoryview(self._data)

    @property
    def allotted(self) -> int:
        return len(self._data)

    def room(self) -> memoryview:
        """Where the next bytes are to be put; never empty if `take` was called until it gave None."""
        held = self._end - self._start
        if not held:
            self._start = self._end = 0
            if len(self._data) != self.usual_bytes:
                self._allot(self.usual_bytes)
        elif self._end == len(self._data):
            kept = self._view[self._start : self._end]
            if held > len(self._data) // 2:
                self._allot(max(self.usual_bytes, min(2 * len(self._data), HEADER_BYTES + self.limit)))
            self._view[:held] = kept  # overlapping is fine: it moves as memmove() does
            self._start, self._end = 0, held
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """So many bytes were put where `room` said."""
        self._end += count

    def take(self) -> bytes | None:
        """The next contents; None if they are not complete. Raises FrameTooLong."""
        start = self._start
        held = self._end - start
        if held < HEADER_BYTES:
            return None
        length = int.from_bytes(self._data[start : start + HEADER_BYTES], "little")
        if length > self.limit:
            raise FrameTooLong(length, self.limit)
        if held < HEADER_BYTES + length:
            return None
        self._start = end = start + HEADER_BYTES + length
        return bytes(self._view[start + HEADER_BYTES : end])


class Seal:
    """One direction of one connection."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def close(self, contents: bytes) -> bytes:
        return contents + self._next(contents)

    def open(self, sealed: bytes) -> bytes:
        """Raises FrameForged."""
        contents = sealed[:-SEAL_BYTES]
        number = self._number
        if not hmac.compare_digest(sealed[-SEAL_BYTES:], self._next(contents)):
            raise FrameForged(number)
        return contents

    def _next(self, contents: bytes) -> bytes:
        number = self._number.to_bytes(8, "little")
        self._number += 1
        return hmac.digest(self._key, number + contents, "sha256")[:SEAL_BYTES]
