"""The guardian: the parent of the fork server, which outlives the supervisor by as long as it takes to clean up.

The kernel kills workers together with their supervisor, but not what the workers have started: nothing is inherited
that would. So there is one process more, small and asleep, above the fork server:

- Every process that loses its parent anywhere below it becomes its child (PR_SET_CHILD_SUBREAPER), whatever session or
  group it has moved to, and is waited for when it ends: no zombie stays, also where the supervisor is process 1.
- When the supervisor is gone, or the fork server, it kills all that is left below it, and ends.
- It leads a session of its own: what kills the supervisor's whole process group does not reach it.

Whoever kills the guardian at the same time, as the end of a container does or a service manager with the control group,
has to take the grandchildren along himself. Where the system has no such thing (not Linux), there is no guardian.

The source of this module is what the process runs: it imports nothing of the runtime.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from functools import cache

SWEEP = 10.0  # seconds for what was killed to be gone
_PF_EXITING = 4
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def guard(lifeline: int) -> None:
    """Splits the process in two. Returns in the child, which the kernel kills together with the parent; the parent is
    the guardian, and ends when `lifeline` does."""
    if not prctl(_PR_SET_CHILD_SUBREAPER, 1):
        return
    os.setsid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)  # also one that is stopped has to clean up then; the child does without
    guardian = os.getpid()
    server = os.fork()
    if server:
        try:
            _guard(server, lifeline)
        finally:
            os._exit(1)
    die_with_parent()
    if os.getppid() != guardian:
        os._exit(0)


def _guard(server: int, lifeline: int) -> None:
    set_title("ringleader: guardian")
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, lifeline)
    os.closerange(lifeline + 1, min(limit, 1 << 16) if limit > 0 else 1 << 16)

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return  # the end of the lifeline came first, and who waited for it there goes on
            if pid == server:
                _sweep(_as_shell(status))
            if not pid:
                return

    signal.signal(signal.SIGCHLD, reap)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    reap()
    look = select.poll()
    look.register(lifeline, select.POLLIN)
    look.poll()
    # Who finds the fork server's socket closed closes the lifeline, maybe before the kernel has told us of that end.
    _sweep(_as_shell(os.waitpid(server, 0)[1]) if is_ending(server) else 0)


def _as_shell(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def is_ending(pid: int) -> bool:
    """It has closed its files, or is about to, and nothing will keep it. Whoever it was that ended it, has done so."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] == b"Z" or bool(int(fields[6]) & _PF_EXITING)


def _sweep(code: int = 0) -> None:
    """Kill all children and, as they lose their parents, all below them. Ends the process, with the exit status of the
    fork server if that has ended (as a shell tells a signal)."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    deadline = time.monotonic() + SWEEP
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        for pid in children_of(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)  # a child that was not waited for: the number is still its own
            except PermissionError:
                pass  # it runs as another user now; the others go all the same
        time.sleep(0.002)
    os._exit(code)


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process, the dead ones that were not waited for too."""
    try:
        found = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(child) for child in file.read().split()]
        return found
    except OSError:
        return [child for child in processes() if parent_of(child) == pid]  # a kernel without these lists


def processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0  # it is gone


def die_with_parent() -> None:
    """The kernel kills this process when the thread that forked it ends. Cleared by a change of user."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_title(title: str) -> None:
    """Best effort: the name that `ps` and `top` show, so that nobody has to guess what this Python process is."""
    text = title.encode("utf-8", "replace")
    prctl(_PR_SET_NAME, text[:15])
    area = _area(45)  # the arguments
    if area is not None and area[1] > 2:
        # A last byte that is not 0 tells the kernel that the title was set and ends at its first 0 (proc(5), cmdline).
        start, room = area
        shown = text[: room - 2]
        ctypes.memmove(start, shown + bytes(room - 1 - len(shown)) + b" ", room)


def overwrite_variable(name: str, value: str) -> None:
    """Best effort: set a variable as other processes see it (proc(5), environ). It must have been there at exec, with a
    value of the same length."""
    area = _area(47)  # the environment
    if area is None:
        return
    with open("/proc/self/environ", "rb") as file:
        found = b"\0" + file.read()
    at = found.find(f"\0{name}=".encode())
    if at >= 0 and found[at + len(name) + 2 :].partition(b"\0")[0].isdigit():
        ctypes.memmove(area[0] + at + len(name) + 1, value.encode(), len(value))


@cache
def _area(field: int) -> tuple[int, int] | None:
    """Where in our own memory the kernel has put something at exec, and its size: two fields of proc(5), stat."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    start, end = int(fields[field]), int(fields[field + 1])
    return (start, end - start) if start else None


def prctl(option: int, value: int | bytes) -> bool:
    """Whether the kernel did it; False also where there is no such call."""
    try:
        argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
        return bool(ctypes.CDLL(None).prctl(option, argument, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
