"""A disk in memory that keeps apart what is synced and what is not, and says what a power loss may leave of it.

Contract
- What a process sees is what it has written. When it dies, all of that stays; of the call under way, any beginning.
- `File.fdatasync` makes the content and size of a file durable, not its name; `Directory.sync` makes the names durable,
  not the contents.
- Power loss keeps what is durable, and of everything else any part: a write whole, cut at any byte, or only some of its
  sectors or pages; later writes without earlier ones; sizes without contents; truncations or not; names made, changed
  or removed, or not. What was reserved and not written is zeros, or, on request, what an earlier use of the disk left.
- A rename is done or not done. An operation on a name needs those before it on the same name: nothing is created where
  something still is.
- Before every operation that changes anything, and at the end, `watch` is called: that is where the power may fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import eq, gt, ne
from random import Random

from persist.files import Directory, File

SECTOR = 512
PAGE = 4096

Ranges = list[tuple[int, int]]


class Node:
    """A file, whatever its names are. `disk` is durable, with `known` saying which of its bytes were ever written;
    `pending` are the operations since, oldest first; `data` is what processes see."""

    def __init__(self, disk: bytes = b"", known: bytes | None = None) -> None:
        self.disk = disk
        self.known = b"\x01" * len(disk) if known is None else known
        self.pending: list[FileOperation] = []
        self.data = bytearray(disk)
        self.mask = bytearray(self.known)

    def apply(self, operation: FileOperation) -> None:
        operation.apply(self.data, self.mask)
        self.pending.append(operation)

    def sync(self) -> None:
        self.disk, self.known, self.pending = bytes(self.data), bytes(self.mask), []


_order = count()


@dataclass
class FileOperation:
    node: Node
    order: int = field(default_factory=_order.__next__, kw_only=True)

    def apply(self, data: bytearray, known: bytearray, part: Ranges | None = None, sized: bool = True) -> None:
        """Do the whole of it, or those byte ranges of a write; `sized`: the file grows even for what does not."""
        raise NotImplementedError


@dataclass
class Write(FileOperation):
    offset: int
    content: bytes

    def apply(self, data: bytearray, known: bytearray, part: Ranges | None = None, sized: bool = True) -> None:
        ranges = [(0, len(self.content))] if part is None else part
        end = self.offset + (len(self.content) if sized else max((end for _, end in ranges), default=-self.offset))
        _grow(data, known, end)
        for start, stop in ranges:
            data[self.offset + start : self.offset + stop] = self.content[start:stop]
            known[self.offset + start : self.offset + stop] = b"\x01" * (stop - start)

    def blocks(self, size: int) -> Ranges:
        """Its parts in the blocks of the file."""
        edges = range(self.offset - self.offset % size, self.offset + len(self.content), size)
        return [(max(0, at - self.offset), min(len(self.content), at + size - self.offset)) for at in edges]


@dataclass
class Allocate(FileOperation):
    size: int

    def apply(self, data: bytearray, known: bytearray, part: Ranges | None = None, sized: bool = True) -> None:
        if part is None:
            _grow(data, known, self.size)


@dataclass
class Truncate(FileOperation):
    size: int

    def apply(self, data: bytearray, known: bytearray, part: Ranges | None = None, sized: bool = True) -> None:
        if part is None:
            del data[self.size :], known[self.size :]
            _grow(data, known, self.size)


def _grow(data: bytearray, known: bytearray, size: int) -> None:
    if size > len(data):
        known += bytes(size - len(data))
        data += bytes(size - len(data))


@dataclass
class NameOperation:
    """`new` names `node` from now on, if it is not empty; `old` names nothing any more, if it is not empty."""

    node: Node
    old: str
    new: str

    def apply(self, names: dict[str, Node]) -> None:
        if self.old and names.get(self.old) is self.node:
            del names[self.old]
        if self.new:
            names[self.new] = self.node

    @property
    def names(self) -> set[str]:
        return {self.old, self.new} - {""}


@dataclass
class Sync:
    """The one operation that changes nothing for processes."""


Operation = FileOperation | NameOperation | Sync
Choice = Callable[[FileOperation], tuple[Ranges | None, bool] | None]  # part and `sized`, or None: not done


class Disk:
    """One directory."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}
        self.pending: list[NameOperation] = []
        self.watch: Callable[[Operation], None] = lambda operation: None
        self.dead = False  # whoever still uses it is a process that does not exist any more

    @classmethod
    def holding(cls, files: dict[str, bytes], known: dict[str, bytes] | None = None) -> Disk:
        """All of it durable."""
        made = cls()
        made.names = {name: Node(data, known[name] if known else None) for name, data in files.items()}
        made.durable = dict(made.names)
        return made

    def directory(self, path: str) -> Directory:
        return PowerDirectory(self, path)

    def do(self, operation: Operation, node: Node | None = None) -> None:
        if self.dead:
            raise OSError(errno.EIO, "the power is off")
        self.watch(operation)
        if isinstance(operation, FileOperation):
            operation.node.apply(operation)
        elif isinstance(operation, NameOperation):
            operation.apply(self.names)
            self.pending.append(operation)
        elif node is not None:
            node.sync()
        else:
            self.durable, self.pending = dict(self.names), []

    def contents(self) -> dict[str, bytes]:
        return {name: bytes(node.data) for name, node in self.names.items()}

    def after_death(self, operation: Operation, part: Ranges | None) -> Disk:
        """All processes have died in the middle of `operation`, of which `part` was done, or all with None."""
        names = dict(self.names)
        if isinstance(operation, NameOperation) and part is None:
            operation.apply(names)
        files: dict[str, bytes] = {}
        known: dict[str, bytes] = {}
        for name, node in names.items():
            data, mask = bytearray(node.data), bytearray(node.mask)
            if isinstance(operation, FileOperation) and operation.node is node:
                operation.apply(data, mask, part, sized=False)
            files[name], known[name] = bytes(data), bytes(mask)
        return Disk.holding(files, known)

    def unsynced(self, under_way: Operation) -> tuple[list[FileOperation], list[NameOperation]]:
        """In the order of time."""
        nodes = {id(node): node for node in (*self.names.values(), *self.durable.values())}
        nodes |= {id(operation.node): operation.node for operation in self.pending}
        found = [operation for node in nodes.values() for operation in node.pending]
        if isinstance(under_way, FileOperation):
            found.append(under_way)
        renamed = [*self.pending, under_way] if isinstance(under_way, NameOperation) else self.pending
        return sorted(found, key=lambda operation: operation.order), list(renamed)

    def after_power_loss(
        self,
        files: list[FileOperation],
        choose: Choice,
        renamed: list[NameOperation],
        left_behind: Callable[[int], bytes] | None = None,
    ) -> Disk:
        """What is there when the power is back: of `files` what is chosen, of the names `renamed`. `left_behind`: what
        was on the disk, at the first bytes of every file, before there were these files."""
        names = dict(self.durable)
        for operation in renamed:
            operation.apply(names)
        contents: dict[str, bytes] = {}
        masks: dict[str, bytes] = {}
        for name, node in names.items():
            data, known = bytearray(node.disk), bytearray(node.known)
            for one in files:
                if one.node is node and (chosen := choose(one)) is not None:
                    one.apply(data, known, *chosen)
            if left_behind is not None:
                old = left_behind(len(data))
                data = bytearray(new if is_known else was for new, was, is_known in zip(data, old, known, strict=True))
            contents[name], masks[name] = bytes(data), bytes(known)
        return Disk.holding(contents, masks)


