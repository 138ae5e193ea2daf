"""Reads a journal forward, frame by frame, under the hands of its writer.

What can be relied on, whatever the writer does meanwhile:
- A segment is only appended to while it is the last one: once the next one is there, everything up to where that one
  begins is whole and stays as it is. So a bad frame is damage if a later segment says that more must be there, or if a
  good frame stands behind it; otherwise it is what is being written, or was when a process died.
- Segments go from the front only. So what comes behind a segment that is there was not trimmed; and a file that is open
  can be read to its end even when it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from persist.errors import DamagedJournal, NewerFormat, PersistError
from persist.files import Directory, File
from persist.format import (
    FRAME_HEADER,
    SEGMENT_HEADER,
    TRANSACTION,
    BadFrame,
    Frame,
    SegmentHeader,
    decode_segment_header,
    segment_name,
    segment_number,
)
from persist.history_errors import NoSuchPosition, PositionGone
from persist.names import bare
from persist.reader import Segment, SegmentReader, frames, survey

ATTEMPTS = 100  # segments may be trimmed between their listing and their opening, but not for ever


class Part(Directory):
    """Some segments of a directory, as if there were no others. Closing it is not needed."""

    def __init__(self, whole: Directory, names: Sequence[str]) -> None:
        self.path = whole.path
        self.descriptor = -1
        self._whole = whole
        self._names = list(names)

    def list(self) -> list[str]:
        return list(self._names)

    def open(self, name: str, *, writable: bool = False) -> File:
        return self._whole.open(name, writable=writable)


def head(directory: Directory, name: str) -> Segment | None:
    """One segment by itself, its snapshot whole; None for a first one that is only begun. Raises what survey does."""
    found = survey(Part(directory, [name]))
    return found.segments[0] if found.segments else None


class Cursor:
    """Where reading is. `begin` first; then `frames`, and when they end `advance`, and when that is False `settle`."""

    def __init__(self, directory: Directory, position: int) -> None:
        self.position = position
        self.segment: Segment
        self._directory = directory
        self._file: File | None = None
        self._next: tuple[Segment, File] | None = None
        self._reason = "the file ends"  # why there is no frame at `position`

    def close(self) -> None:
        """Idempotent."""
        for file in (self._file, self._next[1] if self._next else None):
            if file is not None:
                file.close()
        self._file = self._next = None

    def begin(self) -> bool:
        """Find the segment that has the position. False if the journal has none yet, or its first is just being made.
        PositionGone, NoSuchPosition, or what refuses the segment."""
        for _ in range(ATTEMPTS):
            if self._file is not None:
                return True
            try:
                numbers = self._numbers()
                if not numbers and self.position:
                    raise self._nowhere(0, "it ends at")
                return bool(numbers) and self._begin_in(numbers)
            except FileNotFoundError:
                continue
        raise PositionGone(self._directory.path, self.position, self._oldest())

    def newest(self) -> int:
        """The number of the last segment."""
        return max(self._numbers(), default=0)

    def frames(self) -> Iterator[Frame]:
        """The whole transactions that follow in this segment, as far as they are there at this moment."""
        file, segment = self._opened(), self.segment
        while True:
            before = self.position
            offset, end = segment.offset(before), self._end(file)
            if end - offset < FRAME_HEADER or not any(file.read(FRAME_HEADER, offset)):
                self._reason = "zeros where a frame should be" if end - offset >= FRAME_HEADER else "the file ends"
                return
            try:
                for frame in frames(file, segment.first_position, offset, end):
                    if frame.epoch != segment.epoch or frame.type != TRANSACTION:
                        found = f"a frame of type {frame.type} and epoch {frame.epoch}"
                        raise self._damage(f"{found} in a segment of epoch {segment.epoch}")
                    self.position = frame.end
                    yield frame
            except BadFrame as bad:
                self._reason = bad.reason
            if self.position == before:
                return

    def advance(self) -> bool:
        """Whether to go on with `frames`: for the rest of this segment, now that the next is there, or in the next."""
        if self._next is None:
            self._next = self._open_next()
            return self._next is not None
        following, file = self._next
        if self.position != following.first_position:
            raise self._damage(f"{self._reason}, and the next segment begins at position {following.first_position}")
        self._opened().close()
        self.segment, self._file, self._next = following, file, None
        self.position = following.body
        return True

    def settle(self) -> bool:
        """Look closely at what stands behind the last frame: DamagedJournal (or what refuses the next segment) if no
        crash explains it, PositionGone if it was trimmed. True if there is more to read after all."""
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):
                survey(self._directory)
            return False
        name, following = self.segment.name, segment_name(self.segment.number + 1)
        with contextlib.suppress(FileNotFoundError):
            for _ in verified_frames(self._directory, self.segment, self._file, self.position, last=True):
                return True
        later = [number for number in self._numbers() if number > self.segment.number]
        if not later:
            return False
        if self._exists(following):
            return self._settle_next(name, following)
        if self._exists(name):
            survey(Part(self._directory, [name, segment_name(min(later))]))  # raises: a segment is missing
        raise PositionGone(self._directory.path, self.position, self._oldest())

    def _settle_next(self, name: str, following: str) -> bool:
        try:
            return survey(Part(self._directory, [name, following])).torn is None
        except DamagedJournal:
            head(self._directory, following)  # raises, unless it has been written meanwhile
            return True
        except FileNotFoundError:
            return True  # `advance` tells

    def _begin_in(self, numbers: Sequence[int]) -> bool:
        chosen = numbers[0]
        if self.position:
            at_most = (n for n in reversed(numbers) if (h := self._header(n)) and h.first_position <= self.position)
            chosen = next(at_most, 0)
            if not chosen:
                head(self._directory, segment_name(numbers[0]))  # raises if it is not even known where that begins
                raise PositionGone(self._directory.path, self.position, self._oldest())
        last = chosen == numbers[-1]
        file = self._directory.open(segment_name(chosen))
        try:
            segment = head(self._directory, segment_name(chosen))
            if segment is None:
                if not last:
                    raise DamagedJournal(file.path, 0, file.size(), "the segment was begun, and others follow")
                file.close()
                return False
            if self.position > segment.first_position:
                self._check_place(segment, file, last)
        except BaseException:
            file.close()
            raise
        self.segment, self._file = replace(segment, snapshot=bare(segment.snapshot)), file
        self.position = max(self.position, segment.body)
        return True

    def _check_place(self, segment: Segment, file: File, last: bool) -> None:
        """NoSuchPosition unless a frame begins at the position, or the journal ends there."""
        if self.position < segment.body:
            raise self._nowhere(segment.first_position, "it lies inside of the snapshot at")
        if _is_good(file, segment, self.position):
            return
        nearest = segment.body
        for frame in verified_frames(self._directory, segment, file, segment.body, last=last):
            if frame.end > self.position:
                raise self._nowhere(frame.position, "it lies inside of the record at")
            nearest = frame.end
        if nearest != self.position:
            if not last:
                head(
                    self._directory, segment_name(segment.number + 1)
                )  # raises: its header did not say where it begins
            raise self._nowhere(nearest, "it ends at")

    def _open_next(self) -> tuple[Segment, File] | None:
        name = segment_name(self.segment.number + 1)
        try:
            file = self._directory.open(name)
        except FileNotFoundError:
            return None  # or it is gone: `settle` tells
        try:
            found = head(self._directory, name)
            assert found is not None  # that is only said of the first of all segments
            return replace(found, snapshot=bare(found.snapshot)), file
        except FileNotFoundError:
            file.close()
            raise PositionGone(self._directory.path, self.position, self._oldest()) from None
        except NewerFormat:
            file.close()
            raise
        except PersistError:
            file.close()
            if not self._exists(segment_name(self.segment.number + 2)):
                return None  # it may still be made
            if self._exists(self.segment.name):
                survey(Part(self._directory, [segment_name(self.segment.number + more) for more in range(3)]))
            raise

    def _opened(self) -> File:
        assert self._file is not None
        return self._file

    def _end(self, file: File) -> int:
        size = file.size()
        return min(size, self.segment.offset(self._next[0].first_position)) if self._next else size

    def _numbers(self) -> list[int]:
        return sorted(number for name in self._directory.list() if (number := segment_number(name)) is not None)

    def _header(self, number: int) -> SegmentHeader | None:
        with contextlib.closing(self._directory.open(segment_name(number))) as file:
            return decode_segment_header(file.read(SEGMENT_HEADER, 0))

    def _oldest(self) -> int:
        for number in self._numbers():
            with contextlib.suppress(FileNotFoundError):
                header = self._header(number)
                if header is not None:
                    return header.first_position
        return 0

    def _exists(self, name: str) -> bool:
        try:
            self._directory.open(name).close()
        except FileNotFoundError:
            return False
        return True

    def _damage(self, reason: str) -> DamagedJournal:
        file, offset = self._opened(), self.segment.offset(self.position)
        return DamagedJournal(file.path, offset, max(0, self._end(file) - offset), reason)

    def _nowhere(self, nearest: int, reason: str) -> NoSuchPosition:
        return NoSuchPosition(self._directory.path, self.position, nearest, reason)


def verified_frames(directory: Directory, segment: Segment, file: File, start: int, *, last: bool) -> Iterator[Frame]:
    """The frames of a segment from `start` on, under the hands of its writer; then DamagedJournal if what follows is
    neither the end nor a torn tail."""
    while True:
        present = segment if segment.closed else replace(segment, size=file.size())
        reader = SegmentReader(directory, present, last=last, start=start)
        try:
            yield from reader
            return
        except DamagedJournal:
            # The file was not read in one instant. Frames are written one after the other: whoever has seen a good
            # one behind finds this one good by now, unless it is bad.
            if not _is_good(file, segment, reader.end):
                raise
            start = reader.end


def _is_good(file: File, segment: Segment, position: int) -> bool:
    try:
        frame = next(frames(file, segment.first_position, segment.offset(position), file.size()), None)
    except BadFrame:
        return False
    return frame is not None and frame.epoch == segment.epoch and frame.type == TRANSACTION
