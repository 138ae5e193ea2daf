"""The run directory of one system: its lock, who runs it, its journals, how it ended.

    HOME/NAME/lock           held (POSIX lock) for the life of the supervisor: one system, one supervisor
    HOME/NAME/identity.json  who runs it, written once at start; stays after a crash, for the next start to clean up by
    HOME/NAME/exit.json      how the run that identity.json tells of has ended; missing while it runs and after a crash
    HOME/NAME/journals/W/    the journal of worker W
    HOME/NAME/control.sock   where a running system takes commands
    HOME/NAME/log.jsonl      what workers and supervisor have logged; log.jsonl.1 is what was there before

The boundary of trust is the user id. Everything is made and opened relative to a directory that was checked to belong
to this user and to be writable by nobody else; links are never followed; directories are 0700, files 0600. Only the
journal of a worker that runs as another user belongs to that user, and to no other one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from actors.errors import RingleaderError
from actors.identity import EdgeIdentity, Exit, Identity, WorkerEnd, new_identity, segment_name, stale_prefix
from persist.ownership import hand_over

__all__ = [
    "AlreadyRunning",
    "EdgeIdentity",
    "Exit",
    "Identity",
    "NotYours",
    "RunDirectory",
    "RunDirectoryError",
    "System",
    "WorkerEnd",
    "default_home",
    "list_systems",
    "new_identity",
    "segment_name",
    "stale_prefix",
]

LOCK, IDENTITY, EXIT, JOURNALS = "lock", "identity.json", "exit.json", "journals"


class RunDirectoryError(RingleaderError):
    """The run directory at `path` cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class NotYours(RunDirectoryError):
    """It belongs to the user `uid`."""

    def __init__(self, path: Path, uid: int) -> None:
        Exception.__init__(self, path, uid)
        self.path, self.uid, self.why = path, uid, f"belongs to user {uid}, you are {os.geteuid()}"


class AlreadyRunning(RunDirectoryError):
    """Another supervisor holds it: process `pid`, None if the system does not tell."""

    def __init__(self, path: Path, pid: int | None) -> None:
        Exception.__init__(self, path, pid)
        self.path, self.pid = path, pid
        self.why = f"held by another supervisor, process {'unknown' if pid is None else pid}"


@dataclass(frozen=True, slots=True)
class System:
    """One entry of a home directory. `problem` says why the rest is missing."""

    name: str
    path: Path
    identity: Identity | None = None
    exit: Exit | None = None
    problem: str = ""

    @property
    def running(self) -> bool:
        return self.identity is not None and self.identity.alive()


def default_home() -> Path:
    """Where the run directories are: RINGLEADER_HOME, otherwise this user's state directory."""
    given = os.environ.get("RINGLEADER_HOME")
    if given:
        return Path(given).absolute()
    import platformdirs

    return Path(platformdirs.user_state_dir("ringleader")).absolute()


