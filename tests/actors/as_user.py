"""Handlers that tell as whom they run. Copied to a place that other users may look into, and imported from there."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
from multiprocessing import resource_tracker
from typing import Any

from actors import Handler, Message, State, handle


def who() -> list[Any]:
    return [os.getresuid(), os.getresgid(), sorted(os.getgroups())]


AT_IMPORT = who()
log = logging.getLogger(__name__)


class Ask(Message):
    path: str = ""


class Facts(Message):
    facts: dict[str, Any]


class Tick(Message):
    n: int


class Poison(Message):
    pass


class Do(Message):
    what: str


class Hang(Message):
    pass


class Enough(Message):
    pass


class Count(State):
    n: int = 0


class Fed(State):
    n: int = 0
    enough: bool = False


class Teller(Handler):
    state: Count

    def __init__(self) -> None:
        self.made = who()

    def on_start(self) -> None:
        self.started = who()

    @handle
    def on_ask(self, ask: Ask) -> None:
        library = ctypes.CDLL(None)
        death = ctypes.c_int()
        library.prctl(2, ctypes.byref(death), 0, 0, 0)
        with open("/proc/self/status") as file:
            rights = [int(line.split()[1], 16) for line in file if line.startswith(("CapPrm", "CapEff", "CapAmb"))]
        facts = {
            "pid": os.getpid(),
            "count": self.state.n,
            "import": AT_IMPORT,
            "init": self.made,
            "start": self.started,
            "call": who(),
            "capabilities": rights,
            "dies with its parent by": death.value,
            "others may trace it": library.prctl(3, 0, 0, 0, 0),
            "tracker": vars(resource_tracker._resource_tracker)["_fd"],
            "nice": os.nice(0),
            "cwd": os.getcwd(),
            "home": os.environ["HOME"],
            "name": os.environ.get("USER"),
        }
        try:
            with open(ask.path or "/", "rb") as file:
                facts["read"] = file.read().decode()
        except OSError as error:
            facts["read"] = type(error).__name__
        self.reply(Facts(facts))

    @handle
    def on_tick(self, tick: Tick) -> None:
        assert tick.n == self.state.n + 1, (tick.n, self.state.n)
        self.state.n += 1

    @handle
    def on_poison(self, poison: Poison) -> None:
        raise ValueError("no good")

    @handle
    def on_do(self, do: Do) -> None:
        match do.what:
            case "log":
                log.warning("as user %s", os.getuid())
            case "sleep":
                child = subprocess.Popen(["sleep", "600"], start_new_session=True)
                self.reply(Facts({"pid": child.pid}))
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "leave":
                self.stop_worker()


class Once(Teller, max_attempts=1):
    """What kills it is not tried again."""


class Hanging(Handler, busy_limit=1.5, max_attempts=1):
    """Nobody else has a limit: on a slow machine anything may take that long."""

    @handle
    def on_hang(self, hang: Hang) -> None:
        time.sleep(600)


class Feed(Handler):
    """Goes on until there was enough, and says how much that was."""

    state: Fed

    def on_loop(self) -> float | None:
        if self.state.enough:
            return 60.0
        for _ in range(10):
            self.state.n += 1
            self.send(Tick(self.state.n))
        return 0.001

    @handle
    def on_enough(self, enough: Enough) -> None:
        self.state.enough = True
        self.reply(Tick(self.state.n))
