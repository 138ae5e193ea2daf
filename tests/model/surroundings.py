"""Where the runtime meets its surroundings, and how these lead into the simulation. The rest is the real code."""

from __future__ import annotations

import types
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from actors import (
    careful,
    codec_runs,
    dispatch,
    endpoint,
    hosted,
    housekeeping,
    local_messages,
    polling,
    sources,
    wiring,
    worker,
)
from actors import system as system_module
from actors.claims import Claims
from actors.codec import FLAG_ASK, StateCodec
from actors.endpoint import Endpoint
from actors.gateway import Gateway
from actors.plan import GATEWAY, Plan
from actors.system import System
from actors.system_errors import SendTimeout
from bus import Block, PyProgress, progress
from persist import journal as journal_module
from persist import writer as writer_module
from persist.journal import Journal
from tests.model.memory import SimBoard
from tests.model.oracle import codec
from tests.model.policies import Clock
from tests.model.processes import Process
from tests.model.topologies import Done, Scene

if TYPE_CHECKING:
    from tests.model.simulation import Simulation

SESSION = "51e5510a"
IDLE = 0.25  # seconds; who waits so long waits to be woken


def no_claims(plan: Plan, me: str, *given: object) -> Claims:
    return Claims(me)


class SimJournal(Journal):
    """The real journal on the simulated disk."""

    @classmethod
    def open(cls, directory: Any, **options: Any) -> Any:
        sim = current()
        options |= {"segment_bytes": sim.scene.segment_bytes, "files": sim.directory, "reserve": 1024}
        return super().open(directory, **options)


make_real_endpoint = worker.make_endpoint
_state_codec = cache(StateCodec)


_current: list[Simulation] = []


def current() -> Simulation:
    return _current[-1]


@contextmanager
def running(simulation: Simulation) -> Iterator[None]:
    """From here on this is what `simulated` leads into."""
    _current.append(simulation)
    try:
        yield
    finally:
        _current.pop()


@contextmanager
def simulated(scene: Scene, clock: Clock) -> Iterator[None]:
    """The few places where the runtime meets its surroundings lead into the simulation."""

    def make_endpoint(plan: Plan, me: str, block: Block) -> Endpoint:
        return current().endpoint(plan, me, block)

    with (
        mock.patch.multiple(worker, Journal=SimJournal, time=clock, make_endpoint=make_endpoint, open_claims=no_claims),
        mock.patch.object(codec_runs, "RunCodec", codec),
        mock.patch.object(worker, "Progress", PyProgress),
        mock.patch.object(system_module, "make_endpoint", make_endpoint),
        mock.patch.object(system_module, "open_claims", no_claims),
        mock.patch.object(journal_module, "DirectoryLock", lambda *given: current().lock(*given)),
        mock.patch.object(writer_module, "AHEAD_BYTES", 2048),
        mock.patch.object(wiring, "attach_ring", lambda *given: current().ring(*given)),
        mock.patch.object(dispatch, "time", clock),
        mock.patch.multiple(local_messages, time=clock, INLINE_LIMIT=scene.inline_limit),
        mock.patch.object(progress, "time", clock),
        mock.patch.object(careful, "time", clock),
        mock.patch.object(polling, "time", clock),
        mock.patch.object(hosted, "StateCodec", _state_codec),
        mock.patch.object(endpoint, "time", clock),
        mock.patch.object(housekeeping, "time", clock),
        mock.patch.object(sources, "time", clock),
    ):
        yield


def run_gateway(sim: Simulation, process: Process) -> None:
    """The process with the gateway: the real one, but that it sends by itself what the scene feeds from outside."""
    board = SimBoard(sim.memory, sim)
    journals = types.SimpleNamespace(path=Path("/"), journal=lambda name: Path("/") / name)
    host: Any = types.SimpleNamespace(
        plan=sim.plan,
        _identity=types.SimpleNamespace(run_id="simulated"),
        _board=board,
        _wires=wiring.Wires(),
        _directory=journals,
        _session=SESSION,
    )
    opened: Gateway = System._open_gateway(host)
    process.up = True
    bell: Any = board.block(GATEWAY).doorbell
    while True:
        bell.arm()
        sim.step("turn")
        with opened._room:
            worked = opened._step()
        worked |= _feed(sim.scene, opened)
        if not worked:
            bell.wait(IDLE)
        bell.disarm()


def _feed(scene: Scene, opened: Gateway) -> bool:
    """Sends the next message from outside, if there is one and room for it. Its number is in the journal."""
    for handler, feeds in scene.feeds.items():
        peer = scene.plan.peers.index(scene.plan.worker_of(handler))
        sent = opened._endpoint.links[peer].outbound.assigned
        if sent < len(feeds):
            try:
                opened._send(handler, feeds[sent], 0.0, FLAG_ASK, (Future(), Done))
            except SendTimeout:
                continue
            return True
    return False
