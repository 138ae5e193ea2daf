"""The log file of a run directory: JSON lines, bounded by size, readable at any time by whoever may read the directory.

    HOME/NAME/log.jsonl     what is written now
    HOME/NAME/log.jsonl.1   what was written before that; together at most `limit` bytes

What holds:
- A line is written by one call and never buffered: what was written is there after SIGKILL. A torn end, after a full
  disk, is closed by a newline before the next line; readers skip what does not decode.
- Whatever the disk does, writing raises nothing: what could not be written is counted.
- Files are opened relative to the checked directory, never through a link, 0600.

`read` needs neither lock nor help; `follow` goes on over rotations and restarts of the system.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator

LOG, BEFORE = "log.jsonl", "log.jsonl.1"
INTERVAL = 0.1  # seconds between two looks of somebody who follows
_CHUNK = 1 << 16
_RETRY = 1.0  # seconds until a file that could not be opened is tried again


class LogFile:
    """For one writer, which holds the lock of the run directory. Owns the descriptor of the directory."""

    def __init__(self, directory: int, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = 0  # lines that could not be written
        self._directory = directory
        self._limit = limit // 2  # of each of the two
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._torn = False
        self._retry_at = float("-inf")

    def write(self, line: bytes) -> None:
        """Append a line, which ends with its newline. Never raises."""
        if self._limit <= 0 or self._directory < 0:
            return
        if len(line) > self._limit or not self._opened():
            self.lost += 1
            return
        try:
            if self._torn:
                self._append(b"\n")
            if self._size + len(line) > self._limit:
                self._rotate()
            self._append(line)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _opened(self) -> bool:
        if self._fd >= 0:
            return True
        if self._clock() < self._retry_at:
            return False
        try:
            self._open()
        except OSError:
            self._retry_at = self._clock() + _RETRY
        return self._fd >= 0

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(LOG, flags, 0o600, dir_fd=self._directory)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(fd)
            raise OSError(f"{LOG} is no file of this user's")
        self._fd, self._size = fd, status.st_size
        self._torn = self._size > 0 and os.pread(fd, 1, self._size - 1) != b"\n"

    def _rotate(self) -> None:
        os.rename(LOG, BEFORE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._open()

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
        except OSError:
            self._size = os.fstat(self._fd).st_size
            raise
        self._size += written
        self._torn = not data.endswith(b"\n") or written < len(data)
        if written < len(data):
            raise OSError("the disk is full")


def read(directory: int) -> tuple[list[bytes], Follower]:
    """All whole lines there are, the oldest first, and who goes on from there."""
    follower = Follower(directory)
    return list(follower.lines()), follower


class Follower:
    """Reads the log file from its oldest line on, across rotations. Owns the descriptor of the directory."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._fd = -1
        self._rest = b""
        self._begin()

    @property
    def exists(self) -> bool:
        return self._fd >= 0

    def lines(self) -> Iterator[bytes]:
        """The whole lines that were not read yet."""
        while True:
            yield from self._read()
            following = self._next()
            if following < 0:
                return
            # What was written between our last look and the rotation.
            yield from self._read()
            os.close(self._fd)
            self._fd, self._rest = following, b""

    def close(self) -> None:
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _begin(self) -> None:
        """With the older file, if there is one. It is opened last: what is then older was rotated meanwhile."""
        current, before = self._open(LOG), self._open(BEFORE)
        self._fd = before if before >= 0 else current
        if before >= 0 and current >= 0:
            os.close(current)

    def _read(self) -> Iterator[bytes]:
        if self._fd < 0:
            self._begin()
            if self._fd < 0:
                return
        while data := os.read(self._fd, _CHUNK):
            *whole, self._rest = (self._rest + data).split(b"\n")
            yield from whole

    def _next(self) -> int:
        """The file that comes after the one at hand, opened; -1 if that is the newest."""
        if self._fd < 0:
            return -1
        here = _identity(self._fd)
        for _ in range(3):
            current, before = self._open(LOG), self._open(BEFORE)
            try:
                newest, older = _identity(current), _identity(before)
                if newest in {None, here}:
                    return -1
                # Two rotations or more while nobody looked: what is still there of them comes first.
                if older in {None, here}:
                    found, current = current, -1
                    return found
                if newest != older:
                    found, before = before, -1
                    return found
            finally:
                for fd in (current, before):
                    if fd >= 0:
                        os.close(fd)
        return -1

    def _open(self, name: str) -> int:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)
        except FileNotFoundError:
            return -1
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{name} is no file")
        return fd


def _identity(fd: int) -> tuple[int, int] | None:
    if fd < 0:
        return None
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
