"""One torture: load, random kills, and the verdict. Everything random comes from the seed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from actors import AskTimeout, StartFailed, System
from actors.identity import Identity, stale_prefix
from actors.plan import Plan
from actors.rundir import IDENTITY, RunDirectory
from bus import Board, Field, Segment
from tests.actors.waiting import dead_within, until
from tests.torture.breeder import ORPHANS, Breeder
from tests.torture.oracle import judge, judge_ledgers, outside_problems
from tests.torture.outside import Feeder, remembered
from tests.torture.topology import WORKERS, Finish, Look, Seen, topology

SETTLE = 60.0  # seconds until everything under way must have been handled
READY = 60.0
SABOTAGED = 20.0  # a sabotaged system may never be up, and never be right: seconds until that is the verdict
STARTING = 0.5  # a start takes about so long
SHM = Path("/dev/shm")


@dataclass
class Verdict:
    seed: int
    kills: int = 0
    system_kills: int = 0
    items: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"seed {self.seed}: {self.kills} workers and {self.system_kills} systems killed, {self.items:,} items"
        return "\n".join([f"{head}, {self.seconds:.1f} s: {len(self.wrong)} wrong", *self.wrong[:20]])


def torture(folder: Path, *, seed: int, kills: int, system_kills: int = 0, mutation: str = "") -> Verdict:
    """Whole-system kills first, half of them amid kills of workers; then kills of workers; then the end is judged."""
    chance = random.Random(seed)
    verdict = Verdict(seed)
    started = time.monotonic()
    prefixes: list[str] = []
    if system_kills:
        folder.mkdir(parents=True, exist_ok=True)
        breeder = Breeder(["-m", "tests.torture", "--breed", str(folder)])
        try:
            for _ in range(system_kills):
                _kill_system(breeder, folder, chance, verdict, prefixes)
        finally:
            breeder.close()
    try:
        system = topology(folder, mutation).start(timeout=SABOTAGED if mutation else READY)
    except StartFailed as error:  # the load runs while it starts, so wrong orders may already show
        verdict.wrong.append(f"not up: {error}")
        return verdict
    with system:
        verdict.wrong += left_over(prefixes)
        prefixes.append(stale_prefix(identity_of(folder)))
        feeder = Feeder(system, folder)
        try:
            while verdict.kills < kills:
                _pause(chance.uniform(0.005, 0.06))
                verdict.kills += _kill_workers(chance, lambda name: system.block(f"w-{name}").get(Field.PID))
        finally:
            feeder.stop()
        _settle(system, folder, verdict, 8.0 if mutation else SETTLE)
        system.stop(drain=not verdict.wrong)
    verdict.wrong += left_over(prefixes)
    verdict.seconds = time.monotonic() - started
    return verdict


def server(folder: Path) -> Callable[[], None]:
    """What a process with the system runs, until it is killed. The plan is made once, before."""
    plan = topology(folder).compile()
    return lambda: _serve(plan, folder)


def _serve(plan: Plan, folder: Path) -> None:
    with System(plan, folder / "run").start() as system:
        feeder = Feeder(system, folder)
        (folder / f"up-{os.getpid()}").touch()
        system.join()
        feeder.stop()


def _kill_system(breeder: Breeder, folder: Path, chance: random.Random, verdict: Verdict, before: list[str]) -> None:
    """Starts it where it was killed, and kills everything: while it starts, or after kills of its workers."""
    bred = breeder.another()
    assert bred is not None, "the system died by itself"
    try:
        if chance.random() < 0.5:
            _pause(chance.uniform(0.0, STARTING))
        else:
            up = folder / f"up-{bred.pid}"
            until(lambda: up.exists() or bred.dead(), "the system to be up", READY)
            assert up.exists(), "the system did not come up again"
            verdict.wrong += left_over(before)
            with _pids(identity_of(folder)) as pids:
                for _ in range(chance.randrange(4)):
                    _pause(chance.uniform(0.0, 0.1))
                    verdict.kills += _kill_workers(chance, pids)
                _pause(chance.uniform(0.0, 0.1))
        children = [child.pid for child in psutil.Process(bred.pid).children(recursive=True)]
    finally:
        bred.kill()
    dead_within(children, ORPHANS)
    verdict.system_kills += 1
    if (folder / "run" / IDENTITY).exists():  # or it was killed before it said who it is
        prefix = stale_prefix(identity_of(folder))
        if prefix not in before:
            before.append(prefix)


def _kill_workers(chance: random.Random, pids: Callable[[str], int]) -> int:
    """One, or several at once."""
    return kill_workers(chance.sample(WORKERS, chance.choice((1, 1, 2, 3))), pids)


def kill_workers(names: Iterable[str], pids: Callable[[str], int]) -> int:
    """How many it were: who is being started again cannot be killed."""
    return sum(_kill(pids(name)) for name in names)


def identity_of(folder: Path) -> Identity:
    with RunDirectory.open(folder / "run", create=False) as directory:
        identity = directory.read_identity()
    assert identity is not None
    return identity


@contextmanager
def _pids(identity: Identity) -> Iterator[Callable[[str], int]]:
    """The processes of a system that runs elsewhere, by its status board."""
    segment = Segment.attach(identity.board)
    board = Board(segment.buf)
    try:
        yield lambda name: board.block(f"w-{name}").get(Field.PID)
    finally:
        board.close()
        segment.close()


def left_over(prefixes: list[str]) -> list[str]:
    """Shared memory of systems that are gone."""
    names = [entry.name for entry in SHM.iterdir() if entry.name.startswith(tuple(prefixes))] if SHM.is_dir() else []
    return [f"left in {SHM}: {names}"] if names and prefixes else []


def _kill(pid: int) -> bool:
    if not pid:
        return False  # it is being started again
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _settle(system: System, folder: Path, verdict: Verdict, seconds: float) -> None:
    """Ends the load and waits until everything is right, or surely wrong, or the time is over."""
    deadline, before = time.monotonic() + seconds, verdict.wrong
    try:
        system.send("source", Finish(), timeout=seconds)
        while True:
            late = time.monotonic() > deadline
            seen = {name: system.ask(name, Look(), timeout=seconds, reply=Seen) for name in WORKERS}
            verdict.items = seen["source"].count
            outside = outside_problems(seen["sink"], *remembered(folder))
            wrong = judge(seen) + outside + _gaps(system)
            if not wrong or late or any(one.wrong for one in seen.values()) or _gaps(system):
                verdict.wrong = before + wrong + judge_ledgers(folder / "ledgers")
                return
            _pause(0.1)
    except AskTimeout as error:
        verdict.wrong.append(f"lost: {error}")


def _gaps(system: System) -> list[str]:
    """A gap is mended by a resend, but with rings that are kept there must be none."""
    gaps = {name: system.block(f"w-{name}").get(Field.GAPS) for name in WORKERS}
    return [f"{name}: {count} gaps" for name, count in gaps.items() if count]


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
