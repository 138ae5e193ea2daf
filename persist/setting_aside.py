"""The copy of a journal that a repair makes first, and the marker that keeps everybody out until it is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from contextlib import closing
from datetime import UTC, datetime

from persist.files import CHUNK, Directory
from persist.format import REPAIRING
from persist.history_errors import CannotRepair
from persist.lock import NAME as LOCK

MARKER = REPAIRING

UNFINISHED = "repair"  # what becomes the marker


class Unmarked(Directory):
    """The directory as the repair itself sees it."""

    def list(self) -> list[str]:
        return [name for name in super().list() if name != MARKER]


def copy_aside(directory: Directory, copy_to: str | os.PathLike[str] | None) -> str:
    """Copy all files but the lock, and sync them and the directories. Returns where they are."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = os.path.abspath(copy_to if copy_to is not None else f"{directory.path}.original-{stamp}")
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists: a copy needs a place of its own")
    copy = Directory(target)
    try:
        _copy(directory, copy)
        copy.anchor()
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(target)
        raise
    finally:
        copy.close()
    return target


def write_marker(directory: Directory, original: str) -> None:
    """Whole or not at all."""
    with contextlib.suppress(FileNotFoundError):
        directory.unlink(UNFINISHED)
    with closing(directory.create(UNFINISHED)) as file:
        file.write(os.fsencode(original), 0)
        file.fdatasync()
    directory.rename(UNFINISHED, MARKER)
    directory.sync()


def remove_marker(directory: Directory) -> None:
    directory.unlink(MARKER)
    directory.sync()


def restore(directory: Directory) -> None:
    """If an earlier repair was interrupted, make everything as it was before that."""
    try:
        with closing(directory.open(MARKER)) as file:
            original = os.fsdecode(file.read(file.size(), 0))
    except FileNotFoundError:
        return
    if not os.path.isdir(original):
        reason = f"an earlier repair was interrupted, and the copy that it made is not at {original!r}"
        raise CannotRepair(directory.path, f"{reason}; if it is elsewhere, put its files back and delete {MARKER}")
    copy = Directory(original, create=False)
    try:
        for name in _files(directory):
            directory.unlink(name)
        _copy(copy, directory)
    finally:
        copy.close()
    remove_marker(directory)


def _files(directory: Directory) -> list[str]:
    """The lock must not even be opened: to close it again would be to give it up."""
    names = [name for name in directory.list() if name not in {LOCK, MARKER}]
    return [
        name
        for name in names
        if stat.S_ISREG(os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False).st_mode)
    ]


def _copy(source: Directory, target: Directory) -> None:
    for name in _files(source):
        with closing(source.open(name)) as old, closing(target.create(name)) as new:
            offset = 0
            while data := old.read(CHUNK, offset):
                written = 0
                while written < len(data):
                    written += new.write(memoryview(data)[written:], offset + written)
                offset += len(data)
            new.fdatasync()
        times = os.stat(name, dir_fd=source.descriptor)
        os.utime(name, ns=(times.st_atime_ns, times.st_mtime_ns), dir_fd=target.descriptor)
    target.sync()
