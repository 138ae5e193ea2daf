"""What tests of worker processes share."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from actors.process import WorkerProcess, start_forkserver, stop_forkserver


@pytest.fixture(scope="module")
def warm_forkserver() -> Iterator[None]:
    """A fork server of this module's own, which has the targets imported."""
    stop_forkserver()
    start_forkserver(("tests.actors.targets",))
    yield
    stop_forkserver()


@pytest.fixture
def started() -> Iterator[list[WorkerProcess]]:
    """Processes that a test started; whatever happens, they end with it."""
    processes: list[WorkerProcess] = []
    yield processes
    for process in processes:
        process.kill()
        select.select([process.pidfd], [], [], 60)
        process.close()
