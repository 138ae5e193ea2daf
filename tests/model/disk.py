"""A simulated disk under the real journal: what a process writes, what survives its death, what survives power loss.

Contract
- A write that returned survives the death of its process. A process that dies in the middle of a write leaves a
  beginning of it.
- Power loss leaves of what was not synced any part: see tests.persist.power_loss.
- Every call that changes anything is a step of the simulation, at which its process may die; but for reserving space,
  which nobody can tell from not having reserved it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from persist.errors import JournalLocked
from persist.files import File
from persist.spare import NAME as SPARE
from tests.persist.power_loss import Disk, Node, PowerDirectory, PowerFile, Write, some_loss


class Steps(Protocol):
    """What the disk tells its surroundings."""

    def step(self, kind: str, torn: Callable[[], None] | None = None) -> None: ...
    def wrote(self, owner: str, name: str, data: bytes, end: int) -> None: ...
    def synced(self, owner: str, name: str) -> None: ...
    def unlinked(self, owner: str, name: str) -> None: ...


class Store:
    """The files of one directory."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.disk = Disk()
        self.holder: object | None = None  # of the lock

    @property
    def files(self) -> dict[str, Node]:
        return self.disk.names

    def name(self, node: Node) -> str:
        return next((name for name, one in self.files.items() if one is node), "")

    def lose_power(self, random: Random) -> None:
        self.disk = some_loss(self.disk, random)


class SimFile(PowerFile):
    def __init__(self, steps: Steps, store: Store, node: Node, path: str) -> None:
        super().__init__(store.disk, node, path)
        self._steps, self._store = steps, store

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        whole = bytes(data)
        self._steps.step("write")
        cut = 1 + (offset * 7 + len(whole) * 3) % (len(whole) - 1)
        self._steps.step("torn write", lambda: self._torn(whole, cut, offset))
        super().write(whole, offset)
        self._wrote(whole, offset)
        self._steps.step("written")
        return len(whole)

    def _torn(self, whole: bytes, cut: int, offset: int) -> None:
        self._node.apply(Write(self._node, offset, whole[:cut]))
        if not any(whole[cut:]):  # what is missing was there: reserved space is zeros
            self._wrote(whole, offset)

    def _wrote(self, whole: bytes, offset: int) -> None:
        if any(whole):  # the spare is wiped with zeros
            self._steps.wrote(self._store.owner, self._store.name(self._node), whole, offset + len(whole))

    def fdatasync(self) -> None:
        self._steps.step("fdatasync")
        super().fdatasync()
        self._steps.synced(self._store.owner, self._store.name(self._node))
        self._steps.step("synced")

    def truncate(self, size: int) -> None:
        self._steps.step("truncate")
        super().truncate(size)


class SimDirectory(PowerDirectory):
    def __init__(self, steps: Steps, store: Store) -> None:
        super().__init__(store.disk, f"/{store.owner}")
        self._steps, self._store = steps, store

    def create(self, name: str) -> File:
        self._steps.step("create")
        super().create(name)
        return self.open(name)

    def open(self, name: str, *, writable: bool = False) -> File:
        return SimFile(self._steps, self._store, self._node(name), self.locate(name))

    def rename(self, old: str, new: str) -> None:
        self._steps.step("rename")
        super().rename(old, new)

    def unlink(self, name: str) -> None:
        self._steps.step("unlink")
        super().unlink(name)
        if name != SPARE:
            self._steps.unlinked(self._store.owner, name)

    def sync(self) -> None:
        self._steps.step("sync names")
        super().sync()


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
