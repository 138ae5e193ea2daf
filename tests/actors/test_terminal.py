"""Signals of a terminal: Ctrl-C, Ctrl-Z, a terminal that closes, and a program that shall outlive it."""

from __future__ import annotations

import os
import pty
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from actors.launch import _Interrupted, _Signals
from actors.rundir import RunDirectory
from actors.system import System

from .running import RUN, Running
from .waiting import until


class Asked:
    """Stands for a system."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def request_stop(self) -> None:
        self.calls.append("drain")

    def request_stop_now(self) -> None:
        self.calls.append("stop now")


def reached(signals: _Signals) -> Asked:
    asked = Asked()
    signals.reach(cast(System, asked))
    return asked


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_the_second_stops(first: signal.Signals, second: signal.Signals) -> None:
    with _Signals() as signals:
        asked = reached(signals)
        signal.raise_signal(first)
        assert asked.calls == ["drain"]
        signal.raise_signal(second)
        assert asked.calls == ["drain", "stop now"]


def test_a_terminal_that_closes_drains_however_often_it_says_so() -> None:
    """The kernel sends SIGHUP to the foreground processes, and the shell does so as well."""
    with _Signals() as signals:
        asked = reached(signals)
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert asked.calls == ["drain"]


def test_under_nohup_a_terminal_that_closes_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _Signals() as signals:
            asked = reached(signals)
            signal.raise_signal(signal.SIGHUP)
            assert asked.calls == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_there_is_a_system_takes_effect_when_there_is_one() -> None:
    with _Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert reached(signals).calls == ["drain"]


def test_a_second_signal_before_there_is_a_system_ends_the_start() -> None:
    with _Signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(_Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)


def test_the_handlers_before_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with _Signals():
        assert all(signal.getsignal(number) != handler for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


SHELL = 'set -m; "$@"; echo "stopped $?"; read line; fg >/dev/null; echo "ended $?"'


class Terminal:
    """A real one, with a shell in it that has job control and runs a system in the foreground."""

    def __init__(self, folder: Path) -> None:
        self.control, end = pty.openpty()
        streams: dict[str, Any] = {"stdin": end, "stdout": end, "stderr": end, "text": False}
        command = ["setsid", "--ctty", "--wait", "bash", "-c", SHELL, "bash", *RUN]
        self.running = Running(folder, command=command, **streams)
        os.close(end)
        self.seen = b""

    def press(self, keys: bytes) -> None:
        os.write(self.control, keys)

    def shows(self, text: bytes) -> bool:
        if select.select([self.control], [], [], 0.02)[0]:
            self.seen += os.read(self.control, 65536)
        return text in self.seen

    def close(self) -> None:
        if self.control >= 0:
            os.close(self.control)
            self.control = -1


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()
    made.running.kill()


def test_ctrl_z_stops_the_supervisor_only_and_ctrl_c_drains_and_says_so(terminal: Terminal) -> None:
    terminal.running.flows()
    terminal.press(b"\x1a")
    until(lambda: terminal.shows(b"stopped 148"), "the shell to go on", 30)
    terminal.running.flows()
    terminal.press(b"\n")
    until(lambda: "T" not in states(terminal.running), "the supervisor to go on", 30)
    terminal.press(b"\x03")
    until(lambda: terminal.shows(b"ended "), "the end", 60)
    assert terminal.seen.count(b"ringleader: draining; again to stop now\r\n") == 1
    assert b"ended 0" in terminal.seen
    assert b"Traceback" not in terminal.seen


def states(running: Running) -> str:
    supervisor = running.status().supervisor
    assert supervisor is not None
    return Path(f"/proc/{supervisor.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_when_the_terminal_closes_everything_is_handled_first(terminal: Terminal) -> None:
    terminal.running.flows()
    terminal.close()

    def ended() -> bool:
        with RunDirectory.open(terminal.running.path, create=False) as directory:
            return directory.read_exit() is not None

    until(ended, "the end to be on record", 60)
    with RunDirectory.open(terminal.running.path, create=False) as directory:
        ending = directory.read_exit()
    assert ending is not None
    assert (ending.status, ending.reason) == (0, "everything was handled")
