"""The file that becomes the next segment: space for its head is reserved while there still is some.

A journal can only shrink by beginning a new segment and letting the old ones go, so on a full disk this file is what
gets it out again.
"""

from __future__ import annotations

from persist.errors import JournalFull
from persist.files import NO_ROOM, Directory, File, is_zeros

NAME = "spare"
PARTS = 64  # of the size that is wanted: on a full disk, as many of them are taken as can be had


def prepare_spare(directory: Directory, size: int) -> bool:
    """Reserve a spare of so many bytes, or of as many as there is room for, and then say False."""
    try:
        file = _open(directory)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False
    try:
        have = file.size()
        for part in range(PARTS, 0, -1):
            wanted = size * part // PARTS
            try:
                if have < wanted:
                    file.allocate(have, wanted - have)
                # failpoint: spare-prepared
                return part == PARTS
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
    finally:
        file.close()
    return False


def take_spare(directory: Directory, head: int, reserve: int) -> tuple[File, int]:
    """The spare, open to write a head of so many bytes to it, and its size: `reserve` bytes more if they can be had.
    JournalFull if not even the head finds room."""
    try:
        file = _open(directory)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise JournalFull(directory.locate(NAME), head, 0) from error
    try:
        size = file.size()
        for wanted in (head + reserve, head):
            try:
                if size < wanted:
                    file.allocate(size, wanted - size)
                return file, max(size, wanted)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
        raise JournalFull(file.path, head, size)
    except BaseException:
        file.close()
        raise


def wipe_spare(directory: Directory, most: int) -> None:
    """A crash may have left the spare half written. Its space is kept, unless that is more than `most` bytes."""
    try:
        file = directory.open(NAME, writable=True)
    except FileNotFoundError:
        return
    try:
        size = file.size()
        if size <= most and not is_zeros(file, 0, size):
            file.write(bytes(size), 0)
    finally:
        file.close()
    if size > most:
        directory.unlink(NAME)


def _open(directory: Directory) -> File:
    try:
        return directory.open(NAME, writable=True)
    except FileNotFoundError:
        return directory.create(NAME)
