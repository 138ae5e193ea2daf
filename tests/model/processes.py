"""A simulated process: a thread that runs only while it is its turn."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field

from actors.endpoint import Endpoint
from tests.model.memory import SimDoorbell


class Crash(BaseException):
    """The simulated process is dead."""


def baton() -> threading.Lock:
    """Taken by `acquire`, given by `release`, by whomever."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Process:
    """A simulated process: an incarnation of a worker, or the one with supervisor and gateway."""

    name: str
    go: threading.Lock = field(default_factory=lambda: baton())
    thread: threading.Thread | None = None
    alive: bool = True
    killed: bool = False
    doomed: bool = False
    up: bool = False
    last_turn: int = 0
    bell: SimDoorbell | None = None  # what it sleeps on
    timeout: float = 0.0
    endpoint: Endpoint | None = None
    failure: Exception | None = None
    pid: int = 1
    pidfd: int = -1
    title: str = ""

    def words(self) -> str:
        return ""

    def poll(self) -> int | None:
        return None if self.alive else -signal.SIGKILL

    def kill(self) -> None: ...

    def close(self) -> None: ...
