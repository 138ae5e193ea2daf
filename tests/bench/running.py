"""A system under measurement: where it lives, that it ends well, what its handlers left, what its processes took."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from actors import ExitStatus, System, Topology
from tests.bench.measure import Scale


class SystemFailed(Exception):
    """The system under measurement ended, or took too long."""


@contextmanager
def place_for(scale: Scale) -> Iterator[Path]:
    """An empty directory for one run."""
    place = scale.directory / secrets.token_hex(4)
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def running(app: Topology) -> Iterator[System]:
    """Started, and stopped cleanly: a benchmark that lost a message is an error, not a figure."""
    with app.start() as system:
        yield system
        status = system.stop()
        if status is not ExitStatus.OK:
            raise SystemFailed(f"it ended with status {int(status)}: {system.reason}")


@contextmanager
def kills_are_not_news() -> Iterator[None]:
    log = logging.getLogger("ringleader")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def until(ready: Callable[[], bool], system: System, scale: Scale, every: float = 0.01) -> None:
    """Waits, looking so rarely that it takes nothing from what is measured."""
    deadline = time.monotonic() + scale.timeout
    while not ready():
        if time.monotonic() > deadline:
            raise SystemFailed(f"nothing came within {scale.timeout} s")
        try:
            system.join(0.0)
        except TimeoutError:
            time.sleep(every)
        else:
            raise SystemFailed(f"it ended: {system.reason}")


def collect(path: Path, system: System, scale: Scale) -> dict[str, float | list[float]]:
    until(path.exists, system, scale)
    return left_in(path)


def left_in(path: Path) -> dict[str, float | list[float]]:
    """What a handler has left there."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, float | list[float]])


def cpu(pid: int) -> float:
    """Seconds of processor time that all threads of a process had so far."""
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError, ValueError):
        times = psutil.Process(pid).cpu_times()  # only to hundredths of a second
        return float(times.user + times.system)


def one_of(value: float | list[float]) -> float:
    assert not isinstance(value, list)
    return value
