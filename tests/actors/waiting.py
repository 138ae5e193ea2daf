"""Waiting in tests: always for something, never just for time."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Look again and again until the condition holds; one that never does is a failure that says what it was."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        select.select([], [], [], 0.002)


def dead_within(pids: list[int], seconds: float) -> float:
    """Wait for all of these processes, whoever's children they are, to be dead. How long that took."""
    started = time.monotonic()
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            left = started + seconds - time.monotonic()
            assert select.select([pidfd], [], [], max(0, left))[0], f"process {pid} still lives after {seconds} s"
        finally:
            os.close(pidfd)
    return time.monotonic() - started


def text_of(path: Path, seconds: float = 10.0) -> str:
    until(path.exists, str(path), seconds)
    return path.read_text()
