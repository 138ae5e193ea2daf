"""A running system: what `Topology.start` returns and `Topology.run` waits for.

Starting, in this order, so that every failure is a clear error and leaves nothing behind: the plan, the lock on the run
directory, the segments of a dead predecessor, the segments, the gateway's journal, the supervisor, the workers.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import cloudpickle
import msgspec

from actors.events import Observer
from actors.exits import ExitStatus
from actors.gateway import Gateway
from actors.hang import limits_of
from actors.housekeeping import Housekeeping
from actors.identity import EdgeIdentity, Exit, Identity, WorkerEnd, new_identity, stale_prefix
from actors.message import Message
from actors.plan import GATEWAY, Plan
from actors.process import WorkerProcess
from actors.replies import type_key
from actors.restart import Policy
from actors.resume import Names
from actors.rundir import RunDirectory
from actors.supervisor import Supervisor
from actors.system_errors import BadReply, StartFailed
from actors.takeover import Move, carry, moves
from actors.wiring import Wires, attach_board, attach_ring, board_name, connect, create_segments, ring_name
from actors.worker import Boot, main, make_endpoint, open_journal, snapshot
from bus import Block, Cell, Field, Segment, Text, WorkerState
from bus.segment import remove_stale
from persist import Journal, Recovered, Snapshot, read

if TYPE_CHECKING:
    from actors.status import SystemStatus

READY_TIMEOUT = 60.0
R = TypeVar("R", bound=Message)


class System:
    """A handle on a running system, for the program that started it. Any thread may use it; also a context manager."""

    def __init__(self, plan: Plan, directory: Path, observer: Observer | None = None) -> None:
        self.plan = plan
        self._ended = threading.Event()
        self._status = ExitStatus.FAILED
        self._failure: BaseException | None = None
        self._attempts: dict[str, dict[tuple[int, int], int]] = {}
        self._suspects: dict[str, int] = {}
        self._wires = Wires()
        self._segments: list[Segment] = []
        self._directory = RunDirectory.open(directory)
        try:
            self._directory.lock()
            self._identity, self._session = self._take_over()
            self._segments = create_segments(plan, self._identity.run_id)
            self._board = attach_board(self._identity.run_id, self._wires)
            self._blocks = [self._board.block(worker.name) for worker in plan.workers]
            self._views = [attach_ring(self._identity.run_id, edge, self._wires) for edge in plan.edges]
            self._gateway = self._open_gateway()
            self._supervisor = self._make_supervisor(observer)
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
    def send(self, handler: str, message: Message, timeout: float | None = 30.0) -> None:
        """Sends to a handler by name. Durable at the topology's level when this returns; takes effect exactly once.

        Raises UnknownHandler, BadMessage or MessageTooLarge before anything is sent, SendTimeout when there was no room
        within `timeout` seconds (None: waits for ever), SystemClosed when the system is stopping.
        """
        self._gateway.send(handler, message, timeout)

    @overload
    def ask(self, handler: str, message: Message, timeout: float = 30.0, *, reply: type[R]) -> R: ...

    @overload
    def ask(self, handler: str, message: Message, timeout: float = 30.0) -> Any: ...

    def ask(self, handler: str, message: Message, timeout: float = 30.0, *, reply: type[R] | None = None) -> Any:
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
        self._thread.start()
        self._gateway.start()
        if not self._supervisor.wait_ready(timeout):
            if not self._ended.is_set():
                self._supervisor.request_stop_now()
            status = self.join()
            if status is ExitStatus.OK:
                return self  # a stop was asked for meanwhile
            raise StartFailed(self.name, int(status), self._supervisor.reason)
        return self

    def _take_over(self) -> tuple[Identity, str]:
        """Cleans up after a dead predecessor. A session goes on until it has ended cleanly."""
        old, ending = self._directory.read_identity(), self._directory.read_exit()
        if old is not None:
            remove_stale(stale_prefix(old))
        self._adopt(old)
        session = secrets.token_hex(4)
        if old is not None and old.session and (ending is None or ending.status != ExitStatus.OK):
            session = old.session
        plan, identity = self.plan, new_identity(self.plan.name)
        identity = msgspec.structs.replace(
            identity,
            session=session,
            level=plan.level,
            started_ns=time.time_ns(),
            board=board_name(identity.run_id),
            workers=tuple(worker.name for worker in plan.workers),
            handlers={worker.name: tuple(one.name for one in worker.handlers) for worker in plan.workers},
            peers=plan.peers,
            edges=tuple(EdgeIdentity(e.source, e.target, ring_name(identity.run_id, e)) for e in plan.edges),
        )
        # Before the first segment exists: whoever comes after a crash finds its name.
        self._directory.write_identity(identity)
        return identity, session

    def _adopt(self, old: Identity | None) -> None:
        """Carries the state of handlers that moved. Before the new identity is written: a crash only repeats it."""
        found = {name: read(self._directory.journal(name)) for name in self._directory.journals()}
        for move in moves(self.plan, found, old.handlers if old is not None else {}):

            def first(recovered: Recovered | None, epoch: int, move: Move = move) -> Snapshot:
                target = recovered if recovered is not None else Recovered()
                carry(move, found[move.source], target)
                return Names(self.plan, move.target).first(target, None)

            directory = self._directory.journal(move.target)
            Journal.open(directory, epoch=0, level=self.plan.level, make_snapshot=first)[0].close()

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
        block.set(Field.EPOCH, endpoint.epoch)
        block.set(Field.PID, os.getpid())
        block.set(Field.STATE, WorkerState.RUNNING)
        block.set(Field.STARTED_NS, time.monotonic_ns())
        endpoint.resume(journal, recovered)
        return Gateway(plan, endpoint, house, self._resolve)

    def _make_supervisor(self, observer: Observer | None) -> Supervisor:
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
            limits={worker.name: limits_of(self.plan, worker.name) for worker in self.plan.workers},
            memory_bytes={worker.name: worker.process.memory_bytes for worker in self.plan.workers},
            drain_timeout=limits.drain_timeout,
            observer=observer,
        )

    def _launch(self, name: str, epoch_floor: int, suspect: tuple[int, int] | None) -> WorkerProcess:
        attempts: dict[tuple[int, int], int] = {}
        if self.plan.level == "memory":
            # No journal counts them there.
            attempts = self._attempts.setdefault(name, {})
            if suspect is not None:
                attempts[suspect] = attempts.get(suspect, 0) + 1
        boot = Boot(
            plan=self.plan,
            worker=name,
            run_id=self._identity.run_id,
            journal="" if self.plan.level == "memory" else str(self._directory.journal(name)),
            session=self._session,
            epoch=epoch_floor,
            suspect=suspect,
            attempts=attempts,
        )
        title = f"ringleader: {self.name}/{name}"
        options = self.plan.worker(name).process
        return WorkerProcess.start(main, (cloudpickle.dumps(boot),), title, options=options)

    def _resolve(self, name: str) -> type[Message]:
        """The class of a reply. Only what this process has defined or imported: nothing is imported for a reply."""
        for route in self.plan.routes:
            if route.message is not None and type_key(route.message) == name:
                return route.message
        for handler in self.plan.handlers:
            for known in handler.description.replies:
                if type_key(known) == name:
                    return known
        module, _, qualname = name.partition(":")
        found: object = sys.modules.get(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, Message):
            return found
        raise BadReply(name)

    # ------------------------------------------------------------------------------------------------ ending
    def _quiet(self) -> bool:
        """Nothing is pending or in progress anywhere, given that no source sends.

        Acknowledgements are read first: a send counts as committed before what caused it is acknowledged, so when
        both readings agree on every edge, no message was pending between them.
        """
        self._gateway.refuse()
        acked = [ring.get(Cell.ACK) for ring in self._views] + [block.get(Field.CARRIED_ACK) for block in self._blocks]
        committed = [ring.get(Cell.COMMITTED) for ring in self._views]
        return acked == committed + [block.get(Field.CARRIED) for block in self._blocks]

    def _supervise(self) -> None:
        try:
            self._status = ExitStatus(self._supervisor.run())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._end()

    def _end(self) -> None:
        """Each step whatever became of the one before: nothing may stay, and nobody may wait for ever."""
        for step in (self._gateway.close, self._record_end, self._give_back):
            try:
                step()
            except Exception as failure:
                self._failure = self._failure or failure
        self._ended.set()

    def _record_end(self) -> None:
        self._directory.write_exit(
            Exit(
                run_id=self._identity.run_id,
                status=int(self._status),
                reason=self._supervisor.reason,
                ended_ns=time.time_ns(),
                workers={
                    worker.name: WorkerEnd(block.get(Field.RESTARTS), block.text(Text.LAST_DEATH))
                    for worker, block in zip(self.plan.workers, self._blocks, strict=True)
                },
            )
        )

    def _give_back(self) -> None:
        """Segments and lock; whatever happened before, none of them stays."""
        self._wires.close()
        for segment in self._segments:
            segment.close()
            segment.unlink()
        self._directory.close()
