"""The supervisor: starts the workers, restarts those that die, drains and stops the system. One thread, one loop.

What holds:
- A worker is started again only when its process is proven dead, and as `restart.decide` says. A launch that fails is a
  death like any other, so it backs off, and a request to stop is looked at before it is tried again.
- At each death the message in progress is taken from the worker's status block. If the death was not requested, and the
  worker did not name another cause, this message is the suspect: every launch is told of it until one incarnation has
  taken it over, which it shows by its new epoch.
- The first request drains: sources stop, and once every worker has acknowledged that and nothing is under way (two
  looks in a row), the workers are told to stop. A request to stop now tells them at once; who has not ended after a
  grace is killed. The status is OK only if everything was handled and every worker ended by itself with exit code 0.
- When one worker is given up, the others are stopped, and the system ends.
- Deaths and requests wake the loop; every wait is bounded. Requests may come from signal handlers and any thread.
"""

from __future__ import annotations

import errno
import logging
import os
import random as randomness
import select
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from actors import events
from actors.child import Child, Launch
from actors.evidence import MemoryEvidence, process_state
from actors.exits import ExitStatus, WorkerExit
from actors.hang import CONFIRM, Limits
from actors.orphans import Reaper
from actors.restart import ChildSpec, Death, Finished, GiveUp, History, Policy, RestartAfter, affected, decide
from bus import Board, BoardCell, Control, Field, WorkerState

TICK = 0.5  # seconds; an idle supervisor looks around this often
FIRST_LOOK, LONGEST_LOOK = 0.005, 0.05  # while something is awaited that nobody reports; the waits grow
UNKILLABLE = 10.0  # seconds after SIGKILL until a process that is not dead is an error

log = logging.getLogger("ringleader")


