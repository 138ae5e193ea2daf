"""Waiting in tests: always for something, never just for time.

Two kinds of bounds. A deadline says only that something comes at all: it is so long that no machine is too slow for it,
and costs nothing where all is well. A promise ("gone within 2 s") is of seconds in which the machine had time for
anybody: `Awake` measures it.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE = 60.0
PAUSE = 0.002


class Awake:
    """Seconds since it was made, as far as this process was given any: between two looks at most `MOST` of them.

    Whoever only sleeps for 2 ms at a time and comes back after a second was not let run, and neither was, or no better,
    whoever is waited for. So a machine that stalls, or has more to do than it can, breaks no promise.
    """

    MOST = 0.05

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds = 0.0

    def look(self, counts: bool = True) -> float:
        """`counts`: what is promised could come about since the last look."""
        now = time.monotonic()
        if counts:
            self.seconds += min(now - self._last, self.MOST)
        self._last = now
        return self.seconds


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Look again and again until the condition holds; one that never does is a failure that says what it was."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        select.select([], [], [], PAUSE)


def within(seconds: float, condition: Callable[[], object], what: str) -> None:
    """The condition comes to hold within so many seconds of a machine that has time for us: a promise, no deadline."""
    awake = Awake()
    while not condition():
        assert awake.look() < seconds, f"waited {seconds} s in vain for {what}"
        select.select([], [], [], PAUSE)


def dead_within(pids: list[int], seconds: float) -> float:
    """All of these processes, whoever's children they are, are dead within the promised time. How long that took.

    One that waits for a device (state D) cannot die before that has answered, nor can whoever sees it off: a slow disk
    breaks no promise either.
    """
    started, awake = time.monotonic(), Awake()
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            while not select.select([pidfd], [], [], min(PAUSE, seconds))[0]:
                awake.look(counts=not any(map(waits_for_a_device, pids)))
                assert awake.seconds < seconds, f"process {pid} still lives after {seconds} s"
                assert time.monotonic() < started + DEADLINE, f"process {pid} lives, and one waits for a device"
        finally:
            os.close(pidfd)
    return time.monotonic() - started


def waits_for_a_device(pid: int) -> bool:
    """One of its threads, so that nothing can end it before that has answered (state D)."""
    try:
        stats = [task.read_bytes() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False  # it goes
    return any(stat.rpartition(b")")[2].split()[0] == b"D" for stat in stats)


def text_of(path: Path, seconds: float = DEADLINE) -> str:
    until(path.exists, str(path), seconds)
    return path.read_text()
