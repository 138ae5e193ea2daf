"""Fixtures for all tests: whoever leaves a child process, a shared-memory segment or a thread behind fails."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

SHM = Path("/dev/shm")
GRACE = 10.0  # seconds for processes that were told to end to be gone; who goes at all goes sooner

# What a property says of an input has nothing to do with how long the machine takes for it.
settings.register_profile("ringleader", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ringleader")
SINGLETONS = (
    "ringleader: guardian",
    "ringleader: fork server",
    "multiprocessing.resource_tracker",
)


def _children() -> set[psutil.Process]:
    """Child processes, but for the helpers of which there is one per process."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(name in command for name in SINGLETONS):
                found.add(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _segments() -> set[str]:
    return {entry.name for entry in SHM.glob("ringleader*")} if SHM.is_dir() else set()


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    before = (_children(), _segments(), _threads())
    yield
    deadline = time.monotonic() + GRACE
    while True:
        children, segments, threads = _children() - before[0], _segments() - before[1], _threads() - before[2]
        if not (children or segments or threads):
            return
        if time.monotonic() > deadline:
            break
        threading.Event().wait(0.02)
    for child in children:
        child.kill()
    pytest.fail(f"left behind: processes {children}, segments {segments}, threads {threads}")


def pytest_configure() -> None:
    # Background jobs of a shell ignore signals, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # started by nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="runs for minutes: --long")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)
