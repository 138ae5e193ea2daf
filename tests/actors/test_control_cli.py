"""`ringleader restart`, `drain`, `pause`, `resume`, `stacks` and `stop` on a running system: what they do, say and exit with."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from actors import looking
from actors.cli import app
from actors.control_client import ask
from actors.control_protocol import Empty, Info
from actors.control_socket import SOCKET
from actors.identity import stale_prefix
from actors.rundir import RunDirectory
from bus import remove_stale

from .faked import FakeSystem, send
from .running import ROOT, Running
from .waiting import until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def live(home: Path, tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.kill()
    with RunDirectory.open(running.path) as directory:
        identity = directory.read_identity()
        assert identity is not None
        remove_stale(stale_prefix(identity))


def ringleader(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Result) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    return result.exit_code, result.stdout, result.stderr


# ------------------------------------------------------------------------------------------------- on workers
def test_workers_are_restarted_one_after_the_other_and_nothing_is_lost(live: Running) -> None:
    before = {worker.name: worker.pid for worker in live.status().workers}
    code, out, err = told(ringleader("restart", "live", "stats", "ingest"))
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"stats: restarted, process \d+, epoch 2 \(after \d\.\d\d s\)\n"
        r"ingest: restarted, process \d+, epoch 2 \(after \d\.\d\d s\)\n",
        out,
    )
    for worker in live.status().workers:
        assert worker.pid != before[worker.name]
        assert f"process {worker.pid}," in out
    for _ in range(4):  # more often than the restart limit of this topology allows for deaths
        assert ringleader("restart", "live", "stats").exit_code == 0
    live.flows()
    assert told(ringleader("stop", "live")) == (0, "live: stopped with status 0: everything was handled\n", "")
    assert live.end()[0] == 0


def test_a_paused_worker_handles_nothing_until_it_is_resumed(live: Running) -> None:
    code, out, err = told(ringleader("pause", "live", "stats"))
    assert (code, err) == (0, "")
    assert re.fullmatch(r"stats: paused, process \d+, epoch 1 \(after \d\.\d\d s\)\n", out)
    count = live.handled()
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 100, "messages to wait")
    assert live.handled() == count
    code, out, err = told(ringleader("resume", "live", "stats", "--json"))
    assert (code, err) == (0, "")
    (record,) = json.loads(out)
    assert {**record, "pid": 0, "seconds": 0} == {
        "worker": "stats", "outcome": "resumed", "pid": 0, "epoch": 1, "seconds": 0
    }  # fmt: skip
    until(lambda: live.handled() > count + 100, "what has waited to be handled")


def test_a_drained_worker_has_handled_what_was_sent_to_it(live: Running) -> None:
    assert ringleader("pause", "live", "stats").exit_code == 0
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 50, "messages to wait")
    assert ringleader("drain", "live", "ingest").exit_code == 0  # its source sends no more
    sent = live.status().edge("ingest", "stats").committed
    assert live.handled() < sent
    code, out, err = told(ringleader("drain", "live", "stats"))
    assert (code, err) == (0, "")
    assert out.startswith("stats: drained, process ")
    assert live.handled() == sent
    assert [worker.paused for worker in ask(live.path, "info", Empty(), Info).workers] == [True, True]
    assert ringleader("resume", "live", "ingest", "stats").exit_code == 0
    until(lambda: live.handled() > sent, "both to go on")


def test_a_stop_handles_what_waits_for_paused_workers(live: Running) -> None:
    assert ringleader("pause", "live", "stats").exit_code == 0
    live.until(lambda status: status.edge("ingest", "stats").backlog_messages > 50, "messages to wait")
    code, out, _ = told(ringleader("stop", "live"))
    assert (code, out) == (0, "live: stopped with status 0: everything was handled\n")
    edge = live.handled()
    assert edge > 50
    assert live.end()[0] == 0


def test_without_waiting_a_worker_is_only_asked(live: Running) -> None:
    code, out, err = told(ringleader("restart", "live", "stats", "--no-wait"))
    assert (code, err) == (0, "")
    assert re.fullmatch(r"stats: asked to restart \(process \d+, epoch 1\)\n", out)
    live.until(lambda status: status.worker("stats").epoch == 2, "the restart")
    live.until(lambda status: status.worker("stats").state == "running", "it to be up")


def test_an_unknown_worker_exits_4_and_nothing_is_done(live: Running) -> None:
    for command in ("restart", "drain", "pause", "resume", "stacks"):
        code, out, err = told(ringleader(command, "live", "ingest", "stat"))
        assert (code, out) == (4, "")
        assert err == ("ringleader: live has no worker 'stat' (its workers are ingest, stats); did you mean 'stats'?\n")
    assert live.status().worker("ingest").epoch == 1


def test_a_worker_that_is_stopped_is_not_paused_in_time(live: Running) -> None:
    pid = live.status().worker("stats").pid
    assert pid is not None
    send(pid, signal.SIGSTOP)
    code, out, err = told(ringleader("pause", "live", "stats", "ingest", "--timeout", "0.2", "--json"))
    assert code == 6
    assert err == "ringleader: live: stats: not paused within 0.2 s: the worker is running\n"
    (record,) = json.loads(out)  # the second one was not tried
    assert (record["worker"], record["outcome"], record["error"]) == ("stats", "not-done", "not-in-time")
    send(pid, signal.SIGCONT)


def test_a_stopped_supervisor_is_told_after_a_few_seconds(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    send(live.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    code, _, err = told(ringleader("restart", "live", "stats"))
    assert code == 6
    assert err == (
        "ringleader: live: its supervisor has not answered within 3 s: it is stopped, or hangs; "
        f"`kill -CONT {live.process.pid}` lets it go on\n"
    )
    assert time.monotonic() - started < 15
    send(live.process.pid, signal.SIGCONT)


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


@pytest.mark.parametrize("command", ["restart", "drain", "pause", "resume", "stacks"])
def test_the_help_documents_the_exit_status(command: str) -> None:
    code, out, _ = told(ringleader(command, "--help"))
    assert code == 0
    assert re.findall(r"^ +(\d)  \w", out.partition("Exit status:")[2], re.MULTILINE) == list("0123456")


# ------------------------------------------------------------------------------------------------- stop
EMBEDDED = """
    import sys
    from pathlib import Path
    sys.path.insert(0, FOLDER)
    from live import app
    with app.start() as system:
        print("up", flush=True)
        print(system.join(60).name, flush=True)
    print("the program goes on", flush=True)
