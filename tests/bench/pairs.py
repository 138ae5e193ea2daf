"""Two processes that measure something between them.

A side is a function of an importable module: `side(meet, *args) -> result`. It prepares what it needs, calls `meet()`,
does its part, calls `meet()` again, gives back what it holds and returns what it measured. `meet()` returns in both
processes when both have called it: nobody sends before the other can receive, or closes before the other has it all.
The second side is begun when the first is prepared, so that it may connect to what that one has bound. Nothing of a
pair stays.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")  # as workers are started: forked from a small process, quickly
CONTEXT.set_forkserver_preload(["tests.bench.transports"])

GRACE = 10.0  # seconds

Meet = Callable[[], None]
Side = Callable[..., Any]


class SideFailed(Exception):
    """One of the two processes raised, died, or took too long."""


def run_pair(first: tuple[Side, tuple[Any, ...]], second: tuple[Side, tuple[Any, ...]], timeout: float) -> list[Any]:
    """What the two sides returned. Raises SideFailed."""
    return run_sides((first, second), timeout)


def run_alone(side: Side, args: tuple[Any, ...], timeout: float) -> Any:
    """The same with a single process, for what brings its own others along."""
    return run_sides(((side, args),), timeout)[0]


def run_sides(sides: Sequence[tuple[Side, tuple[Any, ...]]], timeout: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    links, processes = [], []
    try:
        for side, args in sides:
            link, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_run, args=(theirs, side, args), daemon=True)
            with uninterrupted():
                process.start()
            theirs.close()
            links.append(link)
            processes.append(process)
            _expect(link, deadline)
        for link in links:
            link.send("begin")
        for link in links:
            _expect(link, deadline)
        for link in links:
            link.send("end")
        results = [_expect(link, deadline) for link in links]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return results
    finally:
        for process in processes:
            process.terminate()  # who has started something more of its own ends that first
        for process in processes:
            process.join(GRACE)
            process.kill()
            process.join()
            process.close()
        for link in links:
            link.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is typed at a terminal acts when the block is left: a process that was told half of what it is to do, or has
    not yet said that it minds no interrupt, would end with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _expect(link: Connection[Any, Any], deadline: float) -> Any:
    if not link.poll(max(0.0, deadline - time.monotonic())):
        raise SideFailed("a side of the pair took too long")
    try:
        kind, value = link.recv()
    except EOFError:
        raise SideFailed("a side of the pair died") from None
    if kind == "error":
        raise SideFailed(value)
    return value


def _run(link: Connection[Any, Any], side: Side, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is typed at a terminal ends the benchmark, and that its sides

    def meet() -> None:
        link.send(("here", None))
        link.recv()

    try:
        link.send(("result", side(meet, *args)))
    except Exception:
        with suppress(OSError):  # nobody wants to know any more: the benchmark was interrupted
            link.send(("error", traceback.format_exc()))


def timed(meet: Meet, receive: Callable[[], int], count: int) -> tuple[int, float]:
    """Receives until there were `count`; how many came after the first time, and in how many seconds."""
    meet()
    first = received = receive()
    began = time.monotonic()
    while received < count:
        received += receive()
    elapsed = time.monotonic() - began
    meet()
    return received - first, elapsed
