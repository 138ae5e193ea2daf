"""Servers of peers: each is there while it is needed and gone afterwards. And the peers themselves, where they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from tests.actors.waiting import until
from tests.bench import actor_peers, brokers
from tests.bench.machine import ROOT
from tests.bench.measure import Case, Scale
from tests.bench.servers import HOST, ServerFailed, serving, without_server

DEADLINE = 60.0
LISTEN = """
import os, socket, sys, time
with open(sys.argv[2], "w") as file:
    file.write(str(os.getpid()))
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(600)
"""


def listening(note: Path) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-c", LISTEN, str(port), str(note)]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_server_accepts_connections_and_ends_with_its_files(tmp_path: Path) -> None:
    place, note = tmp_path / "place", tmp_path / "note"
    place.mkdir()
    with serving(listening(note), Scale(place)) as port:
        socket.create_connection((HOST, port), timeout=DEADLINE).close()
        assert list(place.iterdir())
    assert gone(int(note.read_text()))
    assert not list(place.iterdir())


class Clock:
    """In place of the module `time`: it stands still until the server has said something, and then its time is over."""

    def __init__(self, log: str) -> None:
        self.log, self.sleep = log, time.sleep

    def monotonic(self) -> float:
        return 1000.0 if any(path.stat().st_size for path in Path().glob(self.log)) else 0.0


def test_a_server_that_does_not_start_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.bench.servers.time", Clock("*/log"))
    with (
        pytest.raises(ServerFailed, match="out of luck"),
        serving(lambda port: [sys.executable, "-c", "print('out of luck')"], Scale(tmp_path)),
    ):
        pass
    assert not list(tmp_path.iterdir())


ASKER = """
import sys, time
from pathlib import Path
from tests.bench.measure import Scale
from tests.bench.servers import serving
from tests.bench.test_servers import listening
with serving(listening(Path(sys.argv[2])), Scale(Path(sys.argv[1]))):
    print("here", flush=True)
    time.sleep(600)
"""


def test_a_server_ends_with_whoever_asked_for_it(tmp_path: Path) -> None:
    place, note = tmp_path / "place", tmp_path / "note"
    place.mkdir()
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER, str(place), str(note)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    assert asker.stdout is not None
    assert asker.stdout.readline() == b"here\n"
    os.killpg(asker.pid, signal.SIGKILL)
    asker.wait(DEADLINE)
    asker.stdout.close()
    until(lambda: gone(int(note.read_text())) and not list(place.iterdir()), "its server and its files to go", DEADLINE)


def test_a_server_that_is_not_installed_says_how_to_get_it() -> None:
    assert without_server("sh", "dash") == ""
    assert without_server("no-such-server", "some-package") == (
        "no-such-server is not installed: apt-get install some-package"
    )


@pytest.fixture
def sides() -> Iterator[None]:
    """The fork server of this process ends with the test."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize("case", [*brokers.cases(), *actor_peers.cases()], ids=lambda case: case.key)
def test_a_peer_is_measured_where_it_is_installed(tmp_path: Path, case: Case) -> None:
    if case.missing:
        pytest.skip(case.missing)
    assert all(value > 0 for values in case.run(Scale(tmp_path, 0.001)).values() for value in values)
    assert not list(tmp_path.iterdir())