"""


def test_stop_ends_the_system_and_not_the_program_that_has_started_it(home: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, up=False)  # for its file
    running.kill()
    path = tmp_path / "embedded.py"
    path.write_text(textwrap.dedent(EMBEDDED).replace("FOLDER", repr(str(tmp_path))))
    program = subprocess.Popen([sys.executable, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        assert told(ringleader("stop", "live")) == (0, "live: stopped with status 0: everything was handled\n", "")
        assert program.communicate(timeout=60)[0] == "OK\nthe program goes on\n"
        assert program.returncode == 0
    finally:
        program.kill()
        program.communicate()


def test_stop_uses_signals_where_nobody_listens(live: Running) -> None:
    (live.path / SOCKET).unlink()
    assert told(ringleader("stop", "live")) == (0, "live: stopped with status 0: everything was handled\n", "")
    assert live.end()[0] == 0


def test_the_run_directory_has_a_socket_while_the_system_runs(live: Running) -> None:
    mode = os.lstat(live.path / SOCKET).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    live.process.kill()
    live.process.wait()
    assert (live.path / SOCKET).exists()
    code, _, err = told(ringleader("pause", "live", "stats"))
    assert code == 3
    assert "dead" in err


# ------------------------------------------------------------------------------------------------- stacks
def fake_py_spy(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What stands for py-spy, and is found first."""
    folder.mkdir()
    tool = folder / "py-spy"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_stacks_of_the_supervisor_are_its_own(live: Running) -> None:
    out = ringleader("stacks", "live").stdout
    assert f"supervisor, process {live.process.pid}\n" in out
    for thread in ("MainThread", "ringleader-supervisor", "ringleader-stacks, which asks"):
        assert f"thread {thread} (most recent call last):\n" in out
    assert "in run" in out


def test_when_the_supervisor_does_not_answer_py_spy_is_asked_instead(
    live: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_py_spy(tmp_path / "bin", monkeypatch, 'echo "$*"')
    send(live.process.pid, signal.SIGSTOP)
    code, out, err = told(ringleader("stacks", "live", "--json"))
    assert (code, err) == (0, "")
    looks = json.loads(out)
    assert [(one["name"], one["how"]) for one in looks] == [
        ("supervisor", "py-spy"), ("ingest", "py-spy"), ("stats", "py-spy")
    ]  # fmt: skip
    assert [one["stacks"] for one in looks] == [f"dump --nonblocking --pid {one['pid']}\n" for one in looks]
    send(live.process.pid, signal.SIGCONT)


def test_without_py_spy_it_says_what_to_do(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "py_spy", lambda: None)
    send(live.process.pid, signal.SIGSTOP)
    code, out, err = told(ringleader("stacks", "live"))
    assert code == 6
    assert (
        f"supervisor: its supervisor has not answered within 3 s: it is stopped, or hangs; `kill -CONT {live.process.pid}` lets it go on\n"
        in err
    )
    assert "stats: its supervisor has not answered within 3 s: it is stopped, or hangs; py-spy can look into it" in err
    send(live.process.pid, signal.SIGCONT)


def test_what_py_spy_cannot_do_is_told(live: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_py_spy(tmp_path / "bin", monkeypatch, "echo Error: Permission Denied >&2; exit 1")
    send(live.process.pid, signal.SIGSTOP)
    code, _, err = told(ringleader("stacks", "live", "stats"))
    assert code == 6
    assert "stats: its supervisor has not answered" in err
    assert "py-spy failed: Error: Permission Denied" in err
    send(live.process.pid, signal.SIGCONT)