def list_systems(home: Path) -> list[System]:
    """Every system of a home directory, by name. Takes no lock and changes nothing; a missing home has none."""
    try:
        names = sorted(entry.name for entry in os.scandir(home) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NotYours(home, home.stat().st_uid) from None
    systems = []
    for name in names:
        try:
            with RunDirectory.open(home / name, create=False) as directory:
                identity = directory.read_identity()
                if identity is not None:
                    systems.append(System(name, home / name, identity, directory.read_exit()))
        except (RunDirectoryError, OSError) as problem:
            systems.append(System(name, home / name, problem=str(problem)))
    return systems


_T = TypeVar("_T", Identity, Exit)

# A POSIX lock does not keep its own process out, and closing any descriptor of a locked file drops the lock. So a
# second start within this process is refused here, before the lock file is touched. Maps (device, inode) to the
# holder's pid: after a fork the child's entries name its parent and count for nothing.
_held: dict[tuple[int, int], int] = {}
_held_guard = threading.Lock()


class RunDirectory:
    """One open run directory. Closing it gives up the lock."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._lock_fd: int | None = None
        self.users: dict[str, tuple[int, ...]] = {}  # whose journals are not ours, as in the identity that was read

    @classmethod
    def open(cls, path: Path, *, create: bool = True) -> Self:
        """Open, or make, the directory `path`.

        Where it lies is the user's business, as long as nobody else can put another directory in its place.
        """
        path = Path(os.path.abspath(path))
        if path == path.parent:
            raise RunDirectoryError(path, "cannot be a run directory: name one inside of it")
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_parent(path.parent, os.fstat(parent))
            fd = _enter(parent, path, create)
        finally:
            os.close(parent)
        if create and stat.S_IMODE(os.fstat(fd).st_mode) != 0o700:
            os.fchmod(fd, 0o700)  # made by hand, with other people allowed to look
        return cls(path, fd)

    @property
    def fd(self) -> int:
        """The open directory, for what is made and opened relative to it."""
        return self._fd

    def lock(self) -> None:
        """Take the directory until `close`. Raises AlreadyRunning with the holder's pid."""
        status = os.fstat(self._fd)
        key = (status.st_dev, status.st_ino)
        with _held_guard:
            if _held.get(key) == os.getpid():
                raise AlreadyRunning(self.path, os.getpid())
            fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as refused:
                holder = lock_holder(fd)
                os.close(fd)
                if refused.errno not in {errno.EACCES, errno.EAGAIN}:
                    raise
                raise AlreadyRunning(self.path, holder) from None
            _held[key] = os.getpid()
            self._lock_fd = fd

    def journal(self, worker: str) -> Path:
        """The directory of one worker's journal; it exists afterwards."""
        os.close(self._enter_journal(worker, self.users.get(worker, ()), create=True))
        return self.path / JOURNALS / worker

    def check_journal(self, worker: str) -> None:
        """That this worker's journal belongs to whom it should. RunDirectoryError; FileNotFoundError."""
        os.close(self._enter_journal(worker, self.users.get(worker, ()), create=False))

    def hand_over(self, worker: str, uid: int, gid: int, known: Collection[int]) -> None:
        """Give one worker's journal to this user; it exists afterwards. What belongs to none of the `known` users is
        refused: RunDirectoryError, UnsafeDirectory."""
        fd = self._enter_journal(worker, {os.geteuid(), *known}, create=True)
        try:
            hand_over(fd, str(self.path / JOURNALS / worker), uid, gid, known)
        finally:
            os.close(fd)

    def _enter_journal(self, worker: str, owners: Collection[int], create: bool) -> int:
        os.close(_enter(self._fd, self.path / JOURNALS, create))
        journals = os.open(JOURNALS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return _enter(journals, self.path / JOURNALS / _component(worker), create, owners)
        finally:
            os.close(journals)

    def journals(self) -> list[str]:
        """The workers that have a journal here."""
        try:
            with os.scandir(self.path / JOURNALS) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def duplicate(self) -> int:
        """A descriptor of the directory, for the caller to close."""
        return os.dup(self._fd)

    def write_identity(self, identity: Identity) -> None:
        """Say who runs it from now on. What is left of the run before goes."""
        self._write(IDENTITY, identity)
        try:
            os.unlink(EXIT, dir_fd=self._fd)
        except FileNotFoundError:
            pass  # a first run, or the one before crashed

    def rewrite_identity(self, identity: Identity) -> None:
        """The one that was read, with something added; what is left of its run stays."""
        self._write(IDENTITY, identity)

    def read_identity(self) -> Identity | None:
        identity = self._read(IDENTITY, Identity)
        if identity is not None:
            self.users = identity.users
        return identity

    def write_exit(self, ending: Exit) -> None:
        self._write(EXIT, ending)

    def read_exit(self) -> Exit | None:
        return self._read(EXIT, Exit)

    def close(self) -> None:
        """Idempotent. Gives up the lock if it was taken."""
        if self._fd < 0:
            return
        with _held_guard:
            if self._lock_fd is not None:
                status = os.fstat(self._fd)
                _held.pop((status.st_dev, status.st_ino), None)
                os.close(self._lock_fd)
                self._lock_fd = None
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, name: str, value: Identity | Exit) -> None:
        """Atomic: a reader sees the old file or the new one, whole."""
        temporary = f".{name}.new"
        try:
            os.unlink(temporary, dir_fd=self._fd)
        except FileNotFoundError:
            pass  # there only after a crash in the middle of this
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600, dir_fd=self._fd), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _read(self, name: str, type_: type[_T]) -> _T | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise RunDirectoryError(self.path / name, f"cannot be opened: {problem.strerror}") from None
        with open(fd, "rb") as file:
            _check_owner(self.path / name, os.fstat(fd))
            try:
                return msgspec.json.decode(file.read(), type=type_)
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                raise RunDirectoryError(self.path / name, f"is damaged: {problem}") from None


def _enter(parent: int, path: Path, create: bool, owners: Collection[int] = ()) -> int:
    """Open `path.name` inside the open directory `parent`, which the caller has checked; make it if asked to. It has to
    belong to one of the `owners`; to us, if none are given."""
    name = _component(path.name)
    if create:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass  # checked below like any other
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as problem:
        if problem.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise RunDirectoryError(path, "is not a directory (links are not followed)") from None
        if problem.errno == errno.EACCES:
            raise NotYours(path, os.stat(name, dir_fd=parent, follow_symlinks=False).st_uid) from None
        raise
    try:
        _check_owner(path, os.fstat(fd), owners)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_parent(path: Path, status: os.stat_result) -> None:
    """Its owner may replace what is in it; so may who can write to it, unless it is sticky, as /tmp is."""
    if status.st_uid not in {0, os.geteuid()}:
        raise NotYours(path, status.st_uid)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise RunDirectoryError(path, f"is writable by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _check_owner(path: Path, status: os.stat_result, owners: Collection[int] = ()) -> None:
    if owners and status.st_uid not in owners:
        belongs = " or ".join(map(str, sorted(owners)))
        raise RunDirectoryError(path, f"belongs to user {status.st_uid}, and has to belong to user {belongs}")
    if not owners and status.st_uid != os.geteuid():
        raise NotYours(path, status.st_uid)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RunDirectoryError(path, f"is writable by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _component(name: str) -> str:
    """A name that is one step of a path and nothing else."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of a file")
    return name


def lock_holder(fd: int) -> int | None:
    """The pid that holds the POSIX lock in our way."""
    if sys.platform != "linux":
        return None
    flock = struct.Struct("hhqqi")  # struct flock of 64-bit Linux: type, whence, start, length, pid
    answer = fcntl.fcntl(fd, fcntl.F_GETLK, flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind, _, _, _, pid = flock.unpack(answer)
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None
