"""Processes that have lost their parent: those that a worker leaves behind, and those that process 1 inherits.

A worker is the leader of a session and group, and is killed together with its group. What has left the group is found
by a mark: the variable RINGLEADER_WORKER, which holds the pid of the worker. It is in the environment of all that the
worker starts, of what only forks too, as long as nobody gives it an environment made from nothing. That, too, ends at
the latest with the program that runs the system (`guardian`).

All of it is looked for among the children of the guardian. Where that was killed, and the kernel has given them to some
other process, it is looked for among all processes; what has no mark is found by nobody then.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from actors.evidence import process_state
from actors.guardian import children_of, overwrite_variable, parent_of, processes

MARK = "RINGLEADER_WORKER"
UNMARKED = "0000000000"  # what the fork server has: a pid has at most that many digits
SWEEP = 1.0  # seconds that killing what a dead worker left may take; it takes milliseconds
GRACE = 5.0  # seconds that process 1 leaves a dead child to whoever may wait for it


def mark() -> None:
    """In a new worker process: it, and all that it starts, belong to this worker."""
    value = f"{os.getpid():0{len(UNMARKED)}d}"
    overwrite_variable(MARK, value)
    os.environ[MARK] = value


def sweep(worker: int, guardian: int) -> list[int]:
    """Kills what the dead worker with this pid has left; what it started has become the guardian's, whose parent we
    are. Returns whom."""
    killed: list[int] = []
    again = False
    deadline = time.monotonic() + SWEEP
    while time.monotonic() < deadline:
        found = children_of(guardian)
        if not _is_there(guardian):
            found = _all_around(worker)
        living = [pid for pid in found if _lives(pid)]
        # A process that is dying has lost its mark, but still has its children: they come up next.
        left = [pid for pid in living if pid in killed or _marked(pid, worker)]
        if not left and not again:
            break
        again = bool(left)  # who died while we looked has left children that were not there yet
        for pid in left:
            if pid not in killed:
                killed.append(pid)
                _kill(pid, worker)
        time.sleep(0.001)
    return killed


def _is_there(guardian: int) -> bool:
    return _lives(guardian) and parent_of(guardian) == os.getpid()


def _all_around(worker: int) -> list[int]:
    """Whoever may be marked with the number of this worker and mean it: not if another process has that number now, nor
    in a container inside of ours, where numbers mean others."""
    return [] if _lives(worker) else [pid for pid in processes() if _namespace(pid) == _namespace(os.getpid())]


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0  # gone, or of another user


def _lives(pid: int) -> bool:
    return process_state(pid) not in {"Z", ""}


def _kill(pid: int, worker: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return  # gone
    try:
        if _marked(pid, worker):  # looked at again: now the number cannot be given to another one
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass  # gone, or of a user that we may not kill
    finally:
        os.close(pidfd)


def _marked(pid: int, worker: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"\0{MARK}={worker:0{len(UNMARKED)}d}\0".encode() in b"\0" + file.read() + b"\0"
    except OSError:
        return False  # gone, or of another user


class Reaper:
    """For a program that is process 1, to which the kernel gives all orphans of a container: waits for those that are
    dead, so that none stays a zombie. Of use to nobody else.

    A child that the program itself has started looks just the same, so it is left alone for a while first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, float] = {}
        self.needed = os.getpid() == 1

    def reap(self) -> list[int]:
        """To be called regularly. Returns whom it has waited for."""
        if not self.needed:
            return []
        now, reaped = self._clock(), []
        dead = [pid for pid in children_of(os.getpid()) if process_state(pid) == "Z"]
        self._seen = {pid: self._seen.get(pid, now) for pid in dead}
        for pid, since in self._seen.items():
            if now - since >= GRACE:
                try:
                    os.waitpid(pid, os.WNOHANG)
                    reaped.append(pid)
                except ChildProcessError:
                    pass  # its own parent was faster
        return reaped
