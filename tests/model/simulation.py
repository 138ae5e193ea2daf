"""Runs the real workers, gateway, endpoints and journals of a topology under a simulated scheduler.

Every simulated process is a thread, and exactly one of them runs at any time. Before everything that another process,
or its own next incarnation, could see, the runtime comes by `step`: there the scheduler may let another one go on, kill
this one, or kill everything. The threads make it possible to run the runtime as it is; they decide nothing. With the
same scene, policy and seed, everything happens again in the same order.

What is simulated: shared memory (byte arrays), the disk, time, the doorbells' sleep, the supervisor's loop (what it
decides about the dead is its own code). What is real: the rest.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from actors import wiring
from actors.child import Child
from actors.endpoint import Endpoint
from actors.plan import GATEWAY, Edge
from actors.restart import ChildSpec, Death
from actors.worker import Boot, Worker
from bus import Board, Field, board_size, format_ring, ring_size
from persist.errors import JournalLocked
from tests.model.disk import SimDirectory, SimLock, Store
from tests.model.memory import SimBoard, SimDoorbell, SimRing
from tests.model.oracle import Oracle, Violation
from tests.model.policies import Clock, Policy
from tests.model.processes import Crash, Process, baton
from tests.model.surroundings import IDLE, SESSION, make_real_endpoint, run_gateway, running, simulated
from tests.model.topologies import Scene, around

HANG = 60.0  # seconds of real time that one simulated process may take between two steps
SLEEPS = 50  # so often a wait may end by its bound alone before that is called standing still


class Simulation:
    def __init__(self, scene: Scene, policy: Policy, clock: Clock, seed: int = 0, limit: int = 60_000) -> None:
        self.scene, self.plan, self.policy = scene, scene.plan, policy
        self.oracle = Oracle(scene)
        self.random = Random(seed)
        self.stores = {peer: Store(peer) for peer in self.plan.peers}
        self.limit = limit  # steps until a run that has not come to its end never will
        self.deaths = 0
        self.holes = 0  # records that were made to vanish
        self.overslept = 0  # how often only the bound of a wait has helped
        self.fed = {self.plan.worker_of(handler): len(feeds) for handler, feeds in scene.feeds.items()}
        self._processes: list[Process] = []
        self._zombies: list[Process] = []  # among them, those that live although they were taken for dead
        self._running: Process | None = None
        self._back = baton()
        self._violation: Violation | None = None
        self._system_fault = False
        self._suspected = False
        self._turns = 0
        self._clock = clock

    # ------------------------------------------------------------------------------------------------ the surroundings
    def step(self, kind: str, torn: Callable[[], None] | None = None) -> None:
        """Before everything that others could see."""
        process = self._running
        if process is None:
            return  # the supervisor, which is not simulated step by step
        if process.killed or (process.doomed and kind == "write"):
            process.killed = True
            raise Crash
        fault = self.policy.fault(process, kind)
        self._limit()
        if fault == "zombie":
            self._suspected = process.name != GATEWAY
            self._give_way(process)
        elif fault:
            if torn is not None:
                torn()
            self._system_fault = fault == "system" or process.name == GATEWAY
            process.killed = True
            raise Crash
        self._check_forgotten(process)
        if self.policy.switch(process, kind):
            self._give_way(process)

    def die(self) -> None:
        """The running process kills itself."""
        assert self._running is not None
        self._running.killed = True
        raise Crash

    def doom(self) -> None:
        """The running process dies at its next write."""
        assert self._running is not None
        self._running.doomed = True

    def sleep(self, bell: SimDoorbell, timeout: float) -> None:
        process = self._running
        assert process is not None
        process.bell, process.timeout = bell, timeout
        self._give_way(process)
        process.bell = None

    def wrote(self, owner: str, name: str, data: bytes, end: int) -> None:
        self.oracle.wrote(owner, name, data, end)

    def synced(self, owner: str, name: str) -> None:
        self.oracle.synced(owner, name)

    def unlinked(self, owner: str, name: str) -> None:
        self.oracle.unlinked(owner, name)

    def directory(self, path: str) -> SimDirectory:
        return SimDirectory(self, self.stores[Path(path).name])

    def lock(self, path: str, descriptor: int) -> SimLock:
        return SimLock(self.stores[Path(path).name], self._running, lambda holder: holder.alive)  # type: ignore[attr-defined]

    def ring(self, run_id: str, edge: Edge, wires: object) -> SimRing:
        return SimRing(self._rings[edge.index], self, self.scene.one_record)

    def endpoint(self, plan: Any, me: str, block: Any) -> Endpoint:
        assert self._running is not None
        self._running.endpoint = made = make_real_endpoint(plan, me, block)
        return made

    # ------------------------------------------------------------------------------------------------ scheduling
    def run(self) -> None:
        """Until everything is done. Raises Violation."""
        around.step, around.die, around.doom, around.flaky = self.step, self.die, self.doom, self.policy.flaky
        around.last = 0
        with running(self):
            try:
                self._start_all()
                self._until_done()
            finally:
                self._kill_all()

    def again(self) -> None:
        """After `run`: everything is killed and started once more, which must change nothing."""
        before = {peer: ledger.last.records for peer, ledger in self.oracle.ledgers.items()}
        with running(self):
            try:
                self._crash_system()
                self._until_done()
            finally:
                self._kill_all()
        after = {peer: ledger.last.records for peer, ledger in self.oracle.ledgers.items()}
        if before != after:
            raise Violation("I1", f"after a restart {before} became {after}")

    def _until_done(self) -> None:
        while True:
            self._launch_due(all_asleep=False)
            ready = [one for one in self._processes if one.bell is None or not one.bell.armed]
            if not ready:
                if self._launch_due(all_asleep=True):
                    continue
                if not self.oracle.pending(self.fed):
                    self._no_gaps()
                    return
                self._wake()
                continue
            chosen = self.policy.choose(ready)
            self._turns += 1
            chosen.last_turn = self._turns
            self._let(chosen)

    def _wake(self) -> None:
        """Everyone sleeps, and not everything is done: time passes until the shortest wait ends.

        Those who wait for a time, or for a component that tells nobody when it has room, wait for less than IDLE. That
        only the bound of a longer wait helps means that a wake-up was lost.
        """
        shortest = min(one.timeout for one in self._processes)
        if shortest >= IDLE:
            self.overslept += 1
            if self.overslept > SLEEPS:
                raise Violation("liveness", f"nobody has anything to do, but {self.oracle.pending(self.fed)}")
        self._clock.passes(shortest)
        for one in self._processes:
            if one.bell is not None and one.timeout == shortest:
                one.bell.disarm()
        self.policy.steps += 1
        self._limit()

    def _no_gaps(self) -> None:
        """Rings are kept whatever happens: a hole in one is an alarm, although it can be filled."""
        gaps = {child.name: child.block.get(Field.GAPS) for child in self._children}
        if any(gaps.values()) and not self.holes:
            raise Violation("gap", f"missing messages: {gaps}")

    def _limit(self) -> None:
        if self.policy.steps > self.limit:
            raise Violation("liveness", f"not at an end after {self.limit} steps: {self.oracle.pending(self.fed)}")

    def _let(self, process: Process) -> None:
        """The process goes on until it gives way or is dead."""
        self._running = process
        process.go.release()
        if not self._back.acquire(timeout=HANG):
            raise RuntimeError(f"{process.name} hangs outside of the simulation")
        self._running = None
        if self._violation is not None:
            violation, self._violation = self._violation, None
            raise violation
        if self._system_fault:
            self._system_fault = False
            self._crash_system()
        elif not process.alive:
            self._bury(process)
        elif self._suspected:
            self._suspected = False
            if process not in self._zombies:
                self._zombies.append(process)
                self._taken_for_dead(process.name)

    def _give_way(self, process: Process) -> None:
        self._back.release()
        process.go.acquire()
        if process.killed:
            raise Crash

    def _check_forgotten(self, process: Process) -> None:
        owned = process.endpoint
        if owned is not None and owned.journal is not None:
            for link in owned.links:
                if link.outbound.acked:
                    self.oracle.forgotten(process.name, link.name, link.outbound.acked)

    # ------------------------------------------------------------------------------------------------ life and death
    def _start_all(self) -> None:
        plan = self.plan
        self._rings = [bytearray(ring_size(edge.ring_bytes)) for edge in plan.edges]
        for edge, ring in zip(plan.edges, self._rings, strict=True):
            format_ring(ring, edge.ring_bytes, 1)
        self.memory = bytearray(board_size(plan.peers))
        board = Board.format(self.memory, plan.peers)
        self._children = [Child(ChildSpec(one.name), board.block(one.name)) for one in plan.workers]
        self._due: dict[str, float] = {one.name: 0.0 for one in plan.workers}  # who is to be launched, and when
        self._gateway = self._spawn(GATEWAY, lambda process: run_gateway(self, process))

    def _spawn(self, name: str, target: Callable[[Process], None]) -> Process:
        process = Process(name)

        def body() -> None:
            process.go.acquire()
            try:
                if not process.killed:
                    target(process)
            except Crash:
                pass
            except Violation as violation:
                self._violation = violation
            except Exception as failure:  # what would end the worker
                process.failure = failure
            finally:
                process.alive = False
                self._back.release()

        process.thread = threading.Thread(target=body, name=f"simulated {name}", daemon=True)
        process.thread.start()
        self._processes.append(process)
        return process

    def _launch_due(self, all_asleep: bool) -> bool:
        launched = False
        for child in self._children if self._gateway.up else ():
            due = self._due.get(child.name)
            if due is not None and (due == 0 or all_asleep or self.policy.restart_now(child.name)):
                del self._due[child.name]
                child.launched_by(self._launch)
                child.block.set(Field.GATE, 1)
                launched = True
        return launched

    def _launch(self, name: str, epoch: int, suspect: tuple[int, int] | None) -> Process:
        boot = Boot(
            plan=self.plan,
            worker=name,
            run_id="simulated",
            journal=f"/{name}",
            session=SESSION,
            epoch=epoch,
            suspect=suspect,
            attempts={},
        )

        def target(process: Process) -> None:
            board = SimBoard(self.memory, self)
            Worker(boot, board, board.block(name), wiring.Wires()).run()

        return self._spawn(name, target)

    def _bury(self, process: Process) -> None:
        self._processes.remove(process)
        assert process.thread is not None
        process.thread.join(HANG)
        failure = process.failure
        if failure is not None and not isinstance(failure, JournalLocked):
            raise Violation("failure", f"{process.name}: {type(failure).__name__}: {failure}") from failure
        if process in self._zombies:
            self._zombies.remove(process)
            return
        if failure is not None:  # the one that it was taken for dead lives, and holds the journal
            for zombie in [one for one in self._zombies if one.name == process.name]:
                self._end(zombie)
        self._taken_for_dead(process.name)

    def _taken_for_dead(self, name: str) -> None:
        child = next(one for one in self._children if one.name == name)
        child.process = None
        child.bury(Death(child.name, None, signal.SIGKILL, False, "killed"))
        self._due[name] = 1.0
        self.deaths += 1

    def _crash_system(self) -> None:
        self._no_gaps()
        self._kill_all()
        self.deaths += 1
        if self.oracle.power:
            for peer, store in self.stores.items():
                store.lose_power(self.random)
                self.oracle.lost_power(peer, store)
            self.oracle.histories()
        self._start_all()

    def _kill_all(self) -> None:
        for process in list(self._processes):
            self._end(process)
        self._violation = None

    def _end(self, process: Process) -> None:
        """SIGKILL."""
        assert process.thread is not None
        process.killed = True
        if process.alive:
            self._running = process
            process.go.release()
            if not self._back.acquire(timeout=HANG):
                raise RuntimeError(f"{process.name} cannot be killed")
        process.thread.join(HANG)
        self._running = None
        self._processes.remove(process)
        if process in self._zombies:
            self._zombies.remove(process)


def simulate(scene: Scene, policy: Policy, seed: int = 0, again: bool = False, limit: int = 60_000) -> Simulation:
    """One run to its end. Raises Violation."""
    clock = Clock(policy)
    with simulated(scene, clock):
        simulation = Simulation(scene, policy, clock, seed, limit)
        simulation.run()
        if again:
            simulation.again()
        if simulation.overslept:
            raise Violation(
                "wake-up", f"{simulation.overslept} times everyone slept although there was something to do"
            )
    return simulation
