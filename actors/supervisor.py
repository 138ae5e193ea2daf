"""The supervisor: starts the workers, restarts those that die, drains and stops the system. One thread, one loop.

Whom to start, restart and end, when, and in which order is decided by `supervision`, which is pure; here it is done.

What holds:
- A worker is started again only when its process is proven dead. A launch that fails is a death like any other, so it
  backs off, and a request to stop is looked at before it is tried again.
- At each death the message in progress is taken from the worker's status block. If the death was not requested, and the
  worker did not name another cause, this message is the suspect: every launch is told of it until one incarnation has
  taken it over, which it shows by its new epoch.
- The first request drains: sources stop, and once every worker has acknowledged that and nothing is under way (two
  looks in a row), the workers are told to stop, the last one first, each with the time that its child spec gives it. A
  request to stop now tells all of them at once; who has not ended after a grace is killed. The status is OK only if
  everything was handled, nothing was given up, and every worker ended as its child spec says.
- When the root gives up, everyone is stopped, and the system ends. A group that gives up and is not to be restarted
  stays down, the others go on, and the status at the end tells of it.
- When everyone has been up for a moment, a spare process is made for the next start, and looked after.
- Deaths and requests wake the loop; every wait is bounded. Requests may come from signal handlers and any thread.
"""

from __future__ import annotations

import errno
import logging
import os
import random as randomness
import select
import selectors
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from actors import events, hang
from actors.child import Child, Launch, Process
from actors.evidence import process_state
from actors.exits import ExitStatus, WorkerExit
from actors.plan import Group
from actors.requests import Request, Requests
from actors.restart import ChildSpec, Death, Ending, Policy
from actors.supervision import (
    Action,
    Ended,
    GroupGaveUp,
    Kill,
    LetIn,
    Outcome,
    Restarting,
    Supervision,
    SystemGaveUp,
    Tell,
    one_group,
)
from actors.supervision import (
    Launch as LaunchIt,
)
from actors.watching import Watching
from bus import Board, BoardCell, Control, Field, Pause, WorkerState

TICK = 0.5  # seconds; an idle supervisor looks around this often
SPARE_AFTER = 0.05  # seconds after everyone is up, who may need the processors first
FIRST_LOOK, LONGEST_LOOK = 0.001, 0.05  # while something is awaited that nobody reports; the waits grow
UNKILLABLE = 10.0  # seconds after SIGKILL until a process that is not dead is an error

log = logging.getLogger("ringleader")


_WORKING = {WorkerState.STARTING, WorkerState.RUNNING}


