"""Two processes that measure something between them.

A side is a function of an importable module: `side(start, *args) -> result`. It prepares what it needs, calls
`start()`, which returns in both processes when both are prepared, and returns what it measured. Nothing of a pair
stays.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")  # as workers are started: forked from a small process, quickly
CONTEXT.set_forkserver_preload(["tests.bench.transports"])

Start = Callable[[], None]
Side = Callable[..., Any]


class SideFailed(Exception):
    """One of the two processes raised, died, or took too long."""


def run_pair(first: tuple[Side, tuple[Any, ...]], second: tuple[Side, tuple[Any, ...]], timeout: float) -> list[Any]:
    """What the two sides returned. Raises SideFailed."""
    deadline = time.monotonic() + timeout
    links, processes = [], []
    try:
        for side, args in (first, second):
            link, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_run, args=(theirs, side, args), daemon=True)
            process.start()
            theirs.close()
            links.append(link)
            processes.append(process)
        for link in links:
            _expect(link, deadline)
        for link in links:
            link.send("go")
        results = [_expect(link, deadline) for link in links]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for link in links:
            link.close()


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
    def start() -> None:
        link.send(("ready", None))
        link.recv()

    try:
        link.send(("result", side(start, *args)))
    except Exception:
        link.send(("error", traceback.format_exc()))
