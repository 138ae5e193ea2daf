"""One holder per directory, for the life of its process.

A POSIX record lock on the file `lock`, or one of another name: the kernel drops it when the holder dies, by whatever
death, and does not hand it to children. Such locks do not exclude within one process, and closing any descriptor of the
file drops them; so a table of what this process holds is asked first, and nothing else here ever opens the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

from persist.errors import JournalLocked
from persist.ownership import open_in

NAME = "lock"

_guard = threading.Lock()
_held: dict[tuple[int, int], int] = {}  # (device, inode) -> process; a forked child inherits the table, not the locks


class DirectoryLock:
    """Taken at construction; JournalLocked names the process that has it."""

    def __init__(self, directory: str, descriptor: int, name: str = NAME) -> None:
        with _guard:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if _held.get((found.st_dev, found.st_ino)) == os.getpid():
                    raise JournalLocked(directory, os.getpid())
            self._file = open_in(descriptor, directory, name, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                text = os.pread(self._file, 32, 0)
                os.close(self._file)
                if not isinstance(error, BlockingIOError | PermissionError):
                    raise
                raise JournalLocked(directory, int(text) if text.strip().isdigit() else 0) from None
            found = os.fstat(self._file)
            self._key = (found.st_dev, found.st_ino)
            self._owner = _held[self._key] = os.getpid()
        with contextlib.suppress(OSError):  # on a full disk the number is missing; the lock is held all the same
            os.pwrite(self._file, f"{self._owner:<15}\n".encode(), 0)  # of one length: to truncate would be to wait

    def release(self) -> None:
        """Idempotent; in a forked child it gives up nothing."""
        with _guard:
            descriptor, self._file = self._file, -1
            if descriptor < 0:
                return
            if self._owner == os.getpid():
                _held.pop(self._key, None)
            os.close(descriptor)
