"""Starting a topology as a system, and running it as a script does: signals, and a truthful exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from actors.errors import TopologyError
from actors.events import Observer
from actors.exits import ExitStatus
from actors.rundir import AlreadyRunning, RunDirectoryError, default_home
from actors.system import READY_TIMEOUT, System
from actors.system_errors import RingsDoNotFit, StartFailed, TopologyChanged
from actors.systemd import Notifier
from bus import SharedMemoryFull
from persist import (
    DamagedJournal,
    JournalFull,
    JournalLocked,
    JournalPoisoned,
    NewerFormat,
    NotAJournal,
    PersistError,
    UnknownName,
)

if TYPE_CHECKING:
    from actors.topology import Topology

REFUSALS = (
    RingsDoNotFit,
    SharedMemoryFull,
    AlreadyRunning,
    TopologyChanged,
    RunDirectoryError,
    PersistError,
    OSError,
)


def prepare(topology: Topology, observer: Observer | None = None, beat: Callable[[], None] | None = None) -> System:
    """Checks the topology and takes what a system needs, without starting it. Raises TopologyError, StartFailed."""
    plan = topology.compile()
    directory = Path(topology.directory) if topology.directory is not None else default_home() / plan.name
    try:
        return System(plan, directory, observer, beat)
    except REFUSALS as error:
        status, reason = _status_of(error), str(error)
        if status is ExitStatus.DAMAGED:
            reason += f"; `ringleader journal verify {directory}` tells more, `ringleader journal repair` can mend it"
        raise StartFailed(plan.name, status, reason) from error


def start(topology: Topology, *, timeout: float = READY_TIMEOUT, observer: Observer | None = None) -> System:
    """Checks the topology and starts it. Raises TopologyError, and StartFailed with the exit status and the reason."""
    return prepare(topology, observer).start(timeout)


def run(topology: Topology, told: MutableMapping[str, str] = os.environ) -> None:
    """Runs until the system ends or a signal ends it: the first drains, the second stops now. `told`: where the service
    manager's variables are, to be taken.

    Returns after a clean end. Any other end raises SystemExit with one of `ExitStatus`, so that a script which ends
    with `app.run()` never exits 0 by mistake.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run() takes the signals, which only the main thread can: use start() in other threads")
    notifier = Notifier.from_environment(told)
    try:
        with _Signals() as signals:
            system = prepare(topology, notifier, notifier.beat)
            signals.reach(system)
            system.start()
            status, reason = system.join(), system.reason
    except _Interrupted as interrupted:
        status, reason = ExitStatus.NOT_DRAINED, f"{interrupted} came twice before it was started"
    except TopologyError as error:
        status, reason = ExitStatus.USAGE, str(error)
    except StartFailed as error:
        status, reason = ExitStatus(error.status), str(error)
    finally:
        notifier.close()
    if status is not ExitStatus.OK:
        print(f"ringleader: {topology.name}: {reason or status.meaning} (status {int(status)})", file=sys.stderr)
        raise SystemExit(int(status))


class _Interrupted(BaseException):
    """A second signal came before there was a system to stop. The argument is its name."""


class _Signals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP drain the system; the first two stop it when they come again.

    A terminal that closes sends SIGHUP, and so does its shell: two of them are one request. A program that was started
    to outlive its terminal (nohup) ignores SIGHUP, and goes on to do so. What comes before there is a system takes
    effect when there is one; as PID 1 of a container nobody would hear it otherwise.
    """

    def __init__(self) -> None:
        self._system: System | None = None
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reach(self, system: System) -> None:
        """From now on there is a system to stop."""
        self._system = system
        if self._asked:
            system.request_stop()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked = True
            if os.isatty(2):
                _say("ringleader: draining; again to stop now")
            if self._system is not None:
                self._system.request_stop()
        elif number != signal.SIGHUP:
            if self._system is None:
                raise _Interrupted(signal.Signals(number).name)
            self._system.request_stop_now()


def _say(text: str) -> None:
    """In one write, as a signal handler may interrupt another one; the terminal may be gone."""
    try:
        os.write(2, f"{text}\n".encode("utf-8", "replace"))
    except OSError:
        pass


def _status_of(error: Exception) -> ExitStatus:
    match error:
        case RingsDoNotFit() | SharedMemoryFull() | JournalFull():
            return ExitStatus.NO_SPACE
        case AlreadyRunning() | JournalLocked():
            return ExitStatus.HELD
        case DamagedJournal() | NewerFormat() | NotAJournal():
            return ExitStatus.DAMAGED
        case TopologyChanged() | UnknownName():
            return ExitStatus.USAGE
        case JournalPoisoned() | OSError() if getattr(error.__cause__ or error, "errno", None) == errno.ENOSPC:
            return ExitStatus.NO_SPACE
    return ExitStatus.FAILED
