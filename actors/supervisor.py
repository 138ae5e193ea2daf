"""The supervisor: starts the workers, restarts those that die, drains and stops the system. One thread, one loop.

What holds:
- A worker is started again only when its process is proven dead, and as `restart.decide` says. A launch that fails is a
  death like any other, so it backs off, and a request to stop is looked at before it is tried again.
- At each death the message in progress is taken from the worker's status block. If the death was not requested, and the
  worker did not name another cause, this message is the suspect: every launch is told of it until one incarnation has
  taken it over, which it shows by its new epoch.
- The first request drains: sources stop, and once every worker has acknowledged that and nothing is under way (two looks
  in a row), the workers are told to stop. A request to stop now tells them at once; who has not ended after a grace is
  killed. The status is OK only if everything was handled and every worker ended by itself with exit code 0.
- When one worker is given up, the others are stopped, and the system ends.
- Deaths and requests wake the loop; every wait is bounded. Requests may come from signal handlers and any thread.

Its own cells and texts of the board are written by this thread only. Cells of a worker it writes between incarnations.
"""

from __future__ import annotations

import logging
import os
import random as randomness
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from actors import events
from actors.exits import ExitStatus, WorkerExit, describe
from actors.restart import (
    ChildSpec,
    Death,
    Ending,
    Finished,
    GiveUp,
    History,
    Policy,
    RestartAfter,
    affected,
    blames_message,
    decide,
)
from bus import Block, Board, BoardCell, Control, Field, Text, WorkerState

TICK = 0.5  # seconds; an idle supervisor looks around this often
FIRST_LOOK, LONGEST_LOOK = 0.005, 0.05  # while something is awaited that nobody reports; the waits grow
UNKILLABLE = 10.0  # seconds after SIGKILL until it is said that a process does not die
LAST_DEATH_BYTES = 1000

log = logging.getLogger("ringleader")


class Process(Protocol):
    """A worker process, as `process.WorkerProcess` is one."""

    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


Suspect = tuple[int, int]  # peer index, sequence number
Launch = Callable[[str, int, Suspect | None], Process]  # name, epoch floor, suspect


class _Request(Enum):
    DRAIN = "drain"
    STOP = "stop"
    STOP_NOW = "stop now"


@dataclass(slots=True)
class _Child:
    """What the supervisor remembers of one worker. `due` is when to launch it; None: it runs, or stays away."""

    spec: ChildSpec
    block: Block
    process: Process | None = None
    due: float | None = 0.0
    epoch_floor: int = 0
    epoch_before: int = 0
    suspect: Suspect | None = None
    ready: bool = False
    was_up: bool = False
    restarts: int = 0
    killed: bool = False

    @property
    def over(self) -> bool:
        return self.process is None and self.due is None


