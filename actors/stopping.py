"""Ends a running system from outside: asks through its control socket, then waits.

Where nobody answers there, it sends signals, to exactly the process that its identity names. The first SIGTERM drains,
a second one stops now: so one that drains already is sent none, unless it is to stop now. Signals that arrive while the
same one is pending are one signal, so the second is sent when the first has shown its effect, or has had time enough,
and again while nothing comes of it.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.control_client import CannotAsk, ask
from actors.control_protocol import Refused, Stopping, StopSystem
from actors.identity import Exit, Identity
from actors.rundir import RunDirectory
from actors.status_board import system_state

LOOK: Final = 0.02  # seconds between two looks
FIRST_EFFECT: Final = 0.5  # seconds that the first signal may take until it shows
AGAIN: Final = 1.0  # seconds between further signals
SILENCE: Final = 2.0  # seconds without an answer from the control socket


@dataclass(frozen=True, slots=True)
class Stopped:
    """It has ended. `ending` is what it left; None: its process is gone without a record."""

    ending: Exit | None


@dataclass(frozen=True, slots=True)
class StillRunning:
    """It has not ended in time. `state` is what it was doing."""

    state: str


def stop(path: Path, identity: Identity, *, now: bool, timeout: float) -> Stopped | StillRunning:
    """Ends the run that `identity` tells of, in the run directory `path`."""
    begun = time.monotonic()
    deadline, next_signal, sent = begun + timeout, begun, 0
    asked = _asked(path, now, min(SILENCE, max(timeout, LOOK)))
    while True:
        # The record is written first, so a process found gone has left it, or never will.
        gone = not identity.alive()
        ending = _ending(path, identity)
        if gone or ending is not None:
            return Stopped(ending)
        state = system_state(identity)
        moment = time.monotonic()
        ends = state in {"draining", "stopping"}
        again = now and (moment >= next_signal or (sent == 1 and ends))
        if not asked and (again or (sent == 0 and not ends)):
            _signal(identity)
            sent += 1
            next_signal = moment + (FIRST_EFFECT if sent == 1 else AGAIN)
        if moment >= deadline:
            return StillRunning(state)
        time.sleep(min(LOOK, deadline - moment))


def _asked(path: Path, now: bool, silence: float) -> bool:
    """Whether the system itself was asked. A program that has started it goes on then; a signal may end it."""
    try:
        ask(path, "stop", StopSystem(now), Stopping, silence=silence)
    except (CannotAsk, Refused, OSError):
        return False
    return True


def _ending(path: Path, identity: Identity) -> Exit | None:
    with RunDirectory.open(path, create=False) as directory:
        ending = directory.read_exit()
    return ending if ending is not None and ending.run_id == identity.run_id else None


def _signal(identity: Identity) -> None:
    """SIGTERM to that process and to no other that has got its number since."""
    try:
        if not hasattr(os, "pidfd_open"):
            if identity.alive():
                os.kill(identity.pid, signal.SIGTERM)
            return
        descriptor = os.pidfd_open(identity.pid)
        try:
            if identity.alive():  # looked at while the descriptor holds on to it
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
    except ProcessLookupError:
        pass  # it has just ended
