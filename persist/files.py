"""The files below a journal: the few calls through which everything on disk is read and written.

A journal takes a factory of Directory, so that tests can put a layer there which fails, forgets or records. Every call
may raise OSError; nothing is retried here. Files are created 0600, opened relative to the directory's descriptor, and
links are not followed.
"""

from __future__ import annotations

import errno
import os
import stat

from persist.errors import UnsafeDirectory
from persist.ownership import open_in, was_put_there_by_us

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
CHUNK = 1 << 16  # read at once: larger ones are memory from the system each time, and cost a fault for each page

_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has none, and none of the next one
_fallocate = getattr(os, "posix_fallocate", None)


class File:
    """An open file."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.path = path
        self._descriptor = descriptor

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """One pwrite(); may be short."""
        return os.pwrite(self._descriptor, data, offset)

    def allocate(self, offset: int, size: int) -> None:
        """Reserve space on the disk, so that writing there cannot fail for want of it. A file that ended before is
        zeros up to there. Either all of it is reserved or OSError."""
        if _fallocate is not None:
            _fallocate(self._descriptor, offset, size)
            return
        for at in range(offset, offset + size, CHUNK):
            part = bytes(min(CHUNK, offset + size - at))
            if os.pwrite(self._descriptor, part, at) != len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size:
            data = os.pread(self._descriptor, size - have, offset + have)
            if not data:
                break
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def fdatasync(self) -> None:
        _fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_zeros(file: File, offset: int, end: int) -> bool:
    """Whether the file has nothing but zeros from `offset` to `end`: space that was reserved and never written to."""
    while offset < end:
        data = file.read(min(CHUNK, end - offset), offset)
        if not data or data != bytes(len(data)):
            return not data
        offset += len(data)
    return True


class Directory:
    """An open directory that only its owner can write to: us, or the user to whom we have given it (`ownership`)."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = os.path.abspath(path)
        self._made_in = _make(self.path) if create else []
        self._anchored = False
        self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self.descriptor)
        reason = ""
        if found.st_uid != os.geteuid() and not was_put_there_by_us(self.path, found):
            reason = f"it belongs to user {found.st_uid}"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason = f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
        if reason:
            self.close()
            raise UnsafeDirectory(self.path, reason)

    def locate(self, name: str) -> str:
        """For messages only."""
        return os.path.join(self.path, name)

    def list(self) -> list[str]:
        return os.listdir(self.descriptor)

    def create(self, name: str) -> File:
        """A new file; FileExistsError if there is one."""
        return self._file(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)

    def open(self, name: str, *, writable: bool = False) -> File:
        return self._file(name, os.O_RDWR if writable else os.O_RDONLY)

    def _file(self, name: str, flags: int) -> File:
        return File(open_in(self.descriptor, self.path, name, flags), self.locate(name))

    def rename(self, old: str, new: str) -> None:
        """Takes the place of a file that has the new name."""
        os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Make created and removed names durable."""
        os.fsync(self.descriptor)

    def anchor(self) -> None:
        """Make the directory itself, and those above it that had to be made, durable. Once is enough: a worker does it
        before it becomes a user who may not look at those above."""
        if self._anchored:
            return
        for path in self._made_in or [os.path.dirname(self.path)]:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._anchored = True

    def close(self) -> None:
        """Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _make(path: str) -> list[str]:
    """Make the directory and what is missing above it; returns the parents of what was made."""
    parent = os.path.dirname(path)
    made = [] if parent == path or os.path.isdir(parent) else _make(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return made
    return [*made, parent]
