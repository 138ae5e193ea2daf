"""One torture: load, random kills, and the verdict. Everything random comes from the seed."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from actors import AskTimeout, System
from actors.identity import Identity, stale_prefix
from actors.rundir import RunDirectory
from bus import Board, Field, Segment
from tests.actors.waiting import dead_within
from tests.torture.oracle import judge, outside_problems
from tests.torture.outside import Feeder, remembered
from tests.torture.topology import WORKERS, Finish, Look, Seen, topology

SETTLE = 60.0  # seconds until everything under way must have been handled
ORPHANS = 2.0  # seconds that a process may outlive its supervisor
READY = 60.0
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
    """Whole-system kills first, each in the middle of worker kills; then worker kills; then the end is judged."""
    chance = random.Random(seed)
    verdict = Verdict(seed)
    started = time.monotonic()
    prefixes: list[str] = []
    for _ in range(system_kills):
        prefixes.append(_kill_system(folder, chance, verdict, prefixes))
    with topology(folder, mutation).start() as system:
        verdict.wrong += _left_over(prefixes)
        prefixes.append(stale_prefix(_identity(folder)))
        feeder = Feeder(system, folder)
        try:
            while verdict.kills < kills:
                _pause(chance.uniform(0.005, 0.06))
                verdict.kills += _kill_worker(system.block(f"w-{chance.choice(WORKERS)}").get(Field.PID))
        finally:
            feeder.stop()
        _settle(system, folder, verdict, 8.0 if mutation else SETTLE)
        system.stop(drain=not verdict.wrong)
    verdict.wrong += _left_over(prefixes)
    verdict.seconds = time.monotonic() - started
    return verdict


def serve(folder: Path) -> None:
    """The system as a process of its own, until it is killed."""
    with topology(folder).start() as system:
        feeder = Feeder(system, folder)
        print("up", flush=True)
        system.join()
        feeder.stop()


def _kill_system(folder: Path, chance: random.Random, verdict: Verdict, before: list[str]) -> str:
    """Starts it where it was killed, kills workers of it, then everything. Returns what its segments are called."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture", "--serve", str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], READY)[0], f"the system did not come up within {READY:g} s"
        assert process.stdout.readline() == "up\n", "the system did not come up again"
        verdict.wrong += _left_over(before)
        identity = _identity(folder)
        with _pids(identity) as pids:
            for _ in range(chance.randrange(4)):
                _pause(chance.uniform(0.0, 0.1))
                verdict.kills += _kill_worker(pids(chance.choice(WORKERS)))
            _pause(chance.uniform(0.0, 0.1))
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    finally:
        process.kill()
        process.communicate()
    dead_within(children, ORPHANS)
    verdict.system_kills += 1
    return stale_prefix(identity)


def _identity(folder: Path) -> Identity:
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


def _left_over(prefixes: list[str]) -> list[str]:
    """Shared memory of systems that are gone."""
    names = [entry.name for entry in SHM.iterdir() if entry.name.startswith(tuple(prefixes))] if SHM.is_dir() else []
    return [f"left in {SHM}: {names}"] if names and prefixes else []


def _kill_worker(pid: int) -> bool:
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
            seen = {name: system.ask(name, Look(), timeout=seconds, reply=Seen) for name in WORKERS}
            verdict.items = seen["source"].count
            outside = outside_problems(seen["sink"], *remembered(folder))
            verdict.wrong = before + judge(seen, folder / "ledgers") + outside + _gaps(system)
            certain = any(one.wrong for one in seen.values()) or _gaps(system)
            if verdict.wrong == before or certain or time.monotonic() > deadline:
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
