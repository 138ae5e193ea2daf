"""The commands on a running system: what `restart`, `drain`, `pause`, `resume`, `stacks` and `stop` do and say."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from actors import ExitStatus, State, Topology, handle, looking
from actors.cli import app
from actors.control_client import ask
from actors.control_protocol import Empty, Info
from actors.control_socket import SOCKET
from actors.handler import Handler
from actors.identity import stale_prefix
from actors.message import Message
from actors.rundir import RunDirectory
from actors.status_types import SystemStatus
from bus import remove_stale
from persist import read

from .faked import FakeSystem, send
from .running import Running
from .waiting import until

NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Tick(Message):
    n: int


class Count(State):
    n: int = 0


class Source(Handler):
    state: Count

    def on_loop(self) -> float | None:
        self.state.n += 1
        self.send(Tick(self.state.n))
        return 0.001


class Sink(Handler):
    state: Count

    @handle
    def on_tick(self, tick: Tick) -> None:
        assert tick.n == self.state.n + 1, (tick.n, self.state.n)
        self.state.n += 1


class Live:
    """Numbers flow from `ingest` to `stats`, which fails when one is missing, doubled or out of order."""

    def __init__(self, home: Path) -> None:
        topology = Topology("live", directory=home / "live", max_restarts=3)
        topology.worker("ingest", source=Source)
        topology.worker("stats", sink=Sink)
        topology.route("source", Tick, to="sink")
        self.path = home / "live"
        self.system = topology.start()

    def until(self, condition: Callable[[SystemStatus], object], what: str) -> SystemStatus:
        until(lambda: condition(self.system.status()), what, 30)
        return self.system.status()

    def handled(self) -> int:
        """What the sink has counted, as its journal has it."""
        state = read(self.path / "journals" / "stats").states.get("sink")
        return msgspec.msgpack.decode(state)["n"] if state else 0

    def flows(self) -> None:
        now = self.handled()
        until(lambda: self.handled() > now, "a message to be handled")


@pytest.fixture
def live(home: Path) -> Iterator[Live]:
    made = Live(home)
    yield made
    assert made.system.stop(timeout=60) is ExitStatus.OK
    assert made.system.status().dead_letters == 0


@pytest.fixture
def running(home: Path, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.kill()
    with RunDirectory.open(made.path) as directory:
        identity = directory.read_identity()
        assert identity is not None
        remove_stale(stale_prefix(identity))


def ringleader(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Result) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    return result.exit_code, result.stdout, result.stderr


# ------------------------------------------------------------------------------------------------- on workers
def test_workers_are_restarted_one_after_the_other_and_nothing_is_lost(live: Live) -> None:
    before = {worker.name: worker.pid for worker in live.system.status().workers}
    code, out, err = told(ringleader("restart", "live", "stats", "ingest"))
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"stats: restarted, process \d+, epoch 2 \(after \d+\.\d\d s\)\n"
        r"ingest: restarted, process \d+, epoch 2 \(after \d+\.\d\d s\)\n",
        out,
    )
    for worker in live.system.status().workers:
        assert worker.pid != before[worker.name]
        assert f"process {worker.pid}," in out
    for _ in range(4):  # more often than the restart limit of this topology allows for deaths
        assert ringleader("restart", "live", "stats").exit_code == 0
    live.flows()


def test_a_paused_worker_handles_nothing_until_it_is_resumed(live: Live) -> None:
    code, out, err = told(ringleader("pause", "live", "stats"))
    assert (code, err) == (0, "")
    assert re.fullmatch(r"stats: paused, process \d+, epoch 1 \(after \d+\.\d\d s\)\n", out)
    count = live.handled()
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 100, "messages to wait")
    assert live.handled() == count
    code, out, err = told(ringleader("resume", "live", "stats", "--json"))
    assert (code, err) == (0, "")
    (record,) = json.loads(out)
    assert (record["worker"], record["outcome"], record["epoch"]) == ("stats", "resumed", 1)
    assert sorted(record) == ["epoch", "outcome", "pid", "seconds", "worker"]
    until(lambda: live.handled() > count + 100, "what has waited to be handled")


def test_a_drained_worker_has_handled_what_was_sent_to_it(live: Live) -> None:
    assert ringleader("pause", "live", "stats").exit_code == 0
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 50, "messages to wait")
    assert ringleader("drain", "live", "ingest").exit_code == 0  # its source sends no more
    sent = live.system.status().edge("ingest", "stats").committed
    assert live.handled() < sent
    code, out, err = told(ringleader("drain", "live", "stats"))
    assert (code, err) == (0, "")
    assert out.startswith("stats: drained, process ")
    assert live.handled() == sent
    assert [worker.paused for worker in ask(live.path, "info", Empty(), Info).workers] == [True, True]
    assert ringleader("resume", "live", "ingest", "stats").exit_code == 0
    until(lambda: live.handled() > sent, "both to go on")


def test_stop_handles_what_waits_for_paused_workers_and_spares_the_program(live: Live) -> None:
    """The system runs within this very process, which a signal would have ended."""
    assert ringleader("pause", "live", "stats").exit_code == 0
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 50, "messages to wait")
    code, out, err = told(ringleader("stop", "live"))
    assert (code, out, err) == (0, "live: stopped with status 0: everything was handled\n", "")
    assert live.system.join(30) is ExitStatus.OK
    assert live.handled() == read(live.path / "journals" / "ingest").assigned["stats"] > 50
    assert not (live.path / SOCKET).exists()


@pytest.mark.parametrize(("end", "state"), [(signal.SIGKILL, "gave_up"), (None, "stopped")])
def test_a_worker_that_is_over_is_brought_back(home: Path, end: signal.Signals | None, state: str) -> None:
    topology = Topology("live", directory=home / "live")
    for name in ("stays", "leaves"):
        topology.worker(name, **{f"{name}_sink": Sink})
        topology.external(f"{name}_sink", Tick)
    if end is None:
        topology.supervise("leaves", restart="temporary")
    else:
        topology.group("frail", ["leaves"], max_restarts=0, restart="temporary")
    with topology.start() as system:
        os.kill(system.status().worker("leaves").pid or 0, end or signal.SIGABRT)
        until(lambda: system.status().worker("leaves").state == state, f"it to be {state}")
        for command in ("pause", "resume"):
            assert "it has ended and is not started again" in ringleader(command, "live", "leaves").stderr
        result = ringleader("restart", "live", "leaves")
        assert (result.exit_code, result.stderr) == (0, "")
        assert system.status().worker("leaves").state == "running"


def test_without_waiting_a_worker_is_only_asked(live: Live) -> None:
    code, out, err = told(ringleader("restart", "live", "stats", "--no-wait"))
    assert (code, err) == (0, "")
    assert re.fullmatch(r"stats: asked to restart \(process \d+, epoch 1\)\n", out)
    live.until(lambda status: status.worker("stats").epoch == 2, "the restart")


def test_an_unknown_worker_exits_4_and_nothing_is_done(live: Live) -> None:
    for command in ("restart", "drain", "pause", "resume", "stacks"):
        code, out, err = told(ringleader(command, "live", "ingest", "stat"))
        assert (code, out) == (4, "")
        assert err == "ringleader: live has no worker 'stat' (its workers are ingest, stats); did you mean 'stats'?\n"
    assert live.system.status().worker("ingest").epoch == 1


def test_what_does_not_take_effect_in_time_exits_6_and_ends_the_command(live: Live) -> None:
    pid = live.system.status().worker("stats").pid
    assert pid is not None
    send(pid, signal.SIGSTOP)
    code, out, err = told(ringleader("pause", "live", "stats", "ingest", "--timeout", "0.2", "--json"))
    send(pid, signal.SIGCONT)
    assert code == 6
    assert re.match(r"ringleader: live: stats: not paused within 0\.2 s: .*the worker is running", err)
    (record,) = json.loads(out)  # the second one was not tried
    assert (record["worker"], record["outcome"], record["error"]) == ("stats", "not-done", "not-in-time")


def test_a_system_that_does_not_run_exits_3_and_an_unknown_one_4(home: Path) -> None:
    system = FakeSystem(home, "trades")
    code, _, err = told(ringleader("pause", "trades", "stats"))
    assert (code, err) == (3, "ringleader: trades: it has no control socket\n")
    system.end(0, "")
    system.unlink()
    for command in ("restart", "drain", "pause", "resume", "stacks"):
        code, _, err = told(ringleader(command, "trades", "stats"))
        assert code == 3
        assert err.startswith("ringleader: trades: stopped ")
        code, _, err = told(ringleader(command, "trade", "stats"))
        assert code == 4
        assert "did you mean trades?" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_system_exits_5(home: Path) -> None:
    system = FakeSystem(home, "trades")
    os.chown(system.path, NOBODY, NOBODY)
    for command in ("restart", "drain", "pause", "resume", "stacks"):
        assert ringleader(command, "trades", "stats").exit_code == 5
    system.unlink()


@pytest.mark.parametrize("command", ["restart", "drain", "pause", "resume", "stacks"])
def test_the_help_documents_the_exit_status(command: str) -> None:
    code, out, _ = told(ringleader(command, "--help"))
    assert code == 0
    assert re.findall(r"^ +(\d)  \w", out.partition("Exit status:")[2], re.MULTILINE) == list("0123456")


# ------------------------------------------------------------------------------------------------- stacks
def test_stacks_of_the_supervisor_are_its_own(live: Live) -> None:
    out = ringleader("stacks", "live").stdout
    assert f"supervisor, process {os.getpid()}\n" in out
    for thread in ("MainThread", "ringleader-supervisor", "ringleader-stacks, which asks"):
        assert f"thread {thread} (most recent call last):\n" in out
    assert "test_stacks_of_the_supervisor_are_its_own" in out


def test_stacks_of_workers_are_those_of_their_loops(live: Live) -> None:
    code, out, err = told(ringleader("stacks", "live", "stats", "ingest"))
    assert (code, err) == (0, "")
    for worker in live.system.status().workers:
        assert f"{worker.name}, process {worker.pid}\n" in out
    assert out.count("worker.py") >= 2


def fake_py_spy(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What stands for py-spy, and is found first."""
    folder.mkdir()
    tool = folder / "py-spy"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_supervisor_that_does_not_answer_is_told_and_py_spy_asked_instead(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.control_protocol.SILENCE", 0.5)
    pid = running.process.pid
    send(pid, signal.SIGSTOP)
    silent = "its supervisor has not answered within 0.5 s: it is stopped, or hangs"
    started = time.monotonic()
    code, _, err = told(ringleader("restart", "live", "stats"))
    assert code == 6
    assert err == f"ringleader: live: {silent}; `kill -CONT {pid}` lets it go on\n"
    assert time.monotonic() - started < 10

    with monkeypatch.context() as patch:
        patch.setattr(looking, "py_spy", lambda: None)
        code, _, err = told(ringleader("stacks", "live"))
    assert code == 6
    assert f"supervisor: {silent}; `kill -CONT {pid}` lets it go on\n" in err
    assert f"stats: {silent}; py-spy can look into it: install that\n" in err

    fake_py_spy(tmp_path / "works", monkeypatch, 'echo "$*"')
    code, out, err = told(ringleader("stacks", "live", "--json"))
    assert (code, err) == (0, "")
    looks = json.loads(out)
    assert [(one["name"], one["how"]) for one in looks] == [
        ("supervisor", "py-spy"),
        ("ingest", "py-spy"),
        ("stats", "py-spy"),
    ]
    assert [one["stacks"] for one in looks] == [f"dump --nonblocking --pid {one['pid']}\n" for one in looks]

    fake_py_spy(tmp_path / "fails", monkeypatch, "echo Error: Permission Denied >&2; exit 1")
    code, _, err = told(ringleader("stacks", "live", "stats"))
    assert code == 6
    assert err == f"ringleader: stats: {silent}; py-spy failed: Error: Permission Denied\n"
    send(pid, signal.SIGCONT)


# ------------------------------------------------------------------------------------------------- stop
def test_stop_uses_signals_where_nobody_listens(running: Running) -> None:
    mode = os.lstat(running.path / SOCKET).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    (running.path / SOCKET).unlink()
    assert told(ringleader("stop", "live")) == (0, "live: stopped with status 0: everything was handled\n", "")
    assert running.end()[0] == 0
