"""Storages to open again and again, a reference model of what they must hold, and disks that fill up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from persist.files import Directory, File
from persist.ilm.backend import Backend, Change, PeerState, Run
from persist.ilm.backend_journal import JournalBackend
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.backend_sqlite import SQLiteBackend
from persist.ilm.message import PeerId

KINDS = ("memory", "journal-process", "journal-power", "sqlite-process", "sqlite-power")
LASTING = KINDS[1:]


def opener(kind: str, place: Path) -> Callable[[], Backend]:
    """Makes backends, none of them recovered, that have one storage: what one leaves, the next one finds."""
    name, _, durability = kind.partition("-")
    if name == "memory":
        backend = MemoryBackend()
        return lambda: backend
    if name == "journal":
        return lambda: JournalBackend(place / "journal", durability, segment_bytes=1 << 14)
    return lambda: SQLiteBackend(place / "ilm.db", durability)


@dataclass
class Box:
    assigned: int = 0
    acked: int = 0
    watermark: int = 0
    runs: list[tuple[int, int, bytes]] = field(default_factory=list)  # first, count, body

    def pending(self, after: int) -> list[tuple[int, int, bytes]]:
        return [run for run in self.runs if run[0] + run[1] - 1 > after]


@dataclass
class Model:
    """What a backend must hold."""

    boxes: dict[PeerId, Box] = field(default_factory=dict)
    values: dict[str, bytes] = field(default_factory=dict)

    def commit(self, change: Change) -> None:
        for peer, run in change.sends:
            box = self.boxes.setdefault(peer, Box())
            box.runs.append((run.first, run.count, run.body))
            box.assigned = run.last
        for peer, watermark in change.consumed:
            self.boxes.setdefault(peer, Box()).watermark = watermark
        for key, value in change.values:
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value

    def send(self, peer: PeerId, count: int, body: bytes) -> tuple[PeerId, Run]:
        """The next run to a peer. Not committed."""
        box = self.boxes.get(peer, Box())
        return peer, Run(box.assigned + 1, count, body)

    def check(self, backend: Backend, found: Iterable[tuple[PeerId, PeerState]] | None, keys: Iterable[str]) -> None:
        """The backend holds this. `found`: what it recovered, if it was just opened."""
        boxes = {peer: box for peer, box in self.boxes.items() if box.assigned or box.watermark}
        if found is not None:
            states = {peer: state for peer, state in found if state.assigned or state.watermark}
            assert states.keys() == boxes.keys()
            for peer, box in boxes.items():
                state = states[peer]
                assert (state.assigned, state.watermark) == (box.assigned, box.watermark)
                assert state.acked <= box.acked
                assert (state.from_position is None) == (state.acked == state.assigned)
                if state.from_position is not None:
                    loaded = plain(backend.runs(peer, box.acked, state.from_position))
                    assert loaded == box.pending(box.acked)
        for peer, box in boxes.items():
            assert plain(backend.runs(peer, box.acked, 0)) == box.pending(box.acked)
        for key in {*self.values, *keys}:
            assert backend.get(key) == self.values.get(key)


def plain(runs: Iterable[Run]) -> list[tuple[int, int, bytes]]:
    return [(run.first, run.count, run.body) for run in runs]


def act(model: Model, number: int) -> Change | PeerId:
    """The `number`th of a series of changes, each the same whenever it is made; or a peer that is to be forgotten.
    Acknowledgements are made along the way in the model."""
    random = Random(number)
    peers: list[PeerId] = ["bob", 5, "5", 7]
    if number % 23 == 0:
        return random.choice(peers)
    for peer, box in model.boxes.items():
        if random.random() < 0.4 and box.assigned - box.acked > 3:
            box.acked += random.randrange(box.assigned - box.acked)
        model.boxes[peer] = box
    sends = [
        model.send(peer, random.randrange(1, 5), random.randbytes(random.randrange(300)))
        for peer in peers
        if random.random() < 0.5
    ]
    consumed = [
        (peer, model.boxes.get(peer, Box()).watermark + random.randrange(1, 9))
        for peer in peers
        if random.random() < 0.3
    ]
    values = [
        (f"user/{key}", random.randbytes(20) if random.random() < 0.7 else None)
        for key in range(4)
        if random.random() < 0.3
    ]
    return Change(sends, consumed, [*values, ("user/number", b"%d" % number)])


SERIES_KEYS = [f"user/{key}" for key in range(4)]


def perform(model: Model, number: int, backend: Backend | None = None) -> None:
    """Do the `number`th act of the series in the model, and first in the backend if there is one."""
    made = act(model, number)
    if backend is not None:
        for peer, box in model.boxes.items():
            backend.acknowledged(peer, box.acked)
    if isinstance(made, Change):
        if backend is not None:
            backend.commit(made)
        model.commit(made)
    else:
        if backend is not None:
            backend.forget(made)
        model.boxes.pop(made, None)


class Disk:
    """The disk under a journal: how much room it has for files, and how long the syncs of `Backend.sync` take."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.syncs = 0
        self.sync_error: OSError | None = None
        self.syncing = threading.Event()  # a sync has begun
        self.may_sync = threading.Event()
        self.may_sync.set()

    def __call__(self, path: str) -> Directory:
        return _Directory(path, self)

    def sync(self) -> None:
        if threading.current_thread() is threading.main_thread():
            return  # not that of `Backend.sync`
        self.syncs += 1
        self.syncing.set()
        self.may_sync.wait(30)
        if self.sync_error is not None:
            raise self.sync_error


class _Directory(Directory):
    def __init__(self, path: str, disk: Disk) -> None:
        super().__init__(path)
        self.disk = disk

    def create(self, name: str) -> File:
        return _File(super().create(name), self)

    def open(self, name: str, *, writable: bool = False) -> File:
        return _File(super().open(name, writable=writable), self)


class _File(File):
    def __init__(self, file: File, directory: _Directory) -> None:
        super().__init__(file._descriptor, file.path)
        self.directory = directory

    def allocate(self, offset: int, size: int) -> None:
        capacity = self.directory.disk.capacity
        if capacity is not None:
            used = sum(os.stat(name, dir_fd=self.directory.descriptor).st_size for name in self.directory.list())
            if used + size > capacity:
                raise OSError(errno.ENOSPC, "the disk is full")
        super().allocate(offset, size)

    def fdatasync(self) -> None:
        self.directory.disk.sync()
        super().fdatasync()
