"""Segments: named shared memory with its space really reserved, that outlives whoever made it.

Contract:
- `create` makes a new segment with mode 0600 and all of its space allocated, or raises and leaves nothing: a full
  /dev/shm is an error here, not a SIGBUS at the first touch.
- Neither creating nor attaching registers with the resource tracker, whose end would unlink segments that others still
  use and, late, those of a successor with the same names. Segments end by `unlink`, or by `remove_stale` at the next
  start.
- An attach that fails never removes what it could not attach to.
- `close` raises BufferError while a view of `buf` is alive, and can then be tried again.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, shared_memory
from typing import Final

from bus.errors import SegmentExists, SegmentMissing, SharedMemoryFull

_SHM: Final = "/dev/shm"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_untracking: Final = threading.RLock()


class _NotTracked:
    """Stands in for the resource tracker for one thread; other threads are forwarded to the real one."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def register(self, name: str, rtype: str) -> None:
        if threading.get_ident() != self._thread:
            resource_tracker.register(name, rtype)

    def unregister(self, name: str, rtype: str) -> None:
        if threading.get_ident() != self._thread:
            resource_tracker.unregister(name, rtype)


@contextmanager
def _untracked() -> Iterator[None]:
    """Before Python 3.13 the only way: what this thread does to shared memory in here, the tracker does not hear of."""
    with _untracking:
        module = vars(shared_memory)
        before = module["resource_tracker"]
        module["resource_tracker"] = _NotTracked()
        try:
            yield
        finally:
            module["resource_tracker"] = before


class _Memory(shared_memory.SharedMemory):
    """`SharedMemory` that is not tracked, and whose failed attach does not unlink another process's segment."""

    _fd: int
    _buf: memoryview | None
    _mmap: object
    _attaching = False

    def __init__(self, name: str, *, create: bool, size: int = 0) -> None:
        self._attaching = not create
        if sys.version_info >= (3, 13):
            super().__init__(name, create=create, size=size, track=False)
        else:
            with _untracked():
                super().__init__(name, create=create, size=size)
        self._attaching = False

    def unlink(self) -> None:
        if self._attaching:  # the constructor calls this when it fails, whoever made the segment
            return
        if sys.version_info >= (3, 13):
            super().unlink()
        else:
            with _untracked():
                super().unlink()

    def allocate(self, size: int) -> None:
        """Makes the system give all of the space now, where it can."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, size)

    def close_descriptor(self) -> None:
        """The mapping has one of its own; with a ring per edge they add up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """Forgotten, not closed: views that are still alive keep the mapping, which goes with the last of them."""
        self._buf = self._mmap = None
        self.close_descriptor()


class Segment:
    """One named piece of shared memory; `create` or `attach` makes it."""

    __slots__ = ("_memory", "name", "size")

    def __init__(self, memory: _Memory) -> None:
        memory.close_descriptor()
        self._memory = memory
        self.name = memory.name
        self.size = memory.size

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """A new segment full of zeros. SegmentExists, or SharedMemoryFull."""
        if not 0 < size <= sys.maxsize:
            raise ValueError(f"segment {name!r} cannot have {size} bytes")
        try:
            memory = _Memory(name, create=True, size=size)
        except FileExistsError:
            raise SegmentExists(name) from None
        try:
            memory.allocate(size)
        except OSError as error:
            memory.unlink()
            memory.close()
            if error.errno in _FULL:
                raise SharedMemoryFull(name, size, available()) from None
            raise
        return cls(memory)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """An existing segment. SegmentMissing if there is none, or if its creator has not given it a size yet."""
        try:
            return cls(_Memory(name, create=False))
        except (FileNotFoundError, ValueError):  # ValueError: an empty file cannot be mapped
            raise SegmentMissing(name) from None

    @property
    def buf(self) -> memoryview:
        buf = self._memory.buf
        if buf is None:
            raise ValueError(f"segment {self.name!r} is closed")
        return buf

    def close(self) -> None:
        """Unmaps it here; the segment stays. Closing twice is fine."""
        self._memory.close()

    def unlink(self) -> None:
        """Removes the name: nobody can attach any more, and the memory goes with its last mapping. Twice is fine."""
        try:
            self._memory.unlink()
        except FileNotFoundError:
            pass


def remove_stale(prefix: str) -> list[str]:
    """Unlinks every segment of this user whose name begins with `prefix`; the caller knows that its owner is dead."""
    if not prefix:
        raise ValueError("an empty prefix would remove everybody's segments")
    removed: list[str] = []
    if not os.path.isdir(_SHM):  # this system does not list its segments
        return removed
    with os.scandir(_SHM) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    os.unlink(entry.path)
                    removed.append(entry.name)
            except FileNotFoundError:  # somebody else was faster
                continue
    return sorted(removed)


def available() -> int | None:
    """Bytes of shared memory that are free; None where that cannot be known."""
    try:
        status = os.statvfs(_SHM)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
