"""Whose the files of a journal are, where that is not everybody's own business: root keeps journals of other users.

The user of a worker may be another one than the supervisor's. Its journal belongs to that user alone; the supervisor,
which is root then, reads it, and now and then writes to it, while its owner may put there whatever he likes. So:

- A directory of another user counts only inside of one that is ours, and that nobody else may even enter: nobody but us
  can have put it there.
- In it, a file counts only if it is a plain file of the directory's owner with this one name. No link leads out of it,
  and opening it never waits.
- What we make there belongs to the directory's owner before anything is written to it.
- Files change hands only if they belong to someone who is known to have had them, so none that was brought in from
  elsewhere, by a link or by renaming, is given away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from persist.errors import UnsafeDirectory


def was_put_there_by_us(path: str, found: os.stat_result) -> bool:
    """Whether this directory of another user lies in one that is ours alone."""
    try:
        parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        around = os.fstat(parent)
        here = os.stat(os.path.basename(path), dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.close(parent)
    private = around.st_uid == os.geteuid() and not stat.S_IMODE(around.st_mode) & 0o077
    return private and (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino)


def open_in(directory: int, path: str, name: str, flags: int) -> int:
    """A descriptor of the file `name` in an open directory, whose `path` is for messages. Made 0600, never followed."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    around = os.fstat(directory)
    if around.st_uid == os.geteuid():
        return os.open(name, flags, 0o600, dir_fd=directory)
    descriptor = os.open(name, flags | os.O_NONBLOCK, 0o600, dir_fd=directory)
    try:
        found = os.fstat(descriptor)
        if flags & os.O_CREAT and _is_new(found):
            os.fchown(descriptor, around.st_uid, around.st_gid)
        elif not _is_plain(found) or found.st_uid != around.st_uid:
            raise UnsafeDirectory(path, f"{name!r} in it is not a plain file of user {around.st_uid} alone")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hand_over(directory: int, path: str, uid: int, gid: int, known: Collection[int]) -> None:
    """Give an open directory and all files in it to this user.

    UnsafeDirectory, before that is touched, if something in it is no plain file, or belongs neither to the new user nor
    to one of those `known` to have had it. We are one of them only if we are named; but the directory itself may be
    ours, and so may a file that is empty.

    The directory goes first: who finds it half done finds its next owner, too. It may be done again at any time.
    """
    if os.fstat(directory).st_uid not in {uid, os.geteuid(), *known}:
        raise UnsafeDirectory(path, f"it belongs to user {os.fstat(directory).st_uid}")
    if (os.fstat(directory).st_uid, os.fstat(directory).st_gid) != (uid, gid):
        os.fchown(directory, uid, gid)
    for name in os.listdir(directory):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=directory)
        except OSError as error:
            raise UnsafeDirectory(path, f"{name!r} in it cannot be opened: {error.strerror}") from None
        try:
            found = os.fstat(descriptor)
            if not _is_plain(found) or not (found.st_uid in {uid, *known} or _is_new(found)):
                reason = f"{name!r} in it, of user {found.st_uid}, is not a plain file of user {uid} alone"
                raise UnsafeDirectory(path, reason)
            if (found.st_uid, found.st_gid) != (uid, gid):
                os.fchown(descriptor, uid, gid)
        finally:
            os.close(descriptor)


def _is_plain(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _is_new(found: os.stat_result) -> bool:
    """As we make it; a crash may have left it so. There is nothing in it that could be given away."""
    return _is_plain(found) and found.st_uid == os.geteuid() and found.st_size == 0
