"""Servers of peers: each run of a case has one of its own, on loopback, on a free port, with a directory of its own."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.guard import LOG
from tests.bench.machine import ROOT
from tests.bench.measure import Scale

HOST = "127.0.0.1"
START = 20.0  # seconds until it has to accept connections
END = 15.0


class ServerFailed(Exception):
    """It did not start."""


def without_server(command: str, package: str) -> str:
    """Why a server cannot be started; empty if it can."""
    return "" if shutil.which(command) else f"{command} is not installed: apt-get install {package}"


@contextmanager
def serving(command: Callable[[int], list[str]], scale: Scale) -> Iterator[int]:
    """The port of a server that accepts connections. Its process and its files are gone afterwards, also if this
    process is killed meanwhile."""
    place = scale.directory / f"server-{secrets.token_hex(4)}"
    place.mkdir(mode=0o700)
    port = _free_port()
    guard = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.guard", str(place.resolve()), *command(port)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,  # what is typed at a terminal is for the benchmark, which then ends this
    )
    try:
        _await(port, place / LOG, guard)
        yield port
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(END)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        shutil.rmtree(place, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def _await(port: int, log: Path, guard: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        if time.monotonic() > deadline or guard.poll() is not None:
            words = log.read_text(errors="replace") if log.exists() else ""
            raise ServerFailed(f"no server at port {port}: {words[-500:].strip() or 'it said nothing'}")
        time.sleep(0.02)
