"""One torture: load, random kills, and the verdict. Everything random comes from the seed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from actors import AskTimeout, System
from bus import Field
from tests.torture.oracle import judge
from tests.torture.topology import WORKERS, Finish, Look, Seen, topology

SETTLE = 60.0  # seconds until everything under way must have been handled


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
    for _ in range(system_kills):
        _kill_system(folder, chance, verdict)
    with topology(folder, mutation).start() as system:
        while verdict.kills < kills:
            _pause(chance.uniform(0.005, 0.06))
            verdict.kills += _kill_worker(system, chance.choice(WORKERS))
        _settle(system, folder, verdict, 8.0 if mutation else SETTLE)
        system.stop(drain=not verdict.wrong)
    verdict.seconds = time.monotonic() - started
    return verdict


def serve(folder: Path) -> None:
    """The system as a process of its own, until it is killed."""
    with topology(folder).start() as system:
        print("up", flush=True)
        system.join()


def _kill_system(folder: Path, chance: random.Random, verdict: Verdict) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture", "--serve", str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", "the system did not come up again"
        _pause(chance.uniform(0.0, 0.3))
    finally:
        process.kill()
        process.communicate()
    verdict.system_kills += 1


def _kill_worker(system: System, name: str) -> bool:
    pid = system.block(f"w-{name}").get(Field.PID)
    if not pid:
        return False  # it is being started again
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _settle(system: System, folder: Path, verdict: Verdict, seconds: float) -> None:
    """Ends the load and waits until everything is right, or surely wrong, or the time is over."""
    deadline = time.monotonic() + seconds
    try:
        system.send("source", Finish(), timeout=seconds)
        while True:
            seen = {name: system.ask(name, Look(), timeout=seconds, reply=Seen) for name in WORKERS}
            verdict.items = seen["source"].count
            verdict.wrong = judge(seen, folder / "ledgers") + _gaps(system)
            if not verdict.wrong or any(one.wrong for one in seen.values()) or time.monotonic() > deadline:
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
