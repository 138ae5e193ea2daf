"""Starting a topology as a system, and running it as a script does: signals, and a truthful exit status."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from actors.errors import TopologyError
from actors.events import Observer
from actors.exits import ExitStatus
from actors.rundir import AlreadyRunning, RunDirectoryError, default_home
from actors.system import READY_TIMEOUT, System
from actors.system_errors import StartFailed, TopologyChanged
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


def prepare(topology: Topology, observer: Observer | None = None) -> System:
    """Checks the topology and takes what a system needs, without starting it. Raises TopologyError, StartFailed."""
    plan = topology.compile()
    directory = Path(topology.directory) if topology.directory is not None else default_home() / plan.name
    try:
        return System(plan, directory, observer)
    except (SharedMemoryFull, AlreadyRunning, TopologyChanged, RunDirectoryError, PersistError, OSError) as error:
        status, reason = _status_of(error), str(error)
        if status is ExitStatus.DAMAGED:
            reason += f"; `ringleader journal verify {directory}` tells more, `ringleader journal repair` can mend it"
        raise StartFailed(plan.name, status, reason) from error


def start(topology: Topology, *, timeout: float = READY_TIMEOUT, observer: Observer | None = None) -> System:
    """Checks the topology and starts it. Raises TopologyError, and StartFailed with the exit status and the reason."""
    return prepare(topology, observer).start(timeout)


def run(topology: Topology) -> None:
    """Runs until the system ends or a signal ends it: the first drains, the second stops now.

    Returns after a clean end. Any other end raises SystemExit with one of `ExitStatus`, so that a script which ends
    with `app.run()` never exits 0 by mistake.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run() takes the signals, which only the main thread can: use start() in other threads")
    try:
        status, reason = _run(prepare(topology))
    except TopologyError as error:
        status, reason = ExitStatus.USAGE, str(error)
    except StartFailed as error:
        status, reason = ExitStatus(error.status), str(error)
    if status is not ExitStatus.OK:
        print(f"ringleader: {topology.name}: {reason or status.meaning} (status {int(status)})", file=sys.stderr)
        raise SystemExit(int(status))


def _run(system: System) -> tuple[ExitStatus, str]:
    received = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            system.request_stop()
        else:
            system.request_stop_now()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as after `nohup`: it is meant to go on
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        system.start()
        return system.join(), system.reason
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_of(error: Exception) -> ExitStatus:
    match error:
        case SharedMemoryFull() | JournalFull():
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
