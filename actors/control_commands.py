"""The commands that a running system takes: what `ringleader restart`, `pause`, `stop` and the others come down to.

Every command asks the supervisor's loop (no lock, no waiting), then looks at the status board until it has taken effect
or its time is over; so a supervisor whose loop hangs is told about, not waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from actors import control_protocol as protocol
from actors.control_progress import Change, Seen, done, waits_for
from actors.control_protocol import (
    AskStacks,
    Empty,
    Info,
    OnWorker,
    Refused,
    Stacks,
    Stopping,
    StopSystem,
    WorkerChanged,
    WorkerInfo,
)
from actors.control_socket import Peer, Progress, Registry
from actors.naming import closest
from actors.own_stacks import own_stacks
from actors.pause_request import PauseRequest
from bus import Board, BoardCell, Field, Pause, WorkerState, pause_asked

HEARD_WITHIN = 2.0  # seconds; a supervisor's loop turns at least twice a second


class Requests(Protocol):
    """What the supervisor can be asked for, from any thread and without waiting."""

    def request_restart(self, worker: str) -> None: ...
    def request_pause(self, worker: str) -> PauseRequest: ...
    def request_drain_worker(self, worker: str) -> PauseRequest: ...
    def request_resume(self, worker: str) -> PauseRequest: ...
    def request_stop(self, drain: bool = True, reason: str = "requested") -> None: ...
    def request_stop_now(self, reason: str = "requested") -> None: ...


class Commands(Protocol):
    """What the control socket of a system serves, besides what else is in its registry."""

    def change(self, change: Change, request: OnWorker, peer: Peer) -> msgspec.Struct | Progress: ...
    def stop(self, request: StopSystem, peer: Peer) -> Stopping: ...
    def stacks(self, request: AskStacks, peer: Peer) -> Stacks: ...
    def info(self, request: Empty, peer: Peer) -> Info: ...


def registry_of(commands: Commands) -> Registry:
    """All of them under their names; others may be added."""

    def changing(change: Change) -> Callable[[OnWorker, Peer], msgspec.Struct | Progress]:
        return lambda request, peer: commands.change(change, request, peer)

    registry = Registry()
    for change in Change:
        registry.add(change.value, OnWorker, changing(change))
    registry.add("stop", StopSystem, commands.stop)
    registry.add("stacks", AskStacks, commands.stacks, blocks=True)
    registry.add("info", Empty, commands.info)
    return registry


class SystemCommands:
    """Of one system. `stacks_of` gives the Python stacks of a living worker by name, and may take its time."""

    def __init__(
        self,
        system: str,
        run_id: str,
        workers: Sequence[str],
        board: Board,
        requests: Requests,
        stacks_of: Callable[[str], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._system, self._run_id, self._workers = system, run_id, tuple(workers)
        self._board, self._requests, self._stacks_of, self._clock = board, requests, stacks_of, clock

    def change(self, change: Change, request: OnWorker, peer: Peer) -> msgspec.Struct | Progress:
        worker = self._known(request.worker)
        begun, before = self._clock(), self._seen(worker)
        done(change, worker, before, before)  # raises if it never can
        made: PauseRequest | None = None
        match change:
            case Change.RESTART:
                self._requests.request_restart(worker)
            case Change.PAUSE:
                made = self._requests.request_pause(worker)
            case Change.DRAIN:
                made = self._requests.request_drain_worker(worker)
            case Change.RESUME:
                made = self._requests.request_resume(worker)

        def changed(outcome: str, now: Seen) -> WorkerChanged:
            seconds = self._clock() - begun
            return WorkerChanged(
                worker=worker, outcome=outcome, pid=now.pid or None, epoch=now.epoch, seconds=round(seconds, 6)
            )

        def progress() -> WorkerChanged | None:
            now = self._seen(worker)
            if done(change, worker, before, now, made):
                return changed(change.outcome, now)
            if self._clock() - begun >= request.timeout_seconds:
                text = f"{worker}: not {change.outcome} within {request.timeout_seconds:g} s: {waits_for(now, made)}"
                raise Refused(protocol.NOT_IN_TIME, text + self._deaf())
            return None

        return progress if request.wait else changed("asked", before)

    def stop(self, request: StopSystem, peer: Peer) -> Stopping:
        state = self._state()
        if request.now:
            self._requests.request_stop_now(f"{peer} asked for it")
        else:
            self._requests.request_stop(drain=True, reason=f"{peer} asked for it")
        return Stopping(state)

    def stacks(self, request: AskStacks, peer: Peer) -> Stacks:
        if request.worker is None:
            return Stacks(os.getpid(), own_stacks())
        worker = self._known(request.worker)
        pid = self._board.block(worker).get(Field.PID) or None
        return Stacks(pid, self._stacks_of(worker))

    def info(self, request: Empty, peer: Peer) -> Info:
        return Info(
            system=self._system,
            run_id=self._run_id,
            pid=os.getpid(),
            protocol=protocol.PROTOCOL,
            state=self._state(),
            loop_silent_seconds=self._silent(),
            workers=tuple(self._info(name) for name in self._workers),
        )

    # ------------------------------------------------------------------------------------------------ looking
    def _known(self, worker: str) -> str:
        if worker not in self._workers:
            raise unknown_worker(self._system, worker, self._workers)
        return worker

    def _seen(self, worker: str) -> Seen:
        block = self._board.block(worker)
        return Seen(
            system=self._board.get(BoardCell.SYSTEM_STATE),
            state=block.get(Field.STATE),
            supervised=block.get(Field.SUPERVISED_STATE),
            pid=block.get(Field.PID),
            epoch=block.get(Field.EPOCH),
            deaths=block.get(Field.DEATHS),
            told=block.get(Field.PAUSE),
            paused=block.get(Field.PAUSED),
        )

    def _info(self, worker: str) -> WorkerInfo:
        seen = self._seen(worker)
        paused = pause_asked(seen.paused)[1] is not Pause.RUN
        state = _name(seen.state)
        return WorkerInfo(name=worker, pid=seen.pid or None, state=state, epoch=seen.epoch, paused=paused)

    def _state(self) -> str:
        return _name(self._board.get(BoardCell.SYSTEM_STATE))

    def _silent(self) -> float | None:
        beaten = self._board.get(BoardCell.SUPERVISOR_HEARTBEAT_NS)
        return max(0.0, time.monotonic() - beaten / 1e9) if beaten else None

    def _deaf(self) -> str:
        silent = self._silent()
        if silent is None or silent <= HEARD_WITHIN:
            return ""
        return f"; the supervisor's loop hangs, it has last turned {silent:.1f} s ago (`ringleader stacks` shows where)"


def unknown_worker(system: str, worker: str, known: Sequence[str]) -> Refused:
    hint = closest(worker, known, "workers")
    names = f" (its workers are {', '.join(known)})" if hint.startswith("did you") else ""
    return Refused(protocol.UNKNOWN_WORKER, f"{system} has no worker {worker!r}{names}; {hint}", tuple(known))


def _name(state: int) -> str:
    try:
        return WorkerState(state).name.lower()
    except ValueError:
        return f"state {state}"
