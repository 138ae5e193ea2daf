"""A simulated disk under the real journal: what a process writes, what survives its death, what survives power loss.

Contract
- A write that returned survives the death of its process. A process that dies in the middle of a write leaves a
  beginning of it.
- Power loss keeps of every file what was synced and any beginning of the rest, perhaps followed by zeros, and of the
  names that were made or removed since the directory was synced any part.
- Every call that changes anything is a step of the simulation, at which its process may die.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random
from typing import Protocol

from persist.errors import JournalLocked
from persist.files import Directory, File


class Steps(Protocol):
    """What the disk tells its surroundings."""

    def step(self, kind: str, torn: Callable[[], None] | None = None) -> None: ...
    def wrote(self, owner: str, name: str, data: bytes, end: int) -> None: ...
    def synced(self, owner: str, name: str) -> None: ...
    def unlinked(self, owner: str, name: str) -> None: ...


class Inode:
    """`data` is what processes see; `disk` what surely survives power loss."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.disk = b""

    def lose_power(self, random: Random) -> None:
        data, disk = bytes(self.data), self.disk
        if not data.startswith(disk):  # a truncation that may not have reached the disk
            data = random.choice([data, disk])
        else:
            kept = random.randint(len(disk), len(data))
            zeros = random.choice([0, 0, random.randint(0, len(data) - kept)])
            data = data[:kept] + bytes(zeros)
        self.data, self.disk = bytearray(data), data


class Store:
    """The files of one directory."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.files: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}  # names that surely survive power loss
        self.holder: object | None = None  # of the lock

    def lose_power(self, random: Random) -> None:
        names = dict(self.durable)
        for name in self.files.keys() ^ self.durable.keys():
            if random.random() < 0.5:
                if name in self.files:
                    names[name] = self.files[name]
                else:
                    del names[name]
        for inode in names.values():
            inode.lose_power(random)
        self.files, self.durable = names, dict(names)


class SimFile(File):
    def __init__(self, steps: Steps, store: Store, name: str) -> None:
        self.path = f"{store.owner}/{name}"
        self._steps, self._store, self._name, self._inode = steps, store, name, store.files[name]
        self._torn = 1

    def write(self, data: bytes | bytearray | memoryview) -> int:
        inode, whole = self._inode, bytes(data)
        self._steps.step("write")
        cut = 1 + (len(inode.data) * 7 + len(whole) * 3) % (len(whole) - 1)
        self._steps.step("torn write", lambda: inode.data.extend(whole[:cut]))
        inode.data += whole
        self._steps.wrote(self._store.owner, self._name, whole, len(inode.data))
        self._steps.step("written")
        return len(whole)

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self._inode.data[offset : offset + size])

    def size(self) -> int:
        return len(self._inode.data)

    def fdatasync(self) -> None:
        self._steps.step("fdatasync")
        self._inode.disk = bytes(self._inode.data)
        self._steps.synced(self._store.owner, self._name)
        self._steps.step("synced")

    def truncate(self, size: int) -> None:
        self._steps.step("truncate")
        del self._inode.data[size:]

    def close(self) -> None:
        pass


class SimDirectory(Directory):
    def __init__(self, steps: Steps, store: Store) -> None:
        self.path = f"/{store.owner}"
        self.descriptor = -1
        self._steps, self.store = steps, store

    def list(self) -> list[str]:
        return list(self.store.files)

    def create(self, name: str) -> File:
        self._steps.step("create")
        if name in self.store.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.store.files[name] = Inode()
        return SimFile(self._steps, self.store, name)

    def open(self, name: str, *, writable: bool = False) -> File:
        if name not in self.store.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return SimFile(self._steps, self.store, name)

    def unlink(self, name: str) -> None:
        self._steps.step("unlink")
        del self.store.files[name]
        self._steps.unlinked(self.store.owner, name)

    def sync(self) -> None:
        self._steps.step("sync names")
        self.store.durable = dict(self.store.files)

    def anchor(self) -> None:
        pass

    def close(self) -> None:
        pass


class SimLock:
    """The lock of a directory, held by a simulated process until it gives it up or dies."""

    def __init__(self, store: Store, process: object, alive: Callable[[object], bool]) -> None:
        if store.holder is not None and store.holder is not process and alive(store.holder):
            raise JournalLocked(store.owner, 0)
        self._store, self._process = store, process
        store.holder = process

    def release(self) -> None:
        if self._store.holder is self._process:
            self._store.holder = None
