"""When a command at run time has taken effect, judged by what the worker's status block shows. Pure.

    restart    another incarnation than the one before is up
    pause      the worker says that this request, or a later one for the same, has come about (`pause_request`)
    drain      the same; it says so when what had been sent to it is handled
    resume     the same

A command that has lost its object is refused with the reason: a worker that has ended for good (only a restart brings
it back), a system that ends, another command that came later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actors.control_protocol import ENDING, FAILED, Refused
from actors.pause_request import PauseRequest, Standing, told_to
from bus import WorkerState

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


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a worker and its system. States are WorkerStates; `told` and `paused` are
    cells, as `pause_request` takes them."""

    system: int
    state: int
    supervised: int
    pid: int
    epoch: int
    deaths: int
    told: int
    paused: int


def done(change: Change, worker: str, before: Seen, now: Seen, request: PauseRequest | None = None) -> bool:
    """Whether it has taken effect. Raises Refused if it cannot any more. `before` is from before it was asked for;
    without the request that was made then, it is only about whether it ever can."""
    if now.system in ENDS:
        raise Refused(ENDING, f"{worker}: the system is {WorkerState(now.system).name.lower()}")
    if change is Change.RESTART:
        given_up_before = before.supervised == WorkerState.GAVE_UP and now.deaths == before.deaths
        if now.supervised == WorkerState.GAVE_UP and not given_up_before:
            raise Refused(FAILED, f"{worker}: it was given up, `ringleader status` tells why")
        return now.epoch > before.epoch and now.supervised == WorkerState.RUNNING and now.state in UP
    if now.supervised in OVER:
        raise Refused(FAILED, f"{worker}: it has ended and is not started again; `ringleader restart` does that")
    standing = Standing.QUEUED if request is None else request.standing(now.told, now.paused)
    if standing is Standing.OVERRIDDEN:
        raise Refused(FAILED, f"{worker}: overridden by another request, to {told_to(now.told)}")
    return standing is Standing.DONE


def waits_for(now: Seen, request: PauseRequest | None) -> str:
    """What is still missing, in words."""
    try:
        state = WorkerState(now.state).name.lower()
    except ValueError:
        state = f"state {now.state}"
    if request is not None and request.standing(now.told, now.paused) is Standing.QUEUED:
        return f"{Standing.QUEUED.value}; the worker is {state}"
    return f"the worker is {state}"
