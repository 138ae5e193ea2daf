"""Exit statuses: what a system leaves to whoever started it, and what a worker leaves to its supervisor.

Both are contracts: service managers, scripts and the supervisor's own decisions depend on the numbers, so a number
never changes its meaning. Status 0 is a promise, not a default: every message was handled and every worker ended by
itself.
"""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit status of a whole system."""

    OK = 0
    FAILED = 1
    USAGE = 2
    GAVE_UP = 3
    NOT_DRAINED = 4
    HELD = 5
    DAMAGED = 6
    NO_SPACE = 7

    @property
    def meaning(self) -> str:
        return _STATUS_MEANINGS[self]


_STATUS_MEANINGS = {
    ExitStatus.OK: "clean end: everything was handled and every worker ended by itself",
    ExitStatus.FAILED: "something unexpected failed",
    ExitStatus.USAGE: "the command or the topology is wrong; nothing was started",
    ExitStatus.GAVE_UP: "workers died more often than the restart limit allows",
    ExitStatus.NOT_DRAINED: "stopped before everything was handled; the rest waits in the journals",
    ExitStatus.HELD: "the run directory is held by another supervisor",
    ExitStatus.DAMAGED: "a journal is damaged and was refused; it was left as it is",
    ExitStatus.NO_SPACE: "shared memory or the disk was full at start",
}


class WorkerExit(IntEnum):
    """The exit code of one worker. Codes below 64 other than 0 are the interpreter's and the user's own."""

    STOPPED = 0
    CRASHED = 1
    START_FAILED = 64
    JOURNAL_REFUSED = 65
    JOURNAL_POISONED = 66
    NO_SPACE = 67
    HANDLER_FAILED = 68
    ORPHANED = 69
    LAUNCH_FAILED = 70  # stands for the exit code where there was no process
    MESSAGE_FAILED = 71
    LOST = 255

    @property
    def meaning(self) -> str:
        return _WORKER_MEANINGS[self]


_WORKER_MEANINGS = {
    WorkerExit.STOPPED: "stopped",
    WorkerExit.CRASHED: "an exception that nobody handled",
    WorkerExit.START_FAILED: "it could not start",
    WorkerExit.JOURNAL_REFUSED: "its journal was refused",
    WorkerExit.JOURNAL_POISONED: "writing its journal failed",
    WorkerExit.NO_SPACE: "shared memory or the disk is full",
    WorkerExit.HANDLER_FAILED: "a handler failed outside of any message",
    WorkerExit.ORPHANED: "its supervisor was gone before it was up",
    WorkerExit.LAUNCH_FAILED: "it could not be launched",
    WorkerExit.MESSAGE_FAILED: "a message failed, and its handler's policy is to crash",
    WorkerExit.LOST: "dead, but its exit code was lost together with the fork server",
}


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; the number itself for one that has no name here."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe(code: int | None) -> str:
    """An exit code in words. Negative: killed by that signal. None: there never was a process."""
    if code is None:
        return "never started"
    if code < 0:
        return f"killed by {signal_name(-code)}"
    try:
        known = WorkerExit(code)
    except ValueError:
        return f"exit code {code}"
    return "exit code 0" if known is WorkerExit.STOPPED else f"exit code {code} ({known.name}): {known.meaning}"
