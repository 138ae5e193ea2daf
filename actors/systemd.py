"""Tells systemd how the system is: its notification protocol, datagrams to $NOTIFY_SOCKET (sd_notify(3)).

What holds:
- READY=1 when every worker is up, STOPPING=1 when it drains or stops, STATUS= in one line whenever something happens.
- WATCHDOG=1 is sent by `beat` only, and `beat` is called by the turning loop of the supervisor: if that hangs, systemd
  notices. It is sent four times within WATCHDOG_USEC, so that one may be late.
- While it starts or drains, EXTEND_TIMEOUT_USEC= asks for more time again and again, so that its own limits count, not
  those of the unit; again only while the loop turns.
- The variables are taken out of the environment: workers, and what they start, must not notify in our name.
- Nothing here ever fails or blocks: what the manager does not take is told again at the next beat.

Without NOTIFY_SOCKET it does nothing. Events and beats come from the supervisor's thread.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final, Self

from actors import events
from actors.events import Event
from actors.told_by_manager import NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC, taken

EXTEND_BY: Final = 20.0  # seconds
EXTEND_EVERY: Final = 5.0
STATUS_LENGTH: Final = 400

log = logging.getLogger("ringleader")


class Notifier:
    """An observer of events, with `beat`. `watchdog` is in seconds; None: nobody watches."""

    def __init__(
        self, address: str | None, watchdog: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.watchdog = watchdog
        self._address = _address(address) if address else None
        self._clock = clock
        self._socket: socket.socket | None = None
        self._owed: dict[str, str] = {}  # not taken yet; a newer value takes the place of an older one
        self._next_watchdog = self._next_extension = float("-inf")
        self._moves = True  # starts, drains or stops: all that takes time of the unit's timeouts
        self._ready = False
        self._over = False
        self._complained = False
        self._workers: tuple[str, ...] = ()
        self._up: set[str] = set()
        self._restarts = 0
        self._last_death = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """Takes the variables out of it."""
        told = taken(environment)
        address, limit, pid = told.get(NOTIFY_SOCKET), told.get(WATCHDOG_USEC, ""), told.get(WATCHDOG_PID, "")
        meant = pid in {"", str(os.getpid())}
        return cls(address, int(limit) / 1e6 if meant and limit.isdecimal() and int(limit) else None)

    @property
    def active(self) -> bool:
        return self._address is not None

    def __call__(self, event: Event) -> None:
        if not self.active:
            return
        match event:
            case events.SystemStarted(workers=workers):
                self._workers = workers
                self._tell(STATUS=f"starting {len(workers)} workers")
            case events.WorkerReady(name=name):
                self._up.add(name)
                self._tell(STATUS=self._state())
            case events.SystemReady():
                self._ready, self._moves = True, False
                self._tell(READY="1", STATUS=self._state())
            case events.WorkerDied(name=name, reason=reason) | events.WorkerKilled(name=name, reason=reason):
                self._up.discard(name)
                self._last_death = f"{name}: {reason}"
                self._tell(STATUS=self._state())
            case events.WorkerEnded(name=name):
                self._up.discard(name)
                self._tell(STATUS=self._state())
            case events.WorkerRestarting():
                self._restarts += 1
            case events.SystemDraining(reason=reason):
                self._moves, self._next_extension = True, float("-inf")
                self._tell(STOPPING="1", STATUS=f"draining: {reason}")
                self.beat()
            case events.SystemStopping(reason=reason):
                self._moves = True
                self._tell(STOPPING="1", STATUS=f"stopping: {reason}")
            case events.SystemStopped(exit_status=status, reason=reason):
                self._over = True
                self._tell(STATUS=f"stopped with status {int(status)} ({status.name}): {reason}")

    def beat(self) -> None:
        """The supervisor's loop has turned."""
        if not self.active:
            return
        now = self._clock()
        if self.watchdog is not None and now >= self._next_watchdog:
            self._next_watchdog = now + self.watchdog / 4
            self._owed["WATCHDOG"] = "1"
        if self._moves and not self._over and now >= self._next_extension:
            self._next_extension = now + EXTEND_EVERY
            self._owed["EXTEND_TIMEOUT_USEC"] = str(int(EXTEND_BY * 1e6))
        self._send()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _state(self) -> str:
        up = f"{len(self._up)} of {len(self._workers)} workers up"
        if not self._restarts:
            return f"starting: {up}" if not self._ready else up
        times = "1 restart" if self._restarts == 1 else f"{self._restarts} restarts"
        return f"{up}, {times}, last death of {self._last_death}"

    def _tell(self, **what: str) -> None:
        self._owed.update(what)
        self._send()

    def _send(self) -> None:
        if self._address is None or not self._owed:
            return
        lines = [f"{key}={_line(value)}" for key, value in self._owed.items()]
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except BlockingIOError:
            return  # it has much to read; again at the next beat
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("the service manager cannot be notified at %r: %s", self._address, error)
            return
        self._owed.clear()


def _address(given: str) -> str | None:
    """`@` stands for the first byte of an abstract address. Others than these two kinds are not for this machine."""
    if given.startswith("@"):
        return "\0" + given[1:]
    return given if given.startswith("/") else None


def _line(value: str) -> str:
    return " ".join(value.split())[:STATUS_LENGTH]
