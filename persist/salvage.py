"""What can still be read of a journal that is refused: segment by segment, before the damage and behind it.

Recovery stops at the first thing that is wrong; this goes on. It changes nothing and decides nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from msgspec.structs import replace

from persist.errors import DamagedJournal, NotAJournal, PersistError
from persist.files import Directory, File, is_zeros
from persist.format import (
    SEGMENT_HEADER,
    BadFrame,
    Frame,
    TornTail,
    decode_frame,
    decode_segment_header,
    segment_name,
    segment_number,
)
from persist.history import Record, apply, record_of, state_at_start
from persist.history_cursor import Part, head
from persist.reader import SEARCH_EFFORT, Segment, SegmentReader, survey
from persist.recovery import Recovered
from persist.setting_aside import MARKER


@dataclass(slots=True)
class Piece:
    """One segment. `fault` is the first thing wrong with it; `end` the position behind the last good record before
    that; `records` how many those are; `behind` how many good records stand behind the fault. Without a good head
    there is no state to begin with: `state` is None, and `tables` says how its records are read, if they can be."""

    number: int
    name: str
    segment: Segment | None
    fault: PersistError | None = None
    tables: Segment | None = None
    records: int = 0
    end: int = 0
    behind: int = 0
    state: Recovered | None = None
    numbers: dict[str, int] = field(default_factory=dict)  # assigned by the end of it, as far as that can be read
    watermarks: dict[str, int] = field(default_factory=dict)  # consumed by the end of it, likewise


def examine(directory: Directory) -> tuple[list[Piece], TornTail | None]:
    """Every segment, oldest first; one that is missing has a place, too. A torn tail is not a fault.

    Raises NewerFormat, and NotAJournal for a file that nothing shows to be a damaged segment: they are left alone.
    """
    found = sorted((n, name) for name in directory.list() if name != MARKER and (n := segment_number(name)) is not None)
    pieces: list[Piece] = []
    for number, name in found:
        if pieces and number != (absent := pieces[-1].number + 1):
            missing = DamagedJournal(directory.locate(segment_name(absent)), 0, 0, f"segment {absent} is missing")
            pieces.append(Piece(absent, segment_name(absent), None, missing))
        try:
            pieces.append(Piece(number, name, head(directory, name)))
        except (DamagedJournal, NotAJournal) as fault:
            pieces.append(Piece(number, name, None, fault))
        if number == 1 and pieces[0].segment is None and pieces[0].fault is None:
            pieces[0].fault = DamagedJournal(directory.locate(name), 0, 0, "the segment was only begun")
    torn = _torn_head(directory, pieces)
    if torn is not None:
        pieces.pop()
    for index, piece in enumerate(pieces):
        after = pieces[index + 1] if index + 1 < len(pieces) else None
        if piece.segment is None:
            piece.tables = _guessed(directory, piece, pieces[index - 1] if index else None, after)
        torn = _read(directory, piece, after, last=after is None and torn is None) or torn
    for piece in pieces:
        if isinstance(piece.fault, NotAJournal) and not piece.behind:
            raise piece.fault
    return pieces, torn


def before(directory: Directory, piece: Piece) -> Iterator[Record]:
    """The good records before the fault."""
    if piece.segment is None:
        return
    segment = replace(piece.segment, size=piece.segment.offset(piece.end), closed=True)
    for frame in SegmentReader(directory, segment, last=False):
        yield record_of(frame, segment)


def behind(directory: Directory, piece: Piece) -> Iterator[Record]:
    """The good records behind the fault, in order. They may be fewer than there are if payloads look like frames."""
    tables = piece.tables or piece.segment
    if piece.fault is None or tables is None:
        return
    with closing(directory.open(piece.name)) as file:
        start = tables.offset(max(piece.end, tables.first_position)) + (8 if piece.segment is not None else 0)
        for frame in _search(file, tables, start):
            try:
                yield record_of(frame, tables)
            except DamagedJournal:
                continue


def _torn_head(directory: Directory, pieces: list[Piece]) -> TornTail | None:
    """Of a last segment that was only begun: no crash leaves any other without a head."""
    if not pieces or pieces[-1].segment is not None:
        return None
    if len(pieces) > 1 and pieces[-2].segment is None:
        return None
    try:
        return survey(Part(directory, [piece.name for piece in pieces[-2:]])).torn
    except PersistError as fault:
        pieces[-1].fault = fault
        return None


def _guessed(directory: Directory, piece: Piece, previous: Piece | None, after: Piece | None) -> Segment | None:
    """How to read the records of a segment without a head: where it begins is known from its header or its neighbours,
    and within an incarnation the next segment has the same names."""
    if after is None or after.segment is None:
        return None
    try:
        with closing(directory.open(piece.name)) as file:
            size, header = file.size(), decode_segment_header(file.read(SEGMENT_HEADER, 0))
    except FileNotFoundError:
        return None
    if header is not None:
        first_position = header.first_position
    elif previous is not None and previous.segment is not None:
        first_position = previous.end
    else:
        first_position = after.segment.first_position - (size - SEGMENT_HEADER)
    path = directory.locate(piece.name)
    return replace(
        after.segment,
        name=piece.name,
        path=path,
        number=piece.number,
        first_position=first_position,
        size=size,
        body=first_position,
    )


def _read(directory: Directory, piece: Piece, after: Piece | None, *, last: bool) -> TornTail | None:
    """Fill in the piece from its records."""
    torn, segment = None, piece.segment
    if segment is not None:
        following = after.segment if after is not None else None
        piece.state, piece.end = state_at_start(segment), segment.body
        if following is not None:
            segment = replace(segment, size=min(segment.size, segment.offset(following.first_position)), closed=True)
        reader = SegmentReader(directory, segment, last=last)
        try:
            for frame in reader:
                apply(piece.state, record_of(frame, segment))
                piece.records += 1
                piece.end = frame.end
            torn = reader.torn
        except DamagedJournal as fault:
            piece.fault = fault
        if piece.fault is None and following is not None:
            piece.fault = _misfit(directory, piece, following)
        piece.state.position = piece.end
        piece.numbers, piece.watermarks = dict(piece.state.assigned), dict(piece.state.watermarks)
    if piece.fault is not None:
        for record in behind(directory, piece):
            piece.behind += 1
            piece.watermarks |= record.consumed
            for run in record.sends:
                piece.numbers |= {peer: first + run.count - 1 for peer, first in run.edges.items()}
    return torn


def _misfit(directory: Directory, piece: Piece, following: Segment) -> DamagedJournal | None:
    """What is wrong with where the segment ends, if all of its frames are good."""
    segment = piece.segment
    assert segment is not None
    offset, reason = segment.offset(piece.end), f"the next segment begins at position {following.first_position}"
    if piece.end != following.first_position:
        return DamagedJournal(segment.path, offset, max(0, segment.size - offset), f"the file ends, and {reason}")
    with closing(directory.open(segment.name)) as file:
        if not is_zeros(file, offset, segment.size):
            return DamagedJournal(segment.path, offset, segment.size - offset, f"the file goes on, but {reason}")
    return None


def _search(file: File, segment: Segment, start: int) -> Iterator[Frame]:
    """Good transactions at any aligned offset from `start` on. Gives up when payloads make the search too dear."""
    data = memoryview(file.read(max(0, file.size() - start), start))
    pattern = re.compile(rb"\x02..." + re.escape(struct.pack("<I", segment.epoch)), re.DOTALL)
    effort, at = SEARCH_EFFORT * len(data), 0
    while (match := pattern.search(data, at + 8)) is not None:
        found = match.start() - 8
        if found % 8:
            at = found + 1
            continue
        at = found + 8
        try:
            frame = decode_frame(data, found, segment.first_position + start - SEGMENT_HEADER + found)
        except BadFrame:
            length = int.from_bytes(data[found + 4 : found + 8], "little")
            effort -= length if length < len(data) - found else 0
            if effort < 0:
                return
            continue
        yield frame
        at = found + frame.end - frame.position
