"""A backend in memory, for tests and for those who need order and exactly-once, but not across a restart.

Contract: that of `Backend` at durability "memory". What was committed lives as long as the object, and is found again
by the next `recover` after a `close`: this is how a restart is acted within one process.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

from persist.errors import SequenceBroken
from persist.ilm.backend import Change, PeerState, Run
from persist.ilm.errors import BackendFailed, BackendInUse, StorageFull
from persist.ilm.message import PeerId

BATCH = 64  # runs taken at a time by `runs`
DROP = 256  # acknowledged runs are given up this many at a time, so that it costs little for each

_last = attrgetter("last")
_position = attrgetter("position")


class _Box:
    """One peer: its numbers, and the runs that it has not acknowledged (but for some that wait to be given up)."""

    __slots__ = ("acked", "assigned", "runs", "watermark")

    def __init__(self) -> None:
        self.assigned = 0
        self.acked = 0
        self.watermark = 0
        self.runs: list[Run] = []

    def find(self, after: int, from_position: int) -> int:
        """Index of the first run that ends above `after` and does not lie before `from_position`."""
        runs = self.runs
        return max(bisect_right(runs, after, key=_last), bisect_left(runs, from_position, key=_position))


class MemoryBackend:
    """`limit`: bytes of messages that the outboxes hold together; what would be over it is StorageFull."""

    durability = "memory"

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._open = False
        self._position = 0
        self._bytes = 0  # of the bodies in all boxes; counted only if there is a limit
        self._boxes: dict[PeerId, _Box] = {}
        self._values: dict[str, bytes] = {}

    def recover(self) -> Mapping[PeerId, PeerState]:
        if self._open:
            raise BackendInUse("this MemoryBackend")
        self._open = True
        found = {}
        for peer, box in self._boxes.items():
            index = box.find(box.acked, 0)
            begin = box.runs[index].position if index < len(box.runs) else None
            found[peer] = PeerState(box.assigned, box.acked, box.watermark, begin)
        self._bytes = sum(len(run.body) for box in self._boxes.values() for run in box.runs)
        return found

    def commit(self, change: Change) -> int:
        if not self._open:
            raise self._closed()
        sends, consumed, values = change
        position = self._position + 1
        boxes = self._boxes
        if sends:
            self._admit(sends)
            for peer, run in sends:
                box = boxes[peer]
                box.runs.append(Run(run.first, run.count, bytes(run.body), position))
                box.assigned = run.first + run.count - 1
        for peer, watermark in consumed:
            (boxes.get(peer) or self._box(peer)).watermark = watermark
        for key, value in values:
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = bytes(value)
        self._position = position
        return position

    def _admit(self, sends: Sequence[tuple[PeerId, Run]]) -> None:
        """Everything that can be refused is refused here, before anything is changed."""
        boxes = self._boxes
        if len(sends) == 1 and self.limit is None:
            ((peer, run),) = sends
            box = boxes.get(peer) or self._box(peer)
            if run.first == box.assigned + 1 and run.count > 0:
                return
        ends: dict[PeerId, int] = {}
        size = 0
        for peer, run in sends:
            expected = (ends[peer] if peer in ends else boxes[peer].assigned if peer in boxes else 0) + 1
            if run.first != expected or run.count < 1:
                raise SequenceBroken(str(peer), expected, run.first)
            ends[peer] = run.last
            size += len(run.body)
        if self.limit is not None:
            if self._bytes + size > self.limit:
                raise StorageFull(f"{size} bytes in outboxes that hold {self._bytes} of {self.limit}")
            self._bytes += size
        for peer in ends:
            if peer not in boxes:
                self._box(peer)

    def _box(self, peer: PeerId) -> _Box:
        box = self._boxes[peer] = _Box()
        return box

    async def sync(self) -> None:
        if not self._open:
            raise self._closed()

    def runs(self, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        if not self._open:
            raise self._closed()
        return self._load(peer, after, from_position)

    def _load(self, peer: PeerId, after: int, from_position: int) -> Iterator[Run]:
        box = self._boxes.get(peer)
        while box is not None and box is self._boxes.get(peer):  # not forgotten meanwhile
            index = box.find(after, from_position)
            batch = box.runs[index : index + BATCH]
            if not batch:
                return
            yield from batch
            after = batch[-1].last
            if not self._open:
                raise self._closed()

    def acknowledged(self, peer: PeerId, through: int) -> None:
        box = self._boxes.get(peer)
        if box is None or through <= box.acked:
            return
        box.acked = min(through, box.assigned)
        runs = box.runs
        if box.acked == box.assigned:
            gone = len(runs)
        elif (len(runs) > DROP and runs[DROP - 1].last <= box.acked) or self.limit is not None:
            gone = bisect_right(runs, box.acked, key=_last)
        else:
            return
        if self.limit is not None:
            self._bytes -= sum(len(run.body) for run in runs[:gone])
        del runs[:gone]

    def forget(self, peer: PeerId) -> None:
        if not self._open:
            raise self._closed()
        box = self._boxes.pop(peer, None)
        if box is not None and self.limit is not None:
            self._bytes -= sum(len(run.body) for run in box.runs)

    def get(self, key: str) -> bytes | None:
        if not self._open:
            raise self._closed()
        return self._values.get(key)

    def close(self) -> None:
        self._open = False

    @staticmethod
    def _closed() -> BackendFailed:
        return BackendFailed("this MemoryBackend is not open: recover comes first, close last")
