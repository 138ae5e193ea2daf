"""Hang decisions: whether a worker that is not dead has to be killed, and why.

Pure: what was seen and when it was seen come in as arguments. Three kinds:

    stopped   the process is stopped (SIGSTOP: state T) for longer than its child spec's hung_after
    busy      one message, one on_loop or on_start takes longer than the busy_limit of its handler
    silent    the loop does not beat for longer than hung_after, although no handler is at work

Not hung: a handler at work that has no limit, however long it takes; a process that a debugger traces (state t); a
worker that is starting, recovering or waiting for its turn, as far as silence goes: how long that may take is
`ready_within`; one that is stopping: that is `shutdown`. The loop beats between two transactions only: so who was seen
with a handler at work has from then on its whole time, for the commit that follows too.

Who is late himself cannot judge others. All times are monotonic, so that no clock jump is taken for silence; after a
gap in the looks, as when the supervisor was stopped too, everything is given its whole time anew; and a verdict takes
two looks, apart enough for a worker that was merely slow to show itself, which agree on what they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from actors.plan import Plan
from bus import Block, Field, WorkerState

GAP = 2.0  # seconds without a look, after which all times begin anew
CONFIRM = 0.25  # seconds at least between the two looks of a verdict
QUIET = 1.0  # seconds without a beat, after which it is worth asking the kernel for the process's state

STOPPED, TRACED = "T", "t"
_LETTERS = {
    "R": "it is running",
    "S": "it is asleep",
    "D": "it waits for a device, which nothing can interrupt",
}
_BEATS = frozenset({WorkerState.RUNNING, WorkerState.DRAINING})
_LIMITED = _BEATS | {WorkerState.STARTING, WorkerState.STOPPING}


class Kind(Enum):
    STOPPED = "stopped"
    BUSY = "busy"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Hung:
    """A verdict: the worker is to be killed. `blames`: the message in progress is suspected of it."""

    kind: Kind
    reason: str

    @property
    def blames(self) -> bool:
        return self.kind is Kind.BUSY


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cells of a worker say. Seconds of the monotonic clock."""

    state: WorkerState
    heartbeat: float
    handler: int = -1  # index of the handler at work; -1: none
    peer: int = -1  # index of the sender of the message in progress; -1: none, so it is the handler's own doing
    seq: int = 0
    since: float = 0.0  # when this began


def look_at(block: Block) -> Seen:
    """The order matters: whatever began in between makes the times younger, never older."""
    state = block.get(Field.STATE)
    handler, peer, seq = block.get(Field.BUSY_HANDLER), block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)
    since, beat = block.get(Field.BUSY_SINCE_NS), block.get(Field.HEARTBEAT_NS)
    known = WorkerState(state) if state in WorkerState.__members__.values() else WorkerState.NEW
    return Seen(known, beat / 1e9, handler - 1, peer - 1, seq, since / 1e9)


@dataclass(frozen=True, slots=True)
class Limits:
    """`handlers` are the worker's, in their order: the name and the busy_limit of each. `peers` are the plan's."""

    hung_after: float
    handlers: Sequence[tuple[str, float | None]] = ()
    peers: Sequence[str] = ()


def limits_of(plan: Plan, worker: str) -> Limits:
    mine = plan.worker(worker)
    handlers = [(one.name, one.policy.busy_limit) for one in mine.handlers]
    return Limits(mine.child.hung_after, handlers, plan.peers)


def verdict(
    now: float,
    seen: Seen,
    limits: Limits,
    *,
    letter: str = "",
    stopped_since: float | None = None,
    fresh: float = 0.0,
    at_work: float = 0.0,
) -> Hung | None:
    """What one look says. `fresh`: nothing before it counts; `stopped_since`: when the state T was seen first;
    `at_work`: when a handler was seen at work last."""
    if letter == TRACED:
        return None
    if letter == STOPPED:
        lasted = now - max(stopped_since if stopped_since is not None else now, fresh)
        if lasted <= limits.hung_after:
            return None
        text = f"stopped by a signal (SIGSTOP) for {lasted:.1f} s, more than its hung_after of {limits.hung_after:g} s"
        return Hung(Kind.STOPPED, text)
    if 0 <= seen.handler < len(limits.handlers):
        name, limit = limits.handlers[seen.handler]
        lasted = now - max(seen.since, fresh)
        if limit is None or lasted <= limit or seen.state not in _LIMITED:
            return None
        what = f"with message {_message(seen, limits)}" if seen.peer >= 0 else "outside of any message"
        text = f"handler {name!r} busy for {lasted:.1f} s {what}, more than its busy_limit of {limit:g} s"
        return Hung(Kind.BUSY, text)
    lasted = now - max(seen.heartbeat, fresh, at_work)
    if seen.state not in _BEATS or lasted <= limits.hung_after:
        return None
    why = f"; {_LETTERS[letter]}" if letter in _LETTERS else ""
    text = f"loop silent for {lasted:.1f} s outside of any handler, more than its hung_after of {limits.hung_after:g} s"
    return Hung(Kind.SILENT, text + why)


def _message(seen: Seen, limits: Limits) -> str:
    peer = limits.peers[seen.peer] if seen.peer < len(limits.peers) else str(seen.peer)
    return f"{peer}/{seen.seq}"


class Watch:
    """Looks at one incarnation again and again. A new incarnation needs a new watch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fresh = self._last = self._at_work = float("-inf")
        self._stopped_since: float | None = None
        self._suspicion: tuple[Kind, float, float] | None = None  # kind, and the beat and the beginning it rests on
        self._suspected_at = 0.0

    @property
    def suspicious(self) -> bool:
        """The next look may confirm a verdict: worth having soon, after CONFIRM seconds."""
        return self._suspicion is not None

    def look(self, now: float, seen: Seen, letter: Callable[[], str]) -> Hung | None:
        """To be called at every turn of the supervisor. `letter` asks the kernel for the state of the process (R, S, D,
        T, t, or nothing if it does not tell); it is called only when the answer may matter."""
        if now - self._last > GAP:
            self._fresh, self._stopped_since, self._suspicion = now, None, None
        self._last = now
        quiet = now - seen.heartbeat > min(QUIET, self._limits.hung_after / 2)
        state = letter() if quiet else ""
        if state != STOPPED:
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        if 0 <= seen.handler < len(self._limits.handlers):
            self._at_work = now
        hung = verdict(
            now,
            seen,
            self._limits,
            letter=state,
            stopped_since=self._stopped_since,
            fresh=self._fresh,
            at_work=self._at_work,
        )
        if hung is None:
            self._suspicion = None
            return None
        suspicion = (hung.kind, seen.heartbeat, seen.since)
        if suspicion != self._suspicion:
            self._suspicion, self._suspected_at = suspicion, now
        return hung if now - self._suspected_at >= CONFIRM else None
