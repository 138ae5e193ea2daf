"""A running system: what `Topology.start` returns and `Topology.run` waits for.

Starting, in this order, so that every failure is a clear error and leaves nothing behind: the plan, the lock on the run
directory, the segments of a dead predecessor, the segments, the gateway's journal, the supervisor, the workers.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from actors.accounts import Accounts
from actors.control_commands import SystemCommands, registry_of
from actors.control_protocol import FAILED, Refused
from actors.control_socket import ControlServer
from actors.dead_letters import LetterChange, LetterPlace
from actors.events import Observer
from actors.exits import ExitStatus
from actors.gateway import Gateway
from actors.hang import limits_of
from actors.housekeeping import Housekeeping
from actors.identity import Exit, WorkerEnd, stale_prefix
from actors.letters_running import change_running
from actors.letters_running import serve as serve_letters
from actors.log_collect import Collector
from actors.log_file import LogFile
from actors.log_worker import Levels
from actors.opened import open_first, opening_of
from actors.pause_request import COMMANDS, PauseRequest, Standing, told_to
from actors.plan import GATEWAY, Plan
from actors.predecessor import take_over
from actors.process import WorkerProcess, drop_spare, keep_spare, start_forkserver
from actors.reply_types import reply_class
from actors.restart import Policy
from actors.resume import Names
from actors.rundir import RunDirectory
from actors.stacks import stacks
from actors.supervisor import FIRST_LOOK, LONGEST_LOOK, Supervisor
from actors.system_errors import BadReply, Overridden, StartFailed, SystemClosed
from actors.user_account import accounts_of
from actors.wiring import Wires, attach_board, attach_ring, connect, create_segments, open_claims
from actors.worker import Boot, main, make_endpoint, open_journal, snapshot
from bus import Block, Field, Segment, Text, WorkerState, remove_stale

if TYPE_CHECKING:
    from actors.letter_commands import Action
    from actors.status import SystemStatus

READY_TIMEOUT = 60.0
R = TypeVar("R")


class System:
    """A handle on a running system, for the program that started it. Any thread may use it; also a context manager."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        observer: Observer | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        self.plan = plan
        self._ended = threading.Event()
        self._status = ExitStatus.FAILED
        self._failure: BaseException | None = None
        self._attempts: dict[str, dict[tuple[int, int], int]] = {}
        self._suspects: dict[str, int] = {}
        self._wires = Wires()
        self._segments: list[Segment] = []
        self._users = accounts_of(plan)
        self._directory = RunDirectory.open(directory)
        try:
            self._directory.lock()
            # failpoint: run-locked
            with suppress(OSError):  # whoever needs it tries again, and tells
                start_forkserver(plan.imports)  # it imports while the rest is made
            taken = take_over(self._directory, plan, self._users)
            self._identity, self._session, self._left_suspects = taken
            plan = self.plan = plan.with_rings(self._identity.rings)
            self._segments = create_segments(plan, self._identity.run_id)
            # failpoint: segments-created
            self._board = attach_board(self._identity.run_id, self._wires)
            for name, left in self._left_suspects.items():
                # By it the next incarnation sees whether the attempt was counted already (`worker.open_journal`).
                self._board.block(name).set(Field.EPOCH, left.epoch)
                self._board.block(name).set(Field.BUSY_MANY, left.many)
            self._blocks = [self._board.block(worker.name) for worker in plan.workers]
            views = [attach_ring(self._identity.run_id, edge, self._wires) for edge in plan.edges]
            self._accounts = Accounts(plan, self._directory, self._board, views)
            self._gateway = self._open_gateway()
            # failpoint: gateway-opened
            self._logs = Collector(plan.name, LogFile(self._directory.duplicate(), plan.limits.log_bytes))
            self._wires.undo.append(self._logs.close)
            self._supervisor = self._make_supervisor(self._logs.observer(observer), beat)
            self._control = self._make_control()
        except BaseException:
            self._give_back()
            raise
        self._thread = threading.Thread(target=self._supervise, name="ringleader-supervisor", daemon=True)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def reason(self) -> str:
        """Why the system ended, or ends."""
        return self._supervisor.reason

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._directory.path

    # ------------------------------------------------------------------------------------------------ for the user
    def send(self, handler: str, message: object, timeout: float | None = 30.0) -> None:
        """Sends to a handler by name. Durable at the topology's level when this returns; takes effect exactly once.

        Raises UnknownHandler, BadMessage or MessageTooLarge before anything is sent, SendTimeout when there was no room
        within `timeout` seconds (None: waits for ever), SystemClosed when the system is stopping.
        """
        self._gateway.send(handler, message, timeout)

    @overload
    def ask(self, handler: str, message: object, timeout: float = 30.0, *, reply: type[R]) -> R: ...

    @overload
    def ask(self, handler: str, message: object, timeout: float = 30.0) -> Any: ...

    def ask(self, handler: str, message: object, timeout: float = 30.0, *, reply: type[R] | None = None) -> Any:
        """Sends, and returns what the handler answers by `self.reply`, which must be a `reply` if that is given.

        Raises AskTimeout (the message stays sent), AskFailed when the message became a dead letter, BadReply when the
        answer is of another type or its type is not known here, and as `send`.
        """
        answer = self._gateway.ask(handler, message, timeout, reply)
        if reply is not None and not isinstance(answer, reply):
            raise BadReply(type(answer).__qualname__, reply.__qualname__)
        return answer

    def status(self) -> SystemStatus:
        """What `ringleader status` shows, as an object."""
        from actors.status import read_status

        return read_status(self.directory)

    def requeue_dead_letters(
        self, letters: Iterable[tuple[str, str, int]], timeout: float = 30.0
    ) -> list[LetterChange]:
        """Has dead letters, each named by (worker, peer, sequence number), handled again: as new messages of the worker
        to itself, exactly once, with all attempts before them. Tells of each what has become of it, in the same order.

        Where a worker has not answered in time, that is the letter's `problem`: it will take effect all the same.
        """
        return self._change_letters("requeue", letters, timeout)

    def drop_dead_letters(self, letters: Iterable[tuple[str, str, int]], timeout: float = 30.0) -> list[LetterChange]:
        """Forgets dead letters for good; otherwise as `requeue_dead_letters`."""
        return self._change_letters("drop", letters, timeout)

    def _change_letters(
        self, action: Action, letters: Iterable[tuple[str, str, int]], timeout: float
    ) -> list[LetterChange]:
        places = [LetterPlace(*letter) for letter in letters]
        return change_running(self.plan, self._gateway, action, places, timeout)

    def stop(self, drain: bool = True, timeout: float | None = None) -> ExitStatus:
        """Ends the system: handles what is under way (`drain`), stops the workers. Returns the exit status.

        Stopping twice is fine. Without `drain`, what is pending waits in the journals for the next start.
        """
        self._supervisor.request_stop(drain=drain)
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> ExitStatus:
        """Waits until the system has ended. Raises TimeoutError if it has not within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended.is_set():
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"system {self.name!r} has not ended within {timeout} s")
            self._ended.wait(left)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._status

    def restart(self, worker: str, timeout: float = 60.0) -> None:
        """Ends this worker between two transactions, starts it anew, and returns when the new incarnation is up.

        Also for one that had ended or was given up. It takes nothing from anybody and counts against no limit; at level
        `memory` the state of its handlers is lost. Raises UnknownWorker, SystemClosed, and TimeoutError.
        """
        restarts = self._board.block(worker).get(Field.RESTARTS) if worker in self._board.names else 0
        self._supervisor.request_restart(worker)
        block = self._board.block(worker)

        def is_back() -> bool:
            return block.get(Field.RESTARTS) > restarts and block.get(Field.SUPERVISED_STATE) == WorkerState.RUNNING

        self._await(is_back, f"worker {worker!r} has not come up again", timeout)

    def pause(self, worker: str, timeout: float = 60.0) -> None:
        """Returns when this worker handles nothing any more; messages to it wait, for `resume`. Raises as `restart`,
        and Overridden when something else was asked for meanwhile; so do those below."""
        request = self._supervisor.request_pause(worker)
        self._await(lambda: self._paused(worker, request), f"worker {worker!r} has not paused", timeout)

    def drain(self, worker: str, timeout: float = 60.0) -> None:
        """The same, once it has handled what was sent to it until now; its sources are not called any more."""
        request = self._supervisor.request_drain_worker(worker)
        self._await(lambda: self._paused(worker, request), f"worker {worker!r} has not drained", timeout)

    def resume(self, worker: str, timeout: float = 60.0) -> None:
        """Returns when this worker handles messages again."""
        request = self._supervisor.request_resume(worker)
        self._await(lambda: self._paused(worker, request), f"worker {worker!r} has not resumed", timeout)

    def _paused(self, worker: str, request: PauseRequest) -> bool:
        """Whether it has come about."""
        block = self._board.block(worker)
        told = block.get(Field.PAUSE)
        standing = request.standing(told, block.get(Field.PAUSED))
        if standing is Standing.OVERRIDDEN:
            raise Overridden(worker, COMMANDS[request.asked], told_to(told))
        return standing is Standing.DONE

    def _await(self, state: Callable[[], bool], what: str, timeout: float) -> None:
        deadline, pause = time.monotonic() + timeout, FIRST_LOOK
        while True:
            if self._ended.wait(pause) or self._supervisor.state >= WorkerState.DRAINING:
                raise SystemClosed(self.name)
            if self._supervisor.idle and state():
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{what} within {timeout:g} s")
            pause = min(pause * 1.5, LONGEST_LOOK)

    def block(self, worker: str) -> Block:
        """The status block of a worker (or of the gateway), as it changes. Read only."""
        return self._board.block(worker)

    def request_stop(self) -> None:
        """What the first SIGINT or SIGTERM does: drain, then end. May be called from a signal handler."""
        self._supervisor.request_stop(drain=True)

    def request_stop_now(self) -> None:
        """What the second one does."""
        self._supervisor.request_stop_now()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(drain=kind is None)

    # ------------------------------------------------------------------------------------------------ starting
    def start(self, timeout: float = READY_TIMEOUT) -> Self:
        """Starts everything and returns when every worker is up. Raises StartFailed, and nothing runs then."""
        self._logs.start()
        self._thread.start()
        self._gateway.start()
        self._control.start()
        if not self._supervisor.wait_ready(timeout):
            if not self._ended.is_set():
                self._supervisor.request_stop_now()
            status = self.join()
            if status is ExitStatus.OK:
                return self  # a stop was asked for meanwhile
            raise StartFailed(self.name, int(status), self._supervisor.reason)
        return self

    def _open_gateway(self) -> Gateway:
        plan, run_id = self.plan, self._identity.run_id
        block = self._board.block(GATEWAY)
        endpoint = make_endpoint(plan, GATEWAY, block)
        connect(endpoint, plan, GATEWAY, run_id, self._board, self._wires)
        names = Names(plan, GATEWAY)
        directory = self._directory.path if plan.level == "memory" else self._directory.journal(GATEWAY)
        journal, recovered = open_journal(plan, names, directory, 0, None, endpoint)
        if journal is not None:
            self._wires.undo.append(journal.close)
        house = Housekeeping(endpoint, lambda: snapshot(names, endpoint, None, self._session))
        endpoint.epoch = 1 if journal is None else journal.epoch
        endpoint.claims = open_claims(plan, GATEWAY, run_id, directory, endpoint.epoch)
        self._wires.undo.append(endpoint.claims.close)
        block.set(Field.EPOCH, endpoint.epoch)
        block.set(Field.PID, os.getpid())
        block.set(Field.STATE, WorkerState.RUNNING)
        block.set(Field.STARTED_NS, time.monotonic_ns())
        endpoint.resume(journal, recovered)
        return Gateway(plan, endpoint, house, lambda name: reply_class(plan, name))

    def _make_supervisor(self, observer: Observer | None, beat: Callable[[], None] | None) -> Supervisor:
        limits = self.plan.limits
        return Supervisor(
            self.plan.name,
            [worker.child for worker in self.plan.workers],
            Policy(
                max_restarts=limits.max_restarts,
                period=limits.restart_period,
                backoff_step=limits.backoff_first,
                backoff_max=limits.backoff_max,
            ),
            self._board,
            self._launch,
            quiet=self._quiet,
            groups=self.plan.groups,
            limits={worker.name: limits_of(self.plan, worker.name) for worker in self.plan.workers},
            memory_bytes={worker.name: worker.process.memory_bytes for worker in self.plan.workers},
            drain_timeout=limits.drain_timeout,
            observer=observer,
            beat=beat,
            recount=self._accounts.recount,
            spare=keep_spare,
            suspects={worker: (one.peer, one.seq) for worker, one in self._left_suspects.items()},
        )

    def _make_control(self) -> ControlServer:
        workers = [worker.name for worker in self.plan.workers]
        commands = SystemCommands(
            self.name, self._identity.run_id, workers, self._board, self._supervisor, self._stacks_of
        )
        registry = registry_of(commands)
        serve_letters(registry, self._change_letters)
        return ControlServer(self._directory, registry)

    def _stacks_of(self, worker: str) -> str:
        process = self._supervisor.process(worker)
        if not isinstance(process, WorkerProcess):
            raise Refused(FAILED, f"{worker}: has no process now")
        return stacks(process)

    def _launch(self, name: str, epoch_floor: int, suspect: tuple[int, int] | None) -> WorkerProcess:
        attempts: dict[tuple[int, int], int] = {}
        if self.plan.level == "memory":
            # No journal counts them there.
            attempts = self._attempts.setdefault(name, {})
            if suspect is not None:
                alone = not self._board.block(name).get(Field.BUSY_MANY)
                attempts[suspect] = attempts.get(suspect, 0) + alone
        boot = Boot(
            plan=self.plan,
            worker=name,
            run_id=self._identity.run_id,
            journal="" if self.plan.level == "memory" else str(self._directory.journal(name)),
            session=self._session,
            epoch=epoch_floor,
            suspect=suspect,
            attempts=attempts,
            careful=suspect is None and self._board.block(name).get(Field.DEATHS) > 0,
        )
        account = self._users.get(name)
        first = None
        if account is not None:
            opening = opening_of(self.plan, name, self._identity.run_id, boot.journal, account.uid)
            first = partial(open_first, opening)
        self._tell_dropped(name)
        with self._logs.channel(name) as log:
            return WorkerProcess.start(
                main,
                (pickle.dumps(boot, pickle.HIGHEST_PROTOCOL), Levels.of_program()),
                f"ringleader: {self.name}/{name}",
                pass_fds=[log],
                options=self.plan.worker(name).process,
                run_as=account,
                first=first,
            )

    def _tell_dropped(self, worker: str) -> None:
        """Of log records, by an incarnation that is dead and could not tell it any more."""
        block = self._board.block(worker)
        if dropped := block.get(Field.LOG_DROPPED):
            block.set(Field.LOG_DROPPED, 0)
            self._logs.lost(worker, dropped)

    # ------------------------------------------------------------------------------------------------ ending
    def _quiet(self) -> bool:
        self._gateway.refuse()
        return self._accounts.quiet()

    def _supervise(self) -> None:
        try:
            self._status = ExitStatus(self._supervisor.run())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._end()

    def _end(self) -> None:
        """Each step whatever became of the one before: nothing may stay, and nobody may wait for ever."""
        # The end is on record before the socket goes: whoever finds nobody there knows why.
        steps = (
            drop_spare,
            self._gateway.close,
            self._record_end,
            self._control.close,
            self._tell_all_dropped,
            self._logs.close,
            self._give_back,
        )
        for step in steps:
            try:
                step()
            except Exception as failure:
                self._failure = self._failure or failure
        self._ended.set()

    def _tell_all_dropped(self) -> None:
        for worker in self.plan.workers:
            self._tell_dropped(worker.name)

    def _record_end(self) -> None:
        self._directory.write_exit(
            Exit(
                run_id=self._identity.run_id,
                status=int(self._status),
                reason=self._supervisor.reason,
                ended_ns=time.time_ns(),
                workers={
                    worker.name: WorkerEnd(
                        block.get(Field.RESTARTS),
                        block.text(Text.LAST_DEATH),
                        block.get(Field.DEATHS),
                        block.get(Field.SUPERVISED_STATE) == WorkerState.GAVE_UP,
                        block.get(Field.DEAD_LETTERS),
                    )
                    for worker, block in zip(self.plan.workers, self._blocks, strict=True)
                },
                pending=self._accounts.pending(sure=self._status is ExitStatus.OK),
            )
        )

    def _give_back(self) -> None:
        """Segments and lock; whatever happened before, none of them stays."""
        self._wires.close()
        for segment in self._segments:
            segment.close()
            segment.unlink()
        if self.plan.level == "memory":
            remove_stale(stale_prefix(self._identity))  # claims: nobody is left to look at them
        self._directory.close()
