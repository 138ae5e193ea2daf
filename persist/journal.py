"""A worker's journal: segmented, append-only, one writer.

Contract
- What `append` returned from survives the death of every process; what `sync` returned from survives power loss.
- `open` yields the state as of the last whole transaction. Before anything new is written, the torn tail is cut off and,
  at level "power", everything that was recovered is synced. Refused journals (damaged, newer, foreign, locked, with
  messages pending for names that are gone) are left exactly as they were.
- Every incarnation has an epoch above all earlier ones and begins a segment of its own.
- A segment is deleted only when every send in it is acknowledged, and only from the front.
- One thread uses it. In a forked child it refuses to work.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from persist.errors import DamagedJournal, JournalClosed, JournalPoisoned, SequenceBroken, UnknownName
from persist.files import Directory
from persist.format import (
    SEGMENT_HEADER,
    TRANSACTION,
    BadFrame,
    Send,
    Snapshot,
    Transaction,
    decode_sends,
    decode_transaction,
    segment_name,
)
from persist.lock import DirectoryLock
from persist.names import with_retired
from persist.reader import Segment, SegmentReader, Survey, TornTail, survey
from persist.recovery import Fold, Outbox, Recovered, Route, by_name
from persist.writer import Writer

SEGMENT_BYTES = 16 << 20
LEVELS = ("process", "power")
READ_ATTEMPTS = 20  # a live writer may delete a segment between the listing and the reading, but not for ever

MakeSnapshot = Callable[[Recovered | None, int], Snapshot]


@dataclass(frozen=True, slots=True)
class Closed:
    """A segment that is no longer written to. `highest`: last sequence number assigned by its end, per current peer,
    as far as it was not acknowledged when the journal was opened."""

    segment: Segment
    highest: dict[int, int]


def recover(directory: Directory, found: Survey) -> Recovered:
    """Read all there is. Everything is verified; only what recovery needs is decoded."""
    if not found.segments:
        return Recovered(torn=found.torn)
    base = found.segments[-1]
    outbox = Outbox(by_name(base.snapshot.peers, base.snapshot.acked))
    before: dict[str, int] = {}
    recovered = Recovered()
    for segment, after in zip(found.segments, (*found.segments[1:], None), strict=True):
        peers = segment.snapshot.peers
        before = by_name(peers, segment.snapshot.assigned)
        last = after is None and found.torn is None
        fold = Fold(segment.epoch, segment.snapshot) if after is None else None
        wanted = after and outbox.wants(before, by_name(after.snapshot.peers, after.snapshot.assigned))
        reader = SegmentReader(directory, segment, last=last)
        for frame in reader:
            try:
                if fold is not None:
                    transaction = decode_transaction(frame.body)
                    fold.apply(transaction)
                    outbox.see(frame.position, peers, transaction.sends)
                elif wanted:
                    outbox.see(frame.position, peers, decode_sends(frame.body))
            except (msgspec.DecodeError, BadFrame) as error:
                offset = segment.offset(frame.position)
                raise DamagedJournal(segment.path, offset, segment.size - offset, str(error)) from None
        if fold is not None:
            try:
                recovered = fold.result(outbox)
            except BadFrame as bad:
                raise DamagedJournal(segment.path, SEGMENT_HEADER, segment.size, bad.reason) from None
            recovered.position = reader.end
            recovered.torn = found.torn or reader.torn
    recovered.routes = {segment.number: tuple(segment.snapshot.routes) for segment in found.segments}
    return recovered


def read(directory: str | os.PathLike[str]) -> Recovered:
    """What the journal holds now. Takes no lock, changes nothing, and does not mind a live writer."""
    opened = Directory(directory, create=False)
    try:
        for attempt in range(READ_ATTEMPTS):
            try:
                return recover(opened, survey(opened))
            except FileNotFoundError:
                if attempt == READ_ATTEMPTS - 1:
                    raise
        raise AssertionError  # not reached
    finally:
        opened.close()