class PowerFile(File):
    def __init__(self, disk: Disk, node: Node, path: str) -> None:
        self.path = path
        self._disk, self._node = disk, node

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        self._disk.do(Write(self._node, offset, bytes(data)))
        return len(data)

    def allocate(self, offset: int, size: int) -> None:
        self._disk.do(Allocate(self._node, offset + size))

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self._node.data[offset : offset + size])

    def size(self) -> int:
        return len(self._node.data)

    def fdatasync(self) -> None:
        self._disk.do(Sync(), self._node)

    def truncate(self, size: int) -> None:
        self._disk.do(Truncate(self._node, size))

    def close(self) -> None:
        pass


class PowerDirectory(Directory):
    def __init__(self, disk: Disk, path: str) -> None:
        self.path = path
        self.descriptor = -1
        self._disk = disk

    def list(self) -> list[str]:
        return list(self._disk.names)

    def create(self, name: str) -> File:
        if name in self._disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        node = Node()
        self._disk.do(NameOperation(node, "", name))
        return PowerFile(self._disk, node, self.locate(name))

    def open(self, name: str, *, writable: bool = False) -> File:
        return PowerFile(self._disk, self._node(name), self.locate(name))

    def rename(self, old: str, new: str) -> None:
        self._disk.do(NameOperation(self._node(old), old, new))

    def unlink(self, name: str) -> None:
        self._disk.do(NameOperation(self._node(name), name, ""))

    def sync(self) -> None:
        self._disk.do(Sync())

    def anchor(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _node(self, name: str) -> Node:
        if name not in self._disk.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._disk.names[name]


def possible(renamed: list[NameOperation], wanted: Callable[[int], bool]) -> list[NameOperation]:
    """Those that are wanted, but for those which need one before them that is not."""
    missing: set[str] = set()
    found = []
    for index, operation in enumerate(renamed):
        if wanted(index) and not operation.names & missing:
            found.append(operation)
        else:
            missing |= operation.names
    return found


# --------------------------------------------------------------------------------------------------- what may be left


def deaths(disk: Disk, operation: Operation, random: Random, most: int) -> Iterator[tuple[str, Disk]]:
    """What processes that die in the middle of `operation` leave: it was not begun, done in part, or done."""
    yield "not begun", disk.after_death(operation, [])
    if isinstance(operation, Sync):
        return
    yield "done", disk.after_death(operation, None)
    if isinstance(operation, Write) and operation.content:
        cuts = set(random.sample(range(1, len(operation.content)), min(most, len(operation.content) - 1)))
        for cut in sorted(cuts):
            yield f"cut at {cut}", disk.after_death(operation, [(0, cut)])


def losses(
    disk: Disk, under_way: Operation, random: Random, most: int, stale: Callable[[Random, int], bytes] | None = None
) -> Iterator[tuple[str, Disk]]:
    """Up to `most` disks that a power loss may leave: systematic ones, then random ones. With `stale`, what was never
    written is that."""
    files, renamed = disk.unsynced(under_way)
    left = None if stale is None else (lambda size: stale(random, size))
    plans = list(_plans(len(files), renamed))
    systematic = max(4, most // 2)
    for what, wanted, names in plans[:4] + random.sample(plans[4:], min(len(plans) - 4, systematic - 4)):
        whole = {id(files[number]) for number in range(len(files)) if wanted(number)}

        def choose(operation: FileOperation, whole: set[int] = whole) -> tuple[Ranges | None, bool] | None:
            return (None, True) if id(operation) in whole else None

        yield what, disk.after_power_loss(files, choose, names, left)
    for number in range(most - min(len(plans), systematic) if files or renamed else 0):
        kept = possible(renamed, _likely(random))
        yield f"random {number}", disk.after_power_loss(files, _parts(random), kept, left)


def some_loss(disk: Disk, random: Random) -> Disk:
    """One that a power loss may leave, when nothing is under way."""
    files, renamed = disk.unsynced(Sync())
    return disk.after_power_loss(files, _parts(random), possible(renamed, _likely(random)))


def _plans(
    files: int, renamed: list[NameOperation]
) -> Iterator[tuple[str, Callable[[int], bool], list[NameOperation]]]:
    """Which contents and which names are kept: first the four extremes."""
    yield "nothing", lambda i: False, []
    yield "everything", lambda i: True, renamed
    yield "only contents", lambda i: True, []
    yield "only names", lambda i: False, renamed
    for n in range(files):
        yield f"all contents but {n}", partial(ne, n), renamed
        yield f"no contents but {n}", partial(eq, n), renamed
        yield f"contents before {n}", partial(gt, n), renamed
    for n in range(len(renamed)):
        yield f"names before {n}", lambda i: True, possible(renamed, partial(gt, n))
        yield f"all names but {n}", lambda i: True, possible(renamed, partial(ne, n))


def _likely(random: Random) -> Callable[[int], bool]:
    chance = random.choice((0.3, 0.6, 0.9))
    return lambda index: random.random() < chance


def _parts(random: Random) -> Choice:
    likely = _likely(random)

    def choose(operation: FileOperation) -> tuple[Ranges | None, bool] | None:
        if not likely(0):
            return ([], True) if random.random() < 0.5 else None
        if not isinstance(operation, Write) or random.random() < 0.6:
            return None, True
        sized, length = random.random() < 0.5, len(operation.content)
        match random.randrange(4):
            case 0:
                return [(0, random.randint(0, length))], sized
            case 1:
                return [(random.randint(0, length), length)], sized
            case kind:
                blocks = operation.blocks(SECTOR if kind == 2 else PAGE)
                return [block for block in blocks if random.random() < 0.5], sized

    return choose