class _Request(Enum):
    DRAIN = "drain"
    STOP = "stop"
    STOP_NOW = "stop now"


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
        limits: Mapping[str, Limits] | None = None,
        memory_bytes: Mapping[str, int | None] | None = None,
        drain_timeout: float = 30.0,
        stop_timeout: float = 5.0,
        stop_now_timeout: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self.name = name
        self.state = WorkerState.NEW
        self.status: ExitStatus | None = None  # how it ends, as soon as that is known
        self.reason = ""
        self._policy, self._history = policy, History()
        self._board, self._launch, self._quiet, self._observer = board, launch, quiet, observer
        self._drain_timeout, self._stop_timeout, self._stop_now_timeout = drain_timeout, stop_timeout, stop_now_timeout
        self._clock, self._random = clock, random
        self._limits = limits or {spec.name: Limits(spec.hung_after) for spec in specs}
        self._memory_bytes = memory_bytes or {}
        self._evidence, self._reaper = MemoryEvidence(), Reaper()
        self._children = [Child(spec, board.block(spec.name)) for spec in specs]
        self._requests: deque[tuple[_Request, str]] = deque()
        self._wake: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._settled = threading.Event()
        self._up = False
        self._deadline = float("inf")  # of the state the system is in
        self._pressed = False
        self._quiet_looks = 0
        self._look = FIRST_LOOK

    # ------------------------------------------------------------------------------------------------ from outside
    def request_stop(self, drain: bool = True, reason: str = "requested") -> None:
        """End the system: after everything was handled, or (`drain=False`) without waiting for that."""
        self._request(_Request.DRAIN if drain else _Request.STOP, reason)

    def request_stop_now(self, reason: str = "requested") -> None:
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
            self.begin()
            while (wait := self.turn()) is not None:
                for key, _ in self._selector.select(wait):
                    if key.fileobj is woken:
                        woken.recv(4096)
        except BaseException as failure:
            self._conclude(ExitStatus.FAILED, f"the supervisor failed: {type(failure).__name__}: {failure}")
            log.exception("the supervisor of system %r failed", self.name)
            if not isinstance(failure, Exception):
                raise
        finally:
            self._end()
            self._selector.close()
            self._wake.close()
            woken.close()
        return self.status or ExitStatus.OK

    def begin(self) -> None:
        """`run` is this, then `turn` again and again."""
        self._board.set(BoardCell.SUPERVISOR_PID, os.getpid())
        self._publish(events.SystemStarted(self.name, os.getpid(), tuple(child.name for child in self._children)))
        self._enter(WorkerState.STARTING)

    def turn(self) -> float | None:
        """Do everything that is due. Returns how long to wait for something to happen; None: the system has ended."""
        self._board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, self._clock())
        self._evidence.look()
        self._reaper.reap()
        self._take_requests()
        for child in self._children:
            self._look_at(child)
        if self.state is WorkerState.STOPPING:
            if not self._living():
                return None
            self._press()
        else:
            self._start_what_is_due()
        if self.state is WorkerState.DRAINING:
            self._drain()
        elif self.state is not WorkerState.STOPPING and all(child.over for child in self._children):
            self._begin_drain("every worker has ended")
        return self._longest_wait()

    def _longest_wait(self) -> float:
        if self._requests:
            return 0.0
        now = self._now()
        dues = [child.due - now for child in self._children if child.due is not None]
        wait = min([TICK, self._deadline - now, *dues])
        comes_up = any(not child.ready for child in self._living())
        if self.state is WorkerState.DRAINING or (comes_up and self.state is not WorkerState.STOPPING):
            wait = min(wait, self._look)
            self._look = min(self._look * 1.5, LONGEST_LOOK)
        if any(child.watch is not None and child.watch.suspicious for child in self._living()):
            wait = min(wait, CONFIRM)
        return max(0.0, wait)

    def _take_requests(self) -> None:
        for child in self._children:
            if self.state in {WorkerState.STARTING, WorkerState.RUNNING} and child.block.get(Field.STOP_REQUESTED):
                self._begin_drain(f"worker {child.name!r} asked for it")
        while self._requests:
            request, reason = self._requests.popleft()
            if request is _Request.DRAIN:
                if self.state in {WorkerState.STARTING, WorkerState.RUNNING}:
                    self._begin_drain(reason)
                continue
            grace = self._stop_timeout if request is _Request.STOP else self._stop_now_timeout
            if self.state is not WorkerState.STOPPING:
                self._conclude(ExitStatus.NOT_DRAINED, f"stopped before everything was handled: {reason}")
                self._begin_stop(grace)
            elif not self._pressed:
                self._deadline = min(self._deadline, self._now() + grace)

    # ------------------------------------------------------------------------------------------------ workers
    def _start_what_is_due(self) -> None:
        for child in self._children:
            if child.due is not None and child.due <= self._now():
                self._start(child)
            if self._requests:
                return  # looked at first; starting may take long when it fails

    def _start(self, child: Child) -> None:
        self._look = FIRST_LOOK
        try:
            process = child.launched_by(self._launch)
        except Exception as failure:
            log.debug("launch of worker %r failed", child.name, exc_info=True)
            full = isinstance(failure, OSError) and failure.errno == errno.ENOSPC
            why = f"could not be launched: {type(failure).__name__}: {failure}"
            self._died(child, Death(child.name, WorkerExit.NO_SPACE if full else None, None, False, why, child.was_up))
            return
        if self._selector is not None:
            self._selector.register(process.pidfd, selectors.EVENT_READ)
        self._publish(events.WorkerStarting(child.name, process.pid, child.suspect))

    def _look_at(self, child: Child) -> None:
        """Notice that it is up, or dead."""
        process = child.process
        if process is None:
            return
        if child.comes_up():
            self._publish(events.WorkerReady(child.name, process.pid, child.block.get(Field.EPOCH)))
            if not self._up and all(other.was_up for other in self._children):
                self._up = True
                if self.state is WorkerState.STARTING:
                    self._enter(WorkerState.RUNNING)
                self._publish(events.SystemReady(self.name))
                self._settled.set()
        hung = child.hangs(self._now(), self._limits[child.name], lambda: process_state(process.pid))
        if hung is not None and process.poll() is None:
            self._publish(events.WorkerKilled(child.name, process.pid, f"hung: {hung.reason}"))
            process.kill()
        code = process.poll()
        if code is not None:
            process.kill()  # what it started goes with it
            if self._selector is not None:
                self._selector.unregister(process.pidfd)
            requested = self.state is WorkerState.STOPPING
            ours = requested or child.killed or child.hung is not None
            memory = "" if ours or code != -signal.SIGKILL else self._evidence.of(process.pid, process.title)
            death = child.death(code, requested, memory, self._memory_bytes.get(child.name))
            child.process = None
            process.close()
            self._died(child, death, process.pid)

    def _died(self, child: Child, death: Death, pid: int | None = None) -> None:
        epoch = child.block.get(Field.EPOCH)
        blamed = child.bury(death)
        stopping = self.state is WorkerState.STOPPING
        if death.code == WorkerExit.STOPPED and not blamed:
            if not stopping:
                child.write_death(death, self._clock())
            self._publish(events.WorkerEnded(child.name, pid, death.reason))
            child.supervised_as(WorkerState.STOPPED)
        else:
            child.write_death(death, self._clock())
            self._publish(events.WorkerDied(child.name, pid, epoch, death.reason, blamed))
            if stopping:
                self._conclude(ExitStatus.FAILED, f"worker {child.name!r} did not stop cleanly: {death.reason}")
        if stopping:
            return
        now = self._now()
        decision, self._history = decide(child.spec, self._policy, self._history, death, now, self._random())
        match decision:
            case RestartAfter(delay):
                self._restart(child, now + delay, delay)
            case Finished():
                child.supervised_as(WorkerState.STOPPED)
            case GiveUp(reason, status):
                child.supervised_as(WorkerState.GAVE_UP)
                self._publish(events.WorkerGaveUp(child.name, reason))
                self._conclude(status, f"gave up on worker {child.name!r}: {reason}")
                self._begin_stop(self._stop_timeout)

    def _restart(self, dead: Child, due: float, delay: float) -> None:
        names = affected(self._policy.strategy, [child.name for child in self._children], dead.name)
        for child in self._children:
            if child.name in names:  # with other strategies, those of them who live are stopped here first
                child.due = due
                child.restarts += 1
                child.block.set(Field.RESTARTS, child.restarts)
                self._publish(events.WorkerRestarting(child.name, delay, child.restarts))

    # ------------------------------------------------------------------------------------------------ ending
    def _begin_drain(self, reason: str) -> None:
        self._enter(WorkerState.DRAINING, self._drain_timeout)
        self._publish(events.SystemDraining(self.name, reason))
        self._tell(Control.DRAIN)

    def _drain(self) -> None:
        """Ends with two looks in a row at which every worker has acknowledged and nothing is under way."""
        late = [child.name for child in self._children if not child.over and not child.drains]
        self._quiet_looks = self._quiet_looks + 1 if not late and self._quiet() else 0
        if self._quiet_looks >= 2:
            self._publish(events.SystemDrained(self.name))
            self._begin_stop(self._stop_timeout)
        elif not self._quiet_looks and all(child.over for child in self._children):
            self._conclude(ExitStatus.NOT_DRAINED, "every worker has ended, but not everything was handled")
            self._begin_stop(self._stop_timeout)
        elif self._now() >= self._deadline:
            who = f"; not reached: {', '.join(late)}" if late else ""
            self._conclude(ExitStatus.NOT_DRAINED, f"not everything was handled within {self._drain_timeout:g} s{who}")
            self._begin_stop(self._stop_timeout)

    def _begin_stop(self, grace: float) -> None:
        self._enter(WorkerState.STOPPING, grace)
        for child in self._children:
            child.due = None
        self._publish(events.SystemStopping(self.name, self.reason or "everything was handled"))
        self._tell(Control.STOP)

    def _press(self) -> None:
        """Kill who has not stopped in time."""
        if self._now() < self._deadline:
            return
        if self._pressed:
            names = ", ".join(repr(child.name) for child in self._living())
            raise RuntimeError(f"still not dead {UNKILLABLE:g} s after SIGKILL: {names}")
        self._pressed = True
        self._deadline = self._now() + UNKILLABLE
        for child in self._living():
            if child.process is not None:
                child.killed = True
                self._conclude(ExitStatus.FAILED, f"worker {child.name!r} did not stop in time and was killed")
                self._publish(events.WorkerKilled(child.name, child.process.pid, "it did not stop in time"))
                child.process.kill()

    def _end(self) -> None:
        """Whatever happened: no process stays, and everyone learns that it is over."""
        processes = [child.process for child in self._children if child.process is not None]
        for process in processes:
            process.kill()
        deadline = time.monotonic() + UNKILLABLE
        for process in processes:
            dead = select.poll()
            dead.register(process.pidfd, select.POLLIN)
            dead.poll(max(0.0, deadline - time.monotonic()) * 1000)
            process.close()
        self._evidence.close()
        self._conclude(ExitStatus.OK, "everything was handled")
        self._enter(WorkerState.STOPPED)
        self._publish(events.SystemStopped(self.name, self.status or ExitStatus.OK, self.reason))
        self._settled.set()

    def _living(self) -> list[Child]:
        return [child for child in self._children if child.process is not None]

    def _tell(self, control: Control) -> None:
        for child in self._children:
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
