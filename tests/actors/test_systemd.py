"""What systemd is told, and when: by a notifier with a clock of the test, and by a real `ringleader run`."""

from __future__ import annotations

import os
import secrets
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import events
from actors.exits import ExitStatus
from actors.systemd import EXTEND_BY, EXTEND_EVERY, Notifier

from .running import Running
from .waiting import until


class Manager:
    """What systemd is to a service: a datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.told: list[tuple[str, str]] = []

    def look(self) -> list[tuple[str, str]]:
        """Everything that it was told until now."""
        while True:
            try:
                data = self.socket.recv(65536).decode()
            except BlockingIOError:
                return self.told
            self.told += [(key, value) for key, _, value in (line.partition("=") for line in data.split("\n"))]

    def values(self, key: str) -> list[str]:
        return [value for told, value in self.look() if told == key]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@ringleader-test-{secrets.token_hex(8)}")
    yield made
    made.socket.close()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


STARTED = events.SystemStarted("trades", 1, ("ingest", "stats"))


def up(notifier: Notifier) -> None:
    notifier(STARTED)
    notifier(events.WorkerReady("ingest", 2, 1))
    notifier(events.WorkerReady("stats", 3, 1))
    notifier(events.SystemReady("trades"))


def test_ready_is_told_when_every_worker_is_up(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier(STARTED)
    notifier(events.WorkerReady("ingest", 2, 1))
    assert manager.look() == [("STATUS", "starting 2 workers"), ("STATUS", "starting: 1 of 2 workers up")]
    notifier(events.WorkerReady("stats", 3, 1))
    notifier(events.SystemReady("trades"))
    assert manager.look()[-2:] == [("READY", "1"), ("STATUS", "2 of 2 workers up")]
    notifier.close()


def test_deaths_and_restarts_are_in_the_status(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    up(notifier)
    notifier(events.WorkerDied("stats", 3, 1, "killed by SIGKILL", None))
    notifier(events.WorkerRestarting("stats", 0.0, 1))
    notifier(events.WorkerReady("stats", 4, 2))
    assert manager.values("STATUS")[-1] == "2 of 2 workers up, 1 restart, last death of stats: killed by SIGKILL"
    assert manager.values("READY") == ["1"]
    notifier.close()


def test_the_end_is_told_with_its_status(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    up(notifier)
    notifier(events.SystemDraining("trades", "requested"))
    notifier(events.SystemStopping("trades", "not everything\nwas handled"))
    notifier(events.SystemStopped("trades", ExitStatus.NOT_DRAINED, "not everything was handled"))
    assert "1" in manager.values("STOPPING")
    assert manager.values("STATUS")[-3:] == [
        "draining: requested",
        "stopping: not everything was handled",  # in one line
        "stopped with status 4 (NOT_DRAINED): not everything was handled",
    ]
    notifier.close()


def test_the_watchdog_hears_of_it_only_when_the_loop_turns(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier(manager.address, 8.0, clock=clock)
    up(notifier)
    assert manager.values("WATCHDOG") == []
    for _ in range(80):  # 8 seconds of a loop that turns ten times a second
        notifier.beat()
        clock.now += 0.1
    assert len(manager.values("WATCHDOG")) == 4
    clock.now += 100
    notifier(events.WorkerDied("stats", 3, 1, "killed by SIGKILL", None))
    assert len(manager.values("WATCHDOG")) == 4, "an event is no turn of the loop"
    notifier.beat()
    assert len(manager.values("WATCHDOG")) == 5
    notifier.close()


def test_time_is_asked_for_while_it_starts_or_drains_and_only_then(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier(manager.address, clock=clock)

    def beats(seconds: int) -> int:
        before = len(manager.values("EXTEND_TIMEOUT_USEC"))
        for _ in range(seconds * 2):
            notifier.beat()
            clock.now += 0.5
        return len(manager.values("EXTEND_TIMEOUT_USEC")) - before

    notifier(STARTED)
    assert beats(20) == 20 / EXTEND_EVERY
    notifier(events.SystemReady("trades"))
    assert beats(20) == 0
    notifier(events.SystemDraining("trades", "requested"))
    assert manager.look()[-1] == ("EXTEND_TIMEOUT_USEC", str(int(EXTEND_BY * 1e6))), "at once: little time may be left"
    assert beats(20) == 20 / EXTEND_EVERY - 1
    notifier(events.SystemStopped("trades", ExitStatus.OK, "everything was handled"))
    assert beats(20) == 0
    assert EXTEND_EVERY * 3 < EXTEND_BY
    notifier.close()


def test_what_the_manager_does_not_take_is_told_later_and_nobody_waits(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    filler.connect(manager.socket.getsockname())
    while select.select([], [filler], [], 0)[1]:
        filler.send(b"X=1")
    filler.close()
    up(notifier)
    notifier.beat()
    assert manager.values("READY") == []
    notifier.beat()
    assert manager.values("READY") == ["1"]
    assert manager.values("STATUS") == ["2 of 2 workers up"], "only the newest"
    notifier.close()


def test_a_manager_that_is_gone_is_logged_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "gone"), 1.0)
    up(notifier)
    notifier.beat()
    notifier.close()
    assert caplog.text.count("cannot be notified") == 1


def test_the_variables_are_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/"}
    assert (notifier.active, notifier.watchdog) == (True, 8.0)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "relative"},
    ],
)
def test_without_a_socket_nothing_is_done(environment: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environment)
    up(notifier)
    notifier.beat()
    assert not notifier.active
    assert notifier._socket is None


@pytest.mark.parametrize(
    "environment", [{"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "no"}]
)
def test_a_watchdog_of_somebody_else_or_none_is_left_alone(environment: dict[str, str]) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": "@x", **environment}).watchdog is None


def test_a_real_system_notifies_its_manager_and_its_workers_do_not(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    running = Running(tmp_path, environment={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"})
    try:
        until(lambda: manager.values("READY"), "READY=1", 30)
        started = time.monotonic()
        count = len(manager.values("WATCHDOG"))
        until(lambda: len(manager.values("WATCHDOG")) >= count + 3, "three signs of life", 30)
        assert time.monotonic() - started > 0.9
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 3
        for child in family:
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys(), child.cmdline()
        running.process.terminate()
        # What finds no room is told at the next turn of the loop, and behind the last word there is none: so it is
        # read meanwhile, as by a manager. The socket may hold ten packets, which a slow end fills.
        until(lambda: manager.look() and running.process.poll() is not None, "the end")
        assert running.end() == (0, "", "")
        assert "1" in manager.values("STOPPING")
        assert manager.values("STATUS")[-1] == "stopped with status 0 (OK): everything was handled"
        assert manager.values("EXTEND_TIMEOUT_USEC")
    finally:
        running.kill()
        manager.socket.close()
