"""Walks a whole journal and says everything that is wrong with it: for the command line, and as the tests' oracle.

Beyond what recovery looks at, it follows the meaning: sequence numbers without gaps from frame to frame and from
segment to segment, watermarks that never go back, and snapshots that repeat what the frames before them add up to.
It never raises for what it finds in the files, and changes nothing.
"""

from __future__ import annotations

import os

import msgspec

from persist.errors import DamagedJournal, PersistError
from persist.files import Directory
from persist.format import SEGMENT_HEADER, BadFrame, TornTail, Transaction, decode_transaction
from persist.reader import Segment, SegmentReader, survey
from persist.recovery import Fold, Outbox, Recovered, name


class SegmentReport(msgspec.Struct):
    """One segment; `frames` and `bytes` are those that are good, header and snapshot included."""

    file: str
    number: int
    first_position: int
    epoch: int
    frames: int = 0
    bytes: int = 0


class Report(msgspec.Struct):
    """`faults`: what reading refuses (DamagedJournal, NewerFormat, NotAJournal). `gaps`: sequence numbers, watermarks
    and snapshots that do not add up. A torn tail alone is not a fault."""

    directory: str
    segments: list[SegmentReport] = msgspec.field(default_factory=list)
    torn: TornTail | None = None
    faults: list[PersistError] = msgspec.field(default_factory=list)
    gaps: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.faults or self.gaps)

    @property
    def frames(self) -> int:
        return sum(segment.frames for segment in self.segments)

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)


def check(directory: str | os.PathLike[str]) -> Report:
    """Read-only; not for a journal that is being written to."""
    opened = Directory(directory, create=False)
    report = Report(opened.path)
    try:
        found = survey(opened, report.faults)
        report.torn = found.torn
        before: Recovered | None = None
        for segment in found.segments:
            before = _walk(opened, report, segment, before, last=segment.number == found.last)
    finally:
        opened.close()
    return report


def _walk(
    directory: Directory, report: Report, segment: Segment, before: Recovered | None, *, last: bool
) -> Recovered | None:
    """What the segment adds up to, None if that cannot be said."""
    found = SegmentReport(segment.path, segment.number, segment.first_position, segment.epoch, frames=1)
    report.segments.append(found)
    fold = Fold(segment.epoch, segment.snapshot)
    reader = SegmentReader(directory, segment, last=last)
    offset = SEGMENT_HEADER
    try:
        start = fold.result(Outbox({}))
        if before is not None:
            report.gaps += _differences(before, start, segment)
        for frame in reader:
            offset = segment.offset(frame.position)
            transaction = decode_transaction(frame.body)
            report.gaps += _breaks(fold, transaction, f"{segment.path} offset {offset}")
            fold.apply(transaction)
            found.frames += 1
        return fold.result(Outbox({}))
    except DamagedJournal as fault:
        report.faults.append(fault)
    except (msgspec.DecodeError, BadFrame) as error:
        report.faults.append(DamagedJournal(segment.path, offset, segment.size - offset, str(error)))
    finally:
        found.bytes = segment.offset(reader.end)
        report.torn = report.torn or reader.torn
    return None


def _differences(before: Recovered, after: Recovered, segment: Segment) -> list[str]:
    """A name that went away between two incarnations takes its numbers along; nothing else may change."""
    found = []
    for what, then, now in (
        ("assigned", before.assigned, after.assigned),
        ("watermark", before.watermarks, after.watermarks),
    ):
        for peer in sorted(then.keys() | now.keys()):
            gone = before.epoch != after.epoch and peer not in segment.snapshot.peers
            if then.get(peer, 0) != now.get(peer, 0) and not gone:
                found.append(f"{segment.path}: {what} of {peer} was {then.get(peer, 0)}, is {now.get(peer, 0)}")
    if before.epoch > after.epoch:
        found.append(f"{segment.path}: epoch {after.epoch} after {before.epoch}")
    if before.epoch == after.epoch and (before.states, before.tables) != (after.states, after.tables):
        found.append(f"{segment.path}: the snapshot's state is not that of the frames before it")
    if _ids(before) != _ids(after):
        found.append(f"{segment.path}: the snapshot's dead letters are not those of the frames before it")
    return found


def _ids(state: Recovered) -> list[tuple[str, int]]:
    return [(letter.peer, letter.seq) for letter in state.dead]


def _breaks(fold: Fold, transaction: Transaction, where: str) -> list[str]:
    peers = fold.snapshot.peers
    found = []
    for peer, watermark in transaction.consumed:
        if watermark < fold.watermarks.get(peer, 0):
            found.append(f"{where}: watermark of {name(peers, peer)} goes back to {watermark}")
    assigned = dict(fold.assigned)
    for send in transaction.sends:
        for peer, first in send.edges:
            if first != assigned.get(peer, 0) + 1:
                found.append(f"{where}: {name(peers, peer)} gets {first} after {assigned.get(peer, 0)}")
            assigned[peer] = first + send.count - 1
    known = {(letter.peer, letter.seq) for letter in fold.dead} if transaction.removed else set()
    for peer, seq in transaction.removed:
        if (peer, seq) not in known:
            found.append(f"{where}: removes a dead letter {name(peers, peer)}/{seq} that is not there")
    return found