class Supervisor(Requests):
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
        groups: Sequence[Group] | None = None,
        observer: events.Observer | None = None,
        limits: Mapping[str, hang.Limits] | None = None,
        memory_bytes: Mapping[str, int | None] | None = None,
        beat: Callable[[], None] | None = None,
        recount: Callable[[str], None] | None = None,
        spare: Callable[[], None] | None = None,
        suspects: Mapping[str, tuple[int, int]] | None = None,
        drain_timeout: float = 30.0,
        stop_now_timeout: float = 1.0,
        letter: Callable[[int], str] = process_state,
        clock: Callable[[], int] = time.monotonic_ns,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        super().__init__(tuple(spec.name for spec in specs))
        self.name = name
        self.state = WorkerState.NEW
        self.status: ExitStatus | None = None  # how it ends, as soon as that is known
        self.reason = ""
        self._tree = Supervision(specs, groups or one_group(specs, policy), policy)
        self._board, self._launch, self._quiet, self._observer, self._beat = board, launch, quiet, observer, beat
        self._drain_timeout, self._stop_now_timeout = drain_timeout, stop_now_timeout
        self._recount, self._spare = recount, spare
        self._spare_due: float | None = None
        self._clock, self._random = clock, random
        self._watching = Watching(specs, limits, memory_bytes, letter)
        self._children = {name: Child(seat.spec, board.block(name)) for name, seat in self._tree.seats.items()}
        for worker, suspect in (suspects or {}).items():
            self._children[worker].suspect = suspect
        self._control = Control.RUN  # what everyone is told who is not told something of his own
        self._selector: selectors.BaseSelector | None = None
        self._settled = threading.Event()
        self._up = False
        self._deadline = float("inf")  # of the state the system is in
        self._quiet_looks = 0
        self._look = FIRST_LOOK

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until every worker was up once. False if the system ended before that, or the time is over."""
        self._settled.wait(timeout)
        return self._up

    def process(self, worker: str) -> Process | None:
        """The process that a worker has just now; it may end at any moment."""
        return self._children[worker].process

    # ------------------------------------------------------------------------------------------------ the loop
    def run(self) -> ExitStatus:
        """Supervise until the system has ended. To be called once."""
        self._selector = selectors.DefaultSelector()
        woken = self.listen()
        self._selector.register(woken, selectors.EVENT_READ)
        try:
            self.begin()
            while (wait := self.turn()) is not None:
                self._selector.select(wait)
                self.hear()
        except BaseException as failure:
            self._conclude(ExitStatus.FAILED, f"the supervisor failed: {type(failure).__name__}: {failure}")
            log.exception("the supervisor of system %r failed", self.name)
            if not isinstance(failure, Exception):
                raise
        finally:
            self._end()
            self._selector.close()
            self.deafen()
        return self.status or ExitStatus.OK

    def begin(self) -> None:
        """`run` is this, then `turn` again and again."""
        self._board.set(BoardCell.SUPERVISOR_PID, os.getpid())
        self._publish(events.SystemStarted(self.name, os.getpid(), tuple(self._children)))
        self._enter(WorkerState.STARTING)

    def turn(self) -> float | None:
        """Do everything that is due. Returns how long to wait for something to happen; None: the system has ended."""
        self._board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, self._clock())
        if self._beat is not None:
            self._beat()
        self._watching.look()
        self._take_requests()
        for child in self._children.values():
            self._look_at(child)
        if not self._up and self.state is not WorkerState.STOPPING:
            self._note_up()
        if self.state is WorkerState.DRAINING:
            self._drain()
        elif self.state in _WORKING and all(seat.over for seat in self._tree.seats.values()):
            self._begin_drain("every worker has ended")
        while self.idle and (action := self._tree.next(self._now())) is not None:
            self._do(action)
        if self.state is WorkerState.STOPPING:
            if not self._living():
                return None
            self._check_killed()
        self._keep_spare()
        return self._longest_wait()

    def _keep_spare(self) -> None:
        if self._spare is None:
            return
        calm = self.state is WorkerState.RUNNING and all(child.ready for child in self._living())
        if not calm:
            self._spare_due = None
        elif self._spare_due is None:
            self._spare_due = self._now() + SPARE_AFTER
        elif self._now() >= self._spare_due:
            self._spare()

    def _longest_wait(self) -> float:
        if not self.idle:
            return 0.0
        now = self._now()
        wait = min(TICK, self._deadline - now, self._tree.next_time() - now)
        if self._spare_due is not None and self._spare_due > now:
            wait = min(wait, self._spare_due - now)
        if any(child.watch is not None and child.watch.suspicious for child in self._living()):
            wait = min(wait, hang.CONFIRM)
        comes_up = any(not child.ready for child in self._living())
        if self.state is WorkerState.DRAINING or (comes_up and self.state is not WorkerState.STOPPING):
            wait = min(wait, self._look)
            self._look = min(self._look * 1.5, LONGEST_LOOK)
        return max(0.0, wait)

    def _take_requests(self) -> None:
        for child in self._children.values():
            if self.state in _WORKING and child.block.get(Field.STOP_REQUESTED):
                self._begin_drain(f"worker {child.name!r} asked for it")
        while not self.idle:
            request, worker, reason = self.take()
            match request:
                case Request.DRAIN:
                    if self.state in _WORKING:
                        self._begin_drain(reason)
                case Request.STOP | Request.STOP_NOW:
                    if self.state is not WorkerState.STOPPING:
                        self._conclude(ExitStatus.NOT_DRAINED, f"stopped before everything was handled: {reason}")
                        self._begin_stop()
                    if request is Request.STOP_NOW:
                        self._tree.stop_now(self._now(), self._stop_now_timeout)
                case _:
                    if self.state is not WorkerState.STOPPING:
                        self._take_worker_request(request, self._children[worker], reason)

    def _take_worker_request(self, request: Request, child: Child, reason: str) -> None:
        match request:
            case Request.RESTART:
                self._tree.restart(child.name, self._now())
                self._comes_again(child, 0.0)
                if child.process is not None:
                    self._publish(events.WorkerLeaving(child.name, f"a restart was asked for ({reason})"))
            case Request.PAUSE:
                child.pause(Pause.PAUSE)
            case Request.DRAIN_WORKER:
                child.pause(Pause.DRAIN)
            case Request.RESUME:
                child.pause(Pause.RUN)

    # ------------------------------------------------------------------------------------------------ workers
    def _do(self, action: Action) -> None:
        child = self._children[action.name]
        self._look = FIRST_LOOK
        match action:
            case LaunchIt():
                self._start(child)
            case LetIn():
                child.block.set(Field.GATE, 1)
                child.block.doorbell.ring()
            case Tell():
                child.tell(Control.STOP if self._tree.stopping else Control.LEAVE)
            case Kill(_, reason, wanted):
                self._kill(child, reason, wanted)

    def _kill(self, child: Child, reason: str, wanted: bool = False) -> None:
        if child.process is None:
            return
        if self._tree.stopping and not wanted:
            self._conclude(ExitStatus.FAILED, f"worker {child.name!r} was killed: {reason}")
        child.late = self._tree.seats[child.name].late
        self._publish(events.WorkerKilled(child.name, child.process.pid, reason))
        child.kill(reason, self._now())

    def _start(self, child: Child) -> None:
        try:
            child.block.set(Field.CONTROL, self._control)
            process = child.launched_by(self._launch, let_in=self._tree.may_enter(child.name))
        except Exception as failure:
            log.debug("launch of worker %r failed", child.name, exc_info=True)
            full = isinstance(failure, OSError) and failure.errno == errno.ENOSPC
            why = f"could not be launched: {type(failure).__name__}: {failure}"
            self._died(child, Death(child.name, WorkerExit.NO_SPACE if full else None, None, False, why, child.was_up))
            return
        # failpoint: worker-launched
        if self._selector is not None:
            self._selector.register(process.pidfd, selectors.EVENT_READ)
        self._watching.begin(child)
        self._publish(events.WorkerStarting(child.name, process.pid, child.suspect))

    def _look_at(self, child: Child) -> None:
        """Notice that it has recovered, is up, or dead."""
        process = child.process
        if process is None:
            return
        if child.waits():
            self._tree.recovered(child.name, self._now())
        if child.comes_up():
            self._tree.up(child.name, self._now())
            self._publish(events.WorkerReady(child.name, process.pid, child.block.get(Field.EPOCH)))
        code = process.poll()
        if code is None:
            self._look_for_end(child)
            self._look_for_hang(child, process)
        else:
            # failpoint: death-seen
            process.kill()  # what it started goes with it
            leaving = self._tree.seats[child.name].leaving
            asked = leaving is not None and leaving.deadline is not None and not leaving.own
            death = self._watching.death(child, process, code, asked)
            if self._selector is not None:
                self._selector.unregister(process.pidfd)
            process.close()
            child.process = None
            self._died(child, death, process.pid)

    def _look_for_end(self, child: Child) -> None:
        """One that ends by itself has as long for it as one that is told to."""
        if child.block.get(Field.STATE) == WorkerState.STOPPING:
            self._tree.ends_itself(child.name, self._now())
        else:
            self._tree.goes_on(child.name)

    def _look_for_hang(self, child: Child, process: Process) -> None:
        hung = None if self.state is WorkerState.STOPPING else self._watching.hung(child, process, self._now())
        if hung is not None:
            reason = f"hung: {hung.reason}"
            self._publish(events.WorkerKilled(child.name, process.pid, reason))
            child.kill(reason, self._now(), innocent=not hung.blames)

    def _note_up(self) -> None:
        """The system is up when everyone was, but for those who may stay away and do."""
        children = self._children.values()
        if all(child.was_up or self._tree.seats[child.name].over for child in children) and any(
            child.was_up for child in children
        ):
            self._up = True
            if self.state is WorkerState.STARTING:
                self._enter(WorkerState.RUNNING)
            self._publish(events.SystemReady(self.name))
            self._settled.set()

    def _died(self, child: Child, death: Death, pid: int | None = None) -> None:
        epoch, at_risk = child.block.get(Field.EPOCH), child.block.get(Field.AT_RISK)
        blamed = child.bury(death)
        # failpoint: death-buried
        stopping = self._tree.stopping
        clean = death.code == WorkerExit.STOPPED and not blamed
        brutal = death.requested and child.spec.shutdown == 0
        if clean or brutal:
            child.clear_words()
            self._publish(events.WorkerEnded(child.name, pid, death.reason))
            child.supervised_as(WorkerState.STOPPED)
        else:
            child.write_death(death, self._clock())
            message = events.message_id(blamed, self._board.names)
            self._publish(events.WorkerDied(child.name, pid, epoch, death.reason, blamed, message))
            if stopping:
                self._conclude(ExitStatus.FAILED, f"worker {child.name!r} did not stop cleanly: {death.reason}")
        if at_risk and not stopping:
            what = f"worker {child.name!r} took messages along that had found no room yet (level memory)"
            self._publish(events.Alarm(child.name, what))
            self._conclude(ExitStatus.FAILED, what)
        for outcome in self._tree.died(death, self._now(), self._random()):
            # failpoint: restart-decided
            self._note(child, death, outcome)

    def _note(self, dead: Child, death: Death, outcome: Outcome) -> None:
        """What the death of this worker leads to."""
        match outcome:
            case Restarting(names, delay, stopped):
                for name in stopped:
                    self._publish(events.WorkerLeaving(name, f"worker {dead.name!r} died"))
                for name in names:
                    self._comes_again(self._children[name], delay)
            case Ended(name):
                for leaf in self._tree.leaves(name):
                    seat, child = self._tree.seats[leaf], self._children[leaf]
                    if child.process is None:
                        child.supervised_as(WorkerState.GAVE_UP if seat.gave_up else WorkerState.STOPPED)
                if name not in self._children:
                    self._conclude(ExitStatus.GAVE_UP, f"group {name!r} was given up, the others went on to their end")
                elif death.ending in {Ending.EXCEPTION, Ending.SIGNAL}:
                    self._conclude(ExitStatus.GAVE_UP, f"worker {name!r} died and is temporary: {death.reason}")
            case GroupGaveUp(group, workers, reason):
                self._publish(events.GroupGaveUp(group, workers, reason))
            case SystemGaveUp(reason, status):
                dead.supervised_as(WorkerState.GAVE_UP)
                self._publish(events.WorkerGaveUp(dead.name, reason))
                self._conclude(status, f"gave up on worker {dead.name!r}: {reason}")
                self._begin_stop()

    def _comes_again(self, child: Child, delay: float) -> None:
        if child.process is not None:
            child.supervised_as(WorkerState.STOPPING)
        child.restarts += 1
        child.block.set(Field.RESTARTS, child.restarts)
        self._publish(events.WorkerRestarting(child.name, delay, child.restarts))

    # ------------------------------------------------------------------------------------------------ ending
    def _begin_drain(self, reason: str) -> None:
        self._enter(WorkerState.DRAINING, self._drain_timeout)
        self._publish(events.SystemDraining(self.name, reason))
        self._control = Control.DRAIN
        for child in self._children.values():
            child.pause(Pause.RUN)  # everything is to be handled
            if self._tree.seats[child.name].leaving is None:
                child.tell(Control.DRAIN)

    def _drain(self) -> None:
        """Ends with two looks in a row at which every worker that lives has acknowledged and nothing is under way: one
        that is down is not waited for, unless something is pending for it."""
        for child in self._children.values():
            if child.process is None and not child.recounted:
                child.recounted = True
                if self._recount is not None:
                    self._recount(child.name)
        late = [child.name for child in self._living() if not child.drains]
        self._quiet_looks = self._quiet_looks + 1 if not late and self._quiet() else 0
        if self._quiet_looks >= 2:
            self._publish(events.SystemDrained(self.name))
            self._begin_stop()
        elif not self._quiet_looks and all(seat.over for seat in self._tree.seats.values()):
            self._conclude(ExitStatus.NOT_DRAINED, "every worker has ended, but not everything was handled")
            self._begin_stop()
        elif self._now() >= self._deadline:
            who = f"; not reached: {', '.join(late)}" if late else ""
            self._conclude(ExitStatus.NOT_DRAINED, f"not everything was handled within {self._drain_timeout:g} s{who}")
            self._begin_stop()

    def _begin_stop(self) -> None:
        self._enter(WorkerState.STOPPING)
        self._publish(events.SystemStopping(self.name, self.reason or "everything was handled"))
        self._tree.stop()

    def _check_killed(self) -> None:
        since = self._now() - UNKILLABLE
        names = ", ".join(repr(child.name) for child in self._living() if child.killed_at < since)
        if names:
            raise RuntimeError(f"still not dead {UNKILLABLE:g} s after SIGKILL: {names}")

    def _end(self) -> None:
        """Whatever happened: no process stays, and everyone learns that it is over."""
        processes = [child.process for child in self._children.values() if child.process is not None]
        for process in processes:
            process.kill()
        deadline = time.monotonic() + UNKILLABLE
        for process in processes:
            dead = select.poll()
            dead.register(process.pidfd, select.POLLIN)
            dead.poll(max(0.0, deadline - time.monotonic()) * 1000)
            process.close()
        self._watching.close()
        letters = sum(child.block.get(Field.DEAD_LETTERS) for child in self._children.values())
        told = f", but for {letters} dead letter{'s'[: letters != 1]}" if letters else ""
        self._conclude(ExitStatus.OK, f"everything was handled{told}")
        self._enter(WorkerState.STOPPED)
        self._publish(events.SystemStopped(self.name, self.status or ExitStatus.OK, self.reason))
        self._settled.set()

    def _living(self) -> list[Child]:
        return [child for child in self._children.values() if child.process is not None]

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
