"""Room on a disk that is kept for later: a file with nothing in it, which is given up when there is no other room."""

from __future__ import annotations

import contextlib
import errno
import os

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class ReserveFile:
    """`size`: how many bytes are kept. What an earlier user left is taken over, and nothing is made before `hold`."""

    def __init__(self, name: str, directory: int) -> None:
        self.size = 0
        self._name = name
        self._directory = os.dup(directory)
        self._file = -1
        with contextlib.suppress(FileNotFoundError):
            self._open(0)
            self.size = os.fstat(self._file).st_size

    def _open(self, flags: int) -> None:
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._name, flags, 0o600, dir_fd=self._directory)

    def hold(self, size: int) -> bool:
        """Keep that much at least. False if there is no room; what was kept before still is."""
        if size <= self.size:
            return True
        try:
            if self._file < 0:
                self._open(os.O_CREAT)
            os.posix_fallocate(self._file, 0, size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            if self._file >= 0:
                os.ftruncate(self._file, self.size)
            return False
        self.size = size
        return True

    def cut(self, size: int) -> None:
        """Keep no more than that."""
        if size < self.size:
            os.ftruncate(self._file, size)
            self.size = size

    def close(self) -> None:
        """What is kept stays so. Idempotent."""
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1
