"""What --kill and --kill-all of flights.py do: SIGKILL to real processes, while they run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from random import Random

import psutil

GONE_WITHIN = 10.0  # seconds for the workers of a killed supervisor


class Orphans(Exception):
    """Workers outlived their supervisor."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(f"the supervisor is dead, yet its workers {pids} still run after {GONE_WITHIN:g} s")
        self.pids = pids

    def __reduce__(self) -> tuple[type[Orphans], tuple[list[int]]]:
        return type(self), (self.pids,)


class Kills:
    """So many workers, each at a random row of the first four fifths; if asked for, the whole system at the middle."""

    def __init__(self, seed: int, rows: int, workers: int, system: bool) -> None:
        self._random = Random(seed)
        self._worker_due = sorted(self._random.randrange(rows * 4 // 5 + 1) for _ in range(workers))
        self._system_due = rows // 2 if system else None
        self._workers = self._systems = 0  # kills that were done
        self._killed: set[int] = set()  # a process that was killed is not killed again while it is still listed

    @property
    def summary(self) -> str:
        text = f"killed {self._workers} worker{'s'[: self._workers != 1]}"
        if self._systems:
            text += " and the whole system"
        missed = len(self._worker_due) + (self._system_due is not None)
        return text + (f"; the run was too short for {missed} more" if missed else "")

    def worker(self, row: int, workers: Mapping[str, int]) -> str | None:
        """Kills a random worker if one is due at this row."""
        alive = sorted(name for name, pid in workers.items() if pid and pid not in self._killed)
        if not (self._worker_due and self._worker_due[0] <= row and alive):
            return None
        name = self._random.choice(alive)
        self._killed.add(workers[name])
        try:
            os.kill(workers[name], signal.SIGKILL)
        except ProcessLookupError:  # it was killed with the whole system, say; another one next time
            return None
        del self._worker_due[0]
        self._workers += 1
        return f"row {row:,}: killed worker {name}, process {workers[name]}"

    def system(self, row: int, supervisor: int, workers: Mapping[str, int]) -> str | None:
        """Kills the supervisor if that is due, and sees to it that the workers are gone as well."""
        if self._system_due is None or row < self._system_due:
            return None
        self._system_due = None
        self._systems += 1
        processes = []
        for pid in workers.values():
            try:
                processes.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        os.kill(supervisor, signal.SIGKILL)
        deadline = time.monotonic() + GONE_WITHIN
        while alive := [process.pid for process in processes if _runs(process)]:
            if time.monotonic() > deadline:
                raise Orphans(alive)
            time.sleep(0.01)
        return f"row {row:,}: killed the whole system, supervisor {supervisor} and {len(processes)} workers"


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)  # init may be slow to reap
    except psutil.NoSuchProcess:
        return False
