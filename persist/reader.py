"""Reads segments frame by frame and tells a torn tail from damage.

A torn tail is what a crash in the middle of an append leaves: a bad frame in the last segment with no good frame behind
it but such as say that they were written before what is bad was synced, or a last segment that does not even have its
snapshot. It was never acknowledged and is reported as TornTail.
Zeros up to the end of the last segment are space that was reserved and not used: no frame, and nothing to report.
Everything else that is not a good frame is damage and refused with DamagedJournal. Reading changes nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from zlib import crc32

import msgspec
from msgspec.structs import replace

from persist.errors import DamagedJournal, NewerFormat, NotAJournal, PersistError
from persist.files import CHUNK, Directory, File, is_zeros
from persist.format import (
    ALIGNMENT,
    FRAME_HEADER,
    FRAME_TYPES,
    MAGIC,
    MAX_BODY,
    MAX_LOOSE,
    READABLE,
    REPAIRING,
    SEGMENT_HEADER,
    SNAPSHOT,
    VERSION,
    BadFrame,
    Frame,
    Snapshot,
    TornTail,
    decode_frame,
    decode_segment_header,
    decode_snapshot,
    encode_segment_header,
    frame_size,
    seed,
    segment_number,
)
from persist.names import bare

SEARCH_EFFORT = 64  # how often over the bytes behind a bad frame may be checksummed in search of a good one

_LENGTH = struct.Struct("<4xI")


class Segment(msgspec.Struct, frozen=True):
    """A segment with a good header and a good snapshot. `size` is that of the file when it was looked at, or, of a
    closed one, up to where the next segment says that it ends."""

    name: str
    path: str
    number: int
    first_position: int
    size: int
    epoch: int
    snapshot: Snapshot
    body: int  # position behind the snapshot
    closed: bool = False

    @property
    def end(self) -> int:
        return self.first_position + self.size - SEGMENT_HEADER

    def offset(self, position: int) -> int:
        return position - self.first_position + SEGMENT_HEADER


class Survey(msgspec.Struct, frozen=True):
    """All segments, oldest first. `torn` is a last segment that was not even begun whole; it is not among them."""

    segments: tuple[Segment, ...]
    torn: TornTail | None
    last: int  # the number of the last segment that has a file: only that one may have a torn tail

    def pairs(self) -> Iterator[tuple[Segment, Segment | None]]:
        """Each with the one after it."""
        return zip(self.segments, (*self.segments[1:], None), strict=False)


def survey(directory: Directory, faults: list[PersistError] | None = None) -> Survey:
    """Look at the head of every segment. Given a list, put what is refused there, leave it out, and keep every snapshot
    whole; otherwise raise, and keep only the last one whole."""
    names = sorted((number, name) for name in directory.list() if (number := segment_number(name)) is not None)
    if names and names[-1][1] == REPAIRING:
        reason = "a repair of this journal was not finished; run `ringleader journal repair` again"
        unfinished = DamagedJournal(directory.locate(names.pop()[1]), 0, 0, reason)
        if faults is None:
            raise unfinished
        faults.append(unfinished)
    segments: list[Segment] = []
    torn = None
    previous: Segment | None = None
    expected = names[0][0] if names else 0
    for number, name in names:
        try:
            if number != expected:
                previous = None
                missing = DamagedJournal(directory.locate(name), 0, 0, f"segment {expected} is missing before it")
                if faults is None:
                    raise missing
                faults.append(missing)
            file = directory.open(name)
            try:
                found = _head(directory, file, name, number, previous, last=number == names[-1][0])
            finally:
                file.close()
        except PersistError as fault:
            if faults is None:
                raise
            faults.append(fault)
            previous = None
        else:
            if isinstance(found, TornTail):
                torn = found
                break
            if previous is not None:
                names_only = previous.snapshot if faults is not None else bare(previous.snapshot)
                size = previous.offset(found.first_position)
                segments[-1] = replace(previous, size=size, snapshot=names_only, closed=True)
            segments.append(found)
            previous = found
        expected = number + 1
    return Survey(tuple(segments), torn, names[-1][0] if names else 0)


def _head(
    directory: Directory, file: File, name: str, number: int, previous: Segment | None, *, last: bool
) -> Segment | TornTail:
    size = file.size()
    start = file.read(SEGMENT_HEADER, 0)
    header = decode_segment_header(start)
    known = previous is not None or number == 1  # what must stand there, and that older segments hold the state
    if header is None:
        places = _ends(directory, previous) if previous else {0}
        if known and any(_good_frame_behind(file, place, SEGMENT_HEADER, size, None) for place in places):
            raise DamagedJournal(file.path, 0, size, "the segment's header is bad, and good frames follow")
        headers = [encode_segment_header(number, place, version) for place in places for version in READABLE]
        if last and known and any(_is_beginning_of(header, start) for header in headers):
            return TornTail(file.path, 0, size, "the segment's header is cut short")
        if start[: len(MAGIC)] != MAGIC[: len(start)]:
            raise NotAJournal(file.path, f"it begins with {start[: len(MAGIC)]!r}")
        raise DamagedJournal(file.path, 0, size, "the segment's header is bad")
    if header.version > VERSION:
        raise NewerFormat(file.path, header.version, VERSION)
    if header.version not in READABLE or header.number != number:
        reason = f"the header says format {header.version}, segment {header.number}"
        raise DamagedJournal(file.path, 0, size, reason)
    first_position = header.first_position
    if previous is not None:
        _check_joins(directory, previous, first_position)
    elif known and first_position:
        raise DamagedJournal(file.path, 0, size, f"the first segment begins at position {first_position}")
    try:
        frame = next(frames(file, first_position, SEGMENT_HEADER, size), None)
        if frame is None:
            raise BadFrame("there is no frame")
    except BadFrame as bad:
        at_stake = size - SEGMENT_HEADER
        if last and known and not _good_frame_behind(file, first_position, SEGMENT_HEADER + 8, size, None):
            return TornTail(file.path, 0, size, f"the segment has no snapshot: {bad.reason}")
        raise DamagedJournal(file.path, SEGMENT_HEADER, at_stake, bad.reason) from None
    if frame.type != SNAPSHOT:
        reason = f"a frame of type {frame.type} where the snapshot should be"
        raise DamagedJournal(file.path, SEGMENT_HEADER, size - SEGMENT_HEADER, reason)
    try:
        snapshot = decode_snapshot(frame.body)
    except msgspec.DecodeError as error:
        reason = f"the snapshot cannot be decoded: {error}"
        raise DamagedJournal(file.path, SEGMENT_HEADER, size - SEGMENT_HEADER, reason) from None
    return Segment(name, file.path, number, first_position, size, frame.epoch, snapshot, frame.end)


def _ends(directory: Directory, segment: Segment) -> set[int]:
    """Positions at which the segment may end: with its file, or with its last good frame if reserved space follows."""
    reader = SegmentReader(directory, segment, last=True)
    try:
        for _ in reader:
            pass
    except DamagedJournal:
        return {segment.end}
    return {segment.end, reader.end}


def _check_joins(directory: Directory, previous: Segment, position: int) -> None:
    """DamagedJournal unless the previous segment ends where the next one begins. What it had reserved behind that, it
    may still have, and then it is zeros."""
    missing = position - previous.end
    if missing < 0:
        file = directory.open(previous.name)
        try:
            if is_zeros(file, previous.offset(position), previous.size):
                return
        finally:
            file.close()
    if missing:
        reason = f"the file ends at position {previous.end}, the next segment begins at {position}"
        raise DamagedJournal(previous.path, min(previous.size, previous.size + missing), abs(missing), reason)


def _is_beginning_of(whole: bytes, start: bytes) -> bool:
    """Whether `start` is `whole` up to some byte, and nothing or zeros from there on."""
    same = next((i for i, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b), len(start))
    return not any(start[same:])


class SegmentReader:
    """Iterates the good frames behind a segment's snapshot, or from `start` on. When it ends, `torn` says what was left
    out and `end` is the position behind the last good frame. Damage raises DamagedJournal in its place."""

    def __init__(self, directory: Directory, segment: Segment, *, last: bool, start: int | None = None) -> None:
        self.torn: TornTail | None = None
        self.end = segment.body if start is None else start
        self._directory = directory
        self._segment = segment
        self._last = last

    def __iter__(self) -> Iterator[Frame]:
        segment = self._segment
        file = self._directory.open(segment.name)
        try:
            for frame in frames(file, segment.first_position, segment.offset(self.end), segment.size):
                reason = ""
                if frame.epoch != segment.epoch:
                    reason = f"a frame of epoch {frame.epoch} in a segment of epoch {segment.epoch}"
                elif frame.type not in FRAME_TYPES or frame.type == SNAPSHOT:
                    reason = f"a frame of type {frame.type} behind the snapshot"
                if reason:
                    raise self._damage(reason)
                self.end = frame.end
                yield frame
        except BadFrame as bad:
            offset = segment.offset(self.end)
            if not segment.closed and is_zeros(file, offset, segment.size):
                return
            if not self._last:
                raise self._damage(bad.reason) from None
            if _good_frame_behind(file, segment.first_position, offset + 8, segment.size, segment.epoch, self.end):
                raise self._damage(f"{bad.reason}, and good frames follow") from None
            self.torn = TornTail(segment.path, offset, segment.size - offset, bad.reason)
        finally:
            file.close()

    def _damage(self, reason: str) -> DamagedJournal:
        offset = self._segment.offset(self.end)
        return DamagedJournal(self._segment.path, offset, self._segment.size - offset, reason)


def frames(file: File, first_position: int, offset: int, end: int) -> Iterator[Frame]:
    """The frames between two offsets of a segment, read in chunks. BadFrame where there is none."""
    while offset < end:
        data = memoryview(file.read(min(CHUNK, end - offset), offset))
        at = 0
        while True:
            rest = len(data) - at
            if rest < FRAME_HEADER or frame_size(_LENGTH.unpack_from(data, at)[0]) > rest:
                if offset + rest >= end:
                    break
                # The frame goes on behind this chunk: begin the next one with it, and make that large enough.
                wanted = frame_size(_LENGTH.unpack_from(data, at)[0]) if rest >= FRAME_HEADER else CHUNK
                more = file.read(min(max(CHUNK, wanted), end - offset), offset)
                if len(more) <= rest:
                    break
                data, at = memoryview(more), 0
                continue
            frame = decode_frame(data, at, first_position + offset - SEGMENT_HEADER)
            yield frame
            step = frame.end - frame.position
            offset += step
            at += step
        if offset < end:
            decode_frame(data, at, first_position + offset - SEGMENT_HEADER)  # raises: the frame does not fit
            raise BadFrame("the file shrank while it was read")


def _good_frame_behind(
    file: File, first_position: int, offset: int, end: int, epoch: int | None, bad: int | None = None
) -> bool:
    """Whether a good frame stands at any aligned offset from `offset` on; given where the bad one stands, one that was
    written when that was synced. Gives up with yes, which refuses, when the content makes the search too dear."""
    tail = b"\x00\x00\x00...." if epoch is None else b"..." + re.escape(struct.pack("<I", epoch))
    pattern = re.compile(b"(?=[\x01\x02]" + tail + b")", re.DOTALL)
    data = memoryview(file.read(end - offset, offset)) if offset < end else memoryview(b"")
    effort = SEARCH_EFFORT * len(data)
    for match in pattern.finditer(data):
        at = match.start() - 8
        if at < 0 or at % 8:
            continue
        length = _LENGTH.unpack_from(data, at)[0]
        if length > MAX_BODY or frame_size(length) > len(data) - at:
            continue
        position = first_position + offset + at - SEGMENT_HEADER
        loose = int.from_bytes(data[at + 9 : at + 12], "little")
        if bad is not None and (loose == MAX_LOOSE or position - loose * ALIGNMENT <= bad):
            continue
        effort -= length
        if effort < 0:
            return True
        checksum = int.from_bytes(data[at : at + 4], "little")
        if crc32(data[at + 4 : at + FRAME_HEADER + length], seed(position)) == checksum:
            return True
    return False