class Supervisor:
    """Supervises one system. `run` does it all and returns the exit status; the rest talks to it from outside."""

    def __init__(
        self,
        name: str,
        specs: Sequence[ChildSpec],
        policy: Policy,
        board: Board,
        launch: Launch,
        *,
        quiet: Callable[[], bool],
        observer: events.Observer | None = None,
        drain_timeout: float = 30.0,
        stop_timeout: float = 5.0,
        stop_now_timeout: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self.name = name
        self.state = WorkerState.NEW
        self.status: ExitStatus | None = None  # how it ends, once that is known
        self.reason = ""
        self._policy, self._history = policy, History()
        self._board, self._launch, self._quiet, self._observer = board, launch, quiet, observer
        self._drain_timeout, self._stop_timeout, self._stop_now_timeout = drain_timeout, stop_timeout, stop_now_timeout
        self._clock, self._random = clock, random
        self._children = {spec.name: _Child(spec, board.block(spec.name)) for spec in specs}
        self._requests: deque[tuple[_Request, str]] = deque()
        self._wake: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._settled = threading.Event()
        self._up = False
        self._deadline = float("inf")  # of the state the system is in
        self._killed_at: float | None = None
        self._quiet_looks = 0
        self._look = FIRST_LOOK

    # ------------------------------------------------------------------------------------------------ from outside
    def request_stop(self, drain: bool = True, reason: str = "requested") -> None:
        """End the system: after everything was handled, or (`drain=False`) without waiting for that."""
        self._request(_Request.DRAIN if drain else _Request.STOP, reason)

    def request_stop_now(self, reason: str = "requested again") -> None:
        """End the system at once; cuts a drain or a stop short that is under way."""
        self._request(_Request.STOP_NOW, reason)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until every worker was up once. False if the system ended before that, or the time is over."""
        self._settled.wait(timeout)
        return self._up

    def _request(self, request: _Request, reason: str) -> None:
        # No lock: a signal handler may interrupt whoever holds it.
        self._requests.append((request, reason))
        wake = self._wake
        if wake is not None:
            try:
                wake.send(b"\0")
            except OSError:
                pass  # full, so it will wake anyway; or closed, so the system has ended

    # ------------------------------------------------------------------------------------------------ the loop
    def run(self) -> ExitStatus:
        """Supervise until the system has ended. To be called once."""
        woken, self._wake = socket.socketpair()
        woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(woken, selectors.EVENT_READ)
        try:
            self._board.set(BoardCell.SUPERVISOR_PID, os.getpid())
            self._publish(events.SystemStarted(self.name, os.getpid(), tuple(self._children)))
            self._enter(WorkerState.STARTING)
            while (wait := self.turn()) is not None:
                for key, _ in self._selector.select(wait):
                    if key.fileobj is woken:
                        woken.recv(4096)
        except BaseException as failure:
            self._conclude(ExitStatus.FAILED, f"the supervisor itself failed: {type(failure).__name__}: {failure}")
            log.exception("supervisor of system %r failed", self.name)
        finally:
            self._end()
            self._selector.close()
            self._wake.close()
            woken.close()
        return self.status or ExitStatus.OK

    def turn(self) -> float | None:
        """Do everything that is due, once. The longest time to wait until the next turn; None: the system has ended."""
        self._board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, self._clock())
        self._take_requests()
        for child in self._children.values():
            self._look_at(child)
        if self.state is WorkerState.STOPPING:
            if not self._living():
                return None
            self._press()
        else:
            self._start_what_is_due()
            if self.state is WorkerState.DRAINING:
                self._drain()
            elif all(child.over for child in self._children.values()):
                self._begin_drain("every worker has ended")
        return self._longest_wait()

    def _longest_wait(self) -> float:
        if self._requests:
            return 0.0
        now = self._now()
        times = [child.due for child in self._children.values() if child.due is not None]
        wait = min([TICK, self._deadline - now, *(due - now for due in times)])
        waiting_for_readiness = any(child.process is not None and not child.ready for child in self._children.values())
        if self.state is WorkerState.DRAINING or (waiting_for_readiness and self.state is not WorkerState.STOPPING):
            wait = min(wait, self._look)
            self._look = min(self._look * 1.5, LONGEST_LOOK)
        return max(0.0, wait)

    def _take_requests(self) -> None:
        for child in self._children.values():
            if self.state in {WorkerState.STARTING, WorkerState.RUNNING} and child.block.get(Field.STOP_REQUESTED):
                self._begin_drain(f"worker {child.spec.name!r} asked for it")
        while self._requests:
            request, reason = self._requests.popleft()
            if request is _Request.DRAIN and self.state in {WorkerState.STARTING, WorkerState.RUNNING}:
                self._begin_drain(reason)
            elif request is not _Request.DRAIN:
                grace = self._stop_timeout if request is _Request.STOP else self._stop_now_timeout
                if self.state is not WorkerState.STOPPING:
                    self._conclude(ExitStatus.NOT_DRAINED, f"stopped before everything was handled: {reason}")
                    self._begin_stop(grace)
                self._deadline = min(self._deadline, self._now() + grace)

    # ------------------------------------------------------------------------------------------------ workers
    def _start_what_is_due(self) -> None:
        for child in self._children.values():
            if child.due is not None and child.due <= self._now():
                self._start(child)
            if self._requests:
                return  # looked at first; starting may take long when it fails

    def _start(self, child: _Child) -> None:
        name, block = child.spec.name, child.block
        child.due = None
        child.killed = child.ready = False
        child.epoch_before = block.get(Field.EPOCH)
        block.set(Field.STATE, WorkerState.STARTING)
        block.set(Field.SUPERVISED_STATE, WorkerState.STARTING)
        self._look = FIRST_LOOK
        try:
            child.process = self._launch(name, child.epoch_floor, child.suspect)
        except Exception as failure:
            log.debug("launch of worker %r failed", name, exc_info=True)
            why = f"{type(failure).__name__}: {failure}"
            self._died(child, Death(name, None, None, False, f"could not be launched: {why}", child.was_up), None, None)
            return
        if self._selector is not None:
            self._selector.register(child.process.pidfd, selectors.EVENT_READ)
        self._publish(events.WorkerStarting(name, child.process.pid, child.suspect))

    def _look_at(self, child: _Child) -> None:
        """Notice that it is up, or dead."""
        process, block = child.process, child.block
        if process is None:
            return
        if not child.ready and WorkerState.RUNNING <= block.get(Field.STATE) <= WorkerState.STOPPED:
            child.ready = child.was_up = True
            block.set(Field.SUPERVISED_STATE, WorkerState.RUNNING)
            self._publish(events.WorkerReady(child.spec.name, process.pid, block.get(Field.EPOCH)))
            if not self._up and all(other.was_up for other in self._children.values()):
                self._up = True
                if self.state is WorkerState.STARTING:
                    self._enter(WorkerState.RUNNING)
                self._publish(events.SystemReady(self.name))
                self._settled.set()
        code = process.poll()
        if code is None:
            return
        process.kill()  # what it started goes with it
        if self._selector is not None:
            self._selector.unregister(process.pidfd)
        process.close()
        child.process = None
        words = block.text(Text.LAST_WORDS).strip()
        reason = describe(code) + (f": {words.splitlines()[-1].strip()}" if words else "")
        exit_code, signal = (code, None) if code >= 0 else (None, -code)
        requested = child.killed or self.state is WorkerState.STOPPING
        death = Death(child.spec.name, exit_code, signal, requested, reason, child.was_up)
        busy, seq = block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)
        self._died(child, death, process.pid, (busy - 1, seq) if busy and blames_message(death) else None, words)

    def _died(self, child: _Child, death: Death, pid: int | None, blamed: Suspect | None, words: str = "") -> None:
        name, block = child.spec.name, child.block
        epoch = block.get(Field.EPOCH)
        if epoch != child.epoch_before:
            child.suspect = None  # it was taken over
        child.suspect = blamed or child.suspect
        child.epoch_floor = max(child.epoch_floor + 1, epoch)
        clean = death.code == WorkerExit.STOPPED and (death.requested or not blamed)
        self._write_death(block, death, words, clean)
        if clean:
            self._publish(events.WorkerEnded(name, pid, death.reason))
        else:
            self._publish(events.WorkerDied(name, pid, epoch, death.reason, blamed))
        if self.state is WorkerState.STOPPING:
            if not clean:
                self._conclude(ExitStatus.FAILED, f"worker {name!r} did not stop cleanly: {death.reason}")
            return
        now = self._now()
        decision, self._history = decide(child.spec, self._policy, self._history, death, now, self._random())
        match decision:
            case RestartAfter(delay):
                # With other strategies, those of them who live are stopped here first.
                for one in affected(self._policy.strategy, tuple(self._children), name):
                    again = self._children[one]
                    again.due = now + delay
                    again.restarts += 1
                    again.block.set(Field.RESTARTS, again.restarts)
                    self._publish(events.WorkerRestarting(one, delay, again.restarts))
            case GiveUp(reason, status):
                block.set(Field.STATE, WorkerState.GAVE_UP)
                block.set(Field.SUPERVISED_STATE, WorkerState.GAVE_UP)
                self._publish(events.WorkerGaveUp(name, reason))
                self._conclude(status, reason)
                self._begin_stop(self._stop_timeout)
            case Finished():
                block.set(Field.SUPERVISED_STATE, WorkerState.STOPPED)

    def _write_death(self, block: Block, death: Death, words: str, clean: bool) -> None:
        """It is proven dead, so its cells are ours until the next launch."""
        head = death.reason if death.signal is None and death.code is None else describe(_number(death))
        room = LAST_DEATH_BYTES - len(head.encode())
        tail = words.encode("utf-8", "replace")[-room:].decode("utf-8", "ignore") if room > 0 else ""
        block.set_text(Text.LAST_DEATH, f"{head}\n{tail}" if tail else head)
        block.set_text(Text.LAST_WORDS, "")
        block.set(Field.LAST_DEATH_NS, self._clock())
        block.set(Field.LAST_DEATH_CODE, _number(death))
        for field in (Field.BUSY_PEER, Field.BUSY_SEQ, Field.BUSY_SINCE_NS, Field.BUSY_HANDLER, Field.CONTROL_SEEN):
            block.set(field, 0)
        block.set(Field.PID, 0)
        block.set(Field.STATE, WorkerState.STOPPED if clean else WorkerState.DEAD)
        block.set(Field.SUPERVISED_STATE, WorkerState.STOPPED if clean else WorkerState.DEAD)

    # ------------------------------------------------------------------------------------------------ ending
    def _begin_drain(self, reason: str) -> None:
        self._enter(WorkerState.DRAINING, self._drain_timeout)
        self._publish(events.SystemDraining(self.name, reason))
        self._tell(Control.DRAIN)

    def _drain(self) -> None:
        """Two looks in a row at which every worker has acknowledged and nothing is under way."""
        late = [c.spec.name for c in self._children.values() if not c.over and not _drains(c)]
        self._quiet_looks = self._quiet_looks + 1 if not late and self._quiet() else 0
        if self._quiet_looks >= 2:
            self._publish(events.SystemDrained(self.name))
            self._begin_stop(self._stop_timeout)
        elif self._now() >= self._deadline or not self._quiet_looks and not self._living() and not late:
            why = f"not drained within {self._drain_timeout:g} s"
            if not self._living() and not late:
                why = "every worker has ended, but not everything was handled"
            elif late:
                why += f"; not reached: {', '.join(late)}"
            self._conclude(ExitStatus.NOT_DRAINED, why)
            self._begin_stop(self._stop_timeout)

    def _begin_stop(self, grace: float) -> None:
        self._enter(WorkerState.STOPPING, grace)
        for child in self._children.values():
            child.due = None
        self._publish(events.SystemStopping(self.name, self.reason or "everything was handled"))
        self._tell(Control.STOP)

    def _press(self) -> None:
        """Kill who has not stopped in time."""
        now = self._now()
        if now < self._deadline:
            return
        if self._killed_at is None:
            self._killed_at = now
            self._deadline = now + UNKILLABLE
            for child in self._living():
                if child.process is not None:
                    child.killed = True
                    self._publish(events.WorkerKilled(child.spec.name, child.process.pid, "it did not stop in time"))
                    self._conclude(ExitStatus.FAILED, f"worker {child.spec.name!r} did not stop in time and was killed")
                    child.process.kill()
        else:
            names = ", ".join(repr(child.spec.name) for child in self._living())
            raise RuntimeError(f"still not dead {UNKILLABLE:g} s after SIGKILL: {names}")

    def _end(self) -> None:
        """Whatever happened: no process stays, and everyone learns that it is over."""
        for child in self._living():
            if child.process is not None:
                child.process.kill()
                child.process.close()
                child.process = None
        self._conclude(ExitStatus.OK, "everything was handled")
        self._enter(WorkerState.STOPPED)
        self._publish(events.SystemStopped(self.name, self.status or ExitStatus.OK, self.reason))
        self._settled.set()

    def _living(self) -> list[_Child]:
        return [child for child in self._children.values() if child.process is not None]

    def _tell(self, control: Control) -> None:
        for child in self._children.values():
            child.block.set(Field.CONTROL, control)
            child.block.doorbell.ring()

    def _enter(self, state: WorkerState, seconds: float = float("inf")) -> None:
        self.state = state
        self._deadline = self._now() + seconds
        self._look = FIRST_LOOK
        self._board.set(BoardCell.SYSTEM_STATE, state)

    def _conclude(self, status: ExitStatus, reason: str) -> None:
        """The first reason to end is the one that is told."""
        if self.status is None:
            self.status, self.reason = status, reason

    def _now(self) -> float:
        return self._clock() / 1e9

    def _publish(self, event: events.Event) -> None:
        events.publish(event, self._observer)


def _drains(child: _Child) -> bool:
    """It runs, and has acknowledged that it must not begin anything new."""
    return child.process is not None and child.ready and child.block.get(Field.CONTROL_SEEN) == Control.DRAIN


def _number(death: Death) -> int:
    """The death as one number, as `exits.describe` takes it."""
    if death.signal is not None:
        return -death.signal
    return WorkerExit.LAUNCH_FAILED if death.code is None else death.code
