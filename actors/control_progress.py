"""When a command at run time has taken effect, judged by what the worker's status block shows. Pure.

    restart    another incarnation than the one before is up
    pause      the worker says that it handles nothing: `PAUSED` is the `Pause` it was told
    drain      the same; it says so when what had been sent to it is handled
    resume     it is told to go on, and no longer says that it is paused

A command that has lost its object is refused with the reason: a worker that has ended for good, a system that ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actors.control_protocol import ENDING, FAILED, Refused
from bus import Pause, WorkerState

OVER = frozenset({WorkerState.STOPPED, WorkerState.GAVE_UP})
ENDS = frozenset({WorkerState.DRAINING, WorkerState.STOPPING, WorkerState.STOPPED})
UP = frozenset({WorkerState.RUNNING, WorkerState.DRAINING, WorkerState.STOPPING})


class Change(Enum):
    """What is asked for. The value is the name of the command; `outcome` is what it is called when it is done."""

    RESTART = "restart"
    PAUSE = "pause"
    DRAIN = "drain"
    RESUME = "resume"

    @property
    def outcome(self) -> str:
        return _OUTCOMES[self]


_OUTCOMES = {
    Change.RESTART: "restarted",
    Change.PAUSE: "paused",
    Change.DRAIN: "drained",
    Change.RESUME: "resumed",
}
_TOLD = {Change.PAUSE: Pause.PAUSE, Change.DRAIN: Pause.DRAIN, Change.RESUME: Pause.RUN}


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a worker and its system. States are WorkerStates; `told` and `paused` are Pauses."""

    system: int
    state: int
    supervised: int
    pid: int
    epoch: int
    told: int
    paused: int


def done(change: Change, worker: str, before: Seen, now: Seen) -> bool:
    """Whether it has taken effect. Raises Refused if it cannot any more."""
    if now.system in ENDS:
        raise Refused(ENDING, f"{worker}: the system is {WorkerState(now.system).name.lower()}")
    if change is Change.RESTART:
        if now.supervised == WorkerState.GAVE_UP:
            raise Refused(FAILED, f"{worker}: it was given up, `ringleader status` tells why")
        return now.epoch > before.epoch and now.supervised == WorkerState.RUNNING and now.state in UP
    if now.supervised in OVER:
        raise Refused(FAILED, f"{worker}: it has ended and is not started again; `ringleader restart` does that")
    return now.told == _TOLD[change] and now.paused == _TOLD[change]


def waits_for(change: Change, now: Seen) -> str:
    """What is still missing, in words."""
    try:
        state = WorkerState(now.state).name.lower()
    except ValueError:
        state = f"state {now.state}"
    if change is not Change.RESTART and now.told != _TOLD[change]:
        return f"the supervisor has not passed it on; the worker is {state}"
    return f"the worker is {state}"
