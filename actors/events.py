"""Supervisor events: everything that happens to a system is one frozen record.

The same record feeds the log, the status and the tests. `text()` is one line for people, `record()` is for machines.
Nothing in an event is a payload: names, numbers, sizes and reasons only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from actors.exits import ExitStatus

log = logging.getLogger("ringleader")


@dataclass(frozen=True, slots=True)
class Event:
    level: ClassVar[int] = logging.INFO

    def text(self) -> str:
        raise NotImplementedError

    def record(self) -> dict[str, object]:
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class SystemStarted(Event):
    system: str
    pid: int
    workers: tuple[str, ...]

    def text(self) -> str:
        return f"system {self.system!r} started by process {self.pid}, workers: {', '.join(self.workers)}"


@dataclass(frozen=True, slots=True)
class SystemReady(Event):
    system: str

    def text(self) -> str:
        return f"system {self.system!r} is up"


@dataclass(frozen=True, slots=True)
class WorkerStarting(Event):
    name: str
    pid: int
    suspect: tuple[int, int] | None = None  # (peer index, sequence number) blamed for the death before

    def text(self) -> str:
        return f"worker {self.name!r} starts as process {self.pid}"


@dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    name: str
    pid: int
    epoch: int

    def text(self) -> str:
        return f"worker {self.name!r} is up as process {self.pid}, epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class WorkerDied(Event):
    """`blamed` is the message in progress (peer index, sequence number); None if none was, or it is not to blame.
    `message` is its id, as its handler saw it; empty where nobody knows the names of peers."""

    level: ClassVar[int] = logging.WARNING
    name: str
    pid: int | None
    epoch: int
    reason: str
    blamed: tuple[int, int] | None
    message: str = ""

    def text(self) -> str:
        process = "before it was a process" if self.pid is None else f"process {self.pid}, epoch {self.epoch}"
        blame = ""
        if self.message:
            blame = f" while handling message {self.message}"
        elif self.blamed is not None:
            blame = f" while handling message {self.blamed[1]} of peer {self.blamed[0]}"
        return f"worker {self.name!r} died{blame} ({process}): {self.reason}"


def message_id(message: tuple[int, int] | None, peers: Sequence[str]) -> str:
    """The id of a message (peer index, sequence number) as its handler saw it; empty for none, or an unknown peer."""
    if message is None or message[0] >= len(peers):
        return ""
    return f"{peers[message[0]]}/{message[1]}"


@dataclass(frozen=True, slots=True)
class WorkerEnded(Event):
    """It ended as its child spec or the stop of the system allows."""

    name: str
    pid: int | None
    reason: str

    def text(self) -> str:
        return f"worker {self.name!r} ended: {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerRestarting(Event):
    name: str
    delay: float
    restarts: int

    def text(self) -> str:
        when = "now" if self.delay == 0 else f"in {self.delay:.3f} s"
        return f"worker {self.name!r} is started again {when} (restart {self.restarts})"


@dataclass(frozen=True, slots=True)
class WorkerGaveUp(Event):
    level: ClassVar[int] = logging.ERROR
    name: str
    reason: str

    def text(self) -> str:
        return f"gave up on worker {self.name!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerLeaving(Event):
    """It is to end, between two transactions, for the sake of another one or because somebody asked for it."""

    name: str
    why: str

    def text(self) -> str:
        return f"worker {self.name!r} is told to end: {self.why}"


@dataclass(frozen=True, slots=True)
class GroupGaveUp(Event):
    level: ClassVar[int] = logging.ERROR
    group: str
    workers: tuple[str, ...]
    reason: str

    def text(self) -> str:
        return f"gave up on group {self.group!r} ({', '.join(self.workers)}): {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerKilled(Event):
    """The supervisor had to use SIGKILL."""

    level: ClassVar[int] = logging.WARNING
    name: str
    pid: int
    reason: str

    def text(self) -> str:
        return f"worker {self.name!r} (process {self.pid}) is killed: {self.reason}"


@dataclass(frozen=True, slots=True)
class SystemDraining(Event):
    system: str
    reason: str

    def text(self) -> str:
        return f"system {self.system!r} drains: {self.reason}"


@dataclass(frozen=True, slots=True)
class SystemDrained(Event):
    system: str

    def text(self) -> str:
        return f"system {self.system!r} is drained: every message was handled"


@dataclass(frozen=True, slots=True)
class SystemStopping(Event):
    system: str
    reason: str

    def text(self) -> str:
        return f"system {self.system!r} stops: {self.reason}"


@dataclass(frozen=True, slots=True)
class SystemStopped(Event):
    system: str
    exit_status: ExitStatus
    reason: str

    def text(self) -> str:
        status = f"status {int(self.exit_status)} ({self.exit_status.name})"
        return f"system {self.system!r} stopped with {status}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Alarm(Event):
    """Something that must not happen and was survived."""

    level: ClassVar[int] = logging.ERROR
    source: str
    what: str

    def text(self) -> str:
        return f"alarm from {self.source}: {self.what}"


Observer = Callable[[Event], None]


def publish(event: Event, observer: Observer | None = None) -> None:
    """To the log and to the observer. An observer that fails is logged: watching never harms what is watched."""
    log.log(event.level, "%s", event.text(), extra={"event": event})
    if observer is not None:
        try:
            observer(event)
        except Exception:
            log.exception("observer failed on %s", type(event).__name__)
