"""Stacks on demand, and what a crash leaves, with real processes."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors import stacks as stacks_module
from actors.last_words import LIMIT
from actors.process import WorkerProcess
from actors.reasons import Facts, account, tell
from actors.stacks import stacks
from tests.actors import targets
from tests.actors.faked import send
from tests.actors.waiting import text_of, until

pytestmark = pytest.mark.usefixtures("warm_forkserver")


@pytest.fixture
def no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where py-spy is not installed."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


def ended(process: WorkerProcess) -> int:
    assert select.select([process.pidfd], [], [], 60)[0]
    code = process.poll()
    assert code is not None
    return code


@pytest.mark.parametrize("how", ["idle", "Python", "C"])
def test_a_worker_shows_the_stacks_of_all_threads_however_it_hangs(started, tmp_path: Path, how: str) -> None:
    started.append(WorkerProcess.start(targets.waits_with_a_thread, (tmp_path / "up", how)))
    text_of(tmp_path / "up")
    for _ in range(2):
        shown = stacks(started[0], timeout=60)
        assert "waits_with_a_thread" in shown
        assert "thread_of_its_own" in shown
        assert shown.count("in waits_with_a_thread") == 1, "of this time only"
    assert started[0].poll() is None, "it goes on"


def test_a_stopped_worker_cannot_answer_and_this_is_said(started, tmp_path: Path, no_help) -> None:
    started.append(WorkerProcess.start(targets.waits_with_a_thread, (tmp_path / "up", "idle")))
    text_of(tmp_path / "up")
    send(started[0].pid, signal.SIGSTOP)
    shown = stacks(started[0])
    assert f"process {started[0].pid} is stopped (SIGSTOP) and cannot answer" in shown
    assert "py-spy, which could look from outside, is not installed" in shown
    send(started[0].pid, signal.SIGCONT)
    assert "waits_with_a_thread" in stacks(started[0], timeout=60)


def test_py_spy_helps_where_it_is_installed(started, tmp_path: Path) -> None:
    started.append(WorkerProcess.start(targets.waits_with_a_thread, (tmp_path / "up", "idle")))
    text_of(tmp_path / "up")
    send(started[0].pid, signal.SIGSTOP)
    shown = stacks(started[0])
    if "not installed" in shown or "could not help" in shown:
        pytest.skip(shown)
    assert "py-spy says" in shown
    assert "waits_with_a_thread" in shown


def test_a_worker_that_does_not_listen_is_not_killed_by_the_question(started, tmp_path: Path, no_help) -> None:
    started.append(WorkerProcess.start(targets.waits_with_a_thread, (tmp_path / "up", "deaf")))
    until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text() == "deaf", "it to be deaf")
    assert "does not listen" in stacks(started[0])
    assert started[0].poll() is None


def test_a_dead_or_closed_worker_is_told_to_be_dead() -> None:
    process = WorkerProcess.start(targets.returns, (0,))
    ended(process)
    assert "is dead" in stacks(process)
    process.close()
    assert "is dead" in stacks(process)


def test_an_answer_that_does_not_come_is_not_waited_for_long(started, monkeypatch, no_help) -> None:
    started.append(WorkerProcess.start(targets.holds))
    until(lambda: not stacks_module._refusal(started[0].pid), "it to listen")
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *given: None)
    assert "does not answer within 0.1 s" in stacks(started[0], timeout=0.1)


def test_py_spy_that_fails_says_why(started, monkeypatch) -> None:
    started.append(WorkerProcess.start(targets.holds))
    monkeypatch.setattr(stacks_module, "_refusal", lambda pid: "no")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert stacks(started[0]) == "no; py-spy could not help: "

    def late(*given: object, **more: object) -> None:
        raise subprocess.TimeoutExpired("py-spy", 10)

    monkeypatch.setattr(subprocess, "run", late)
    assert "timed out" in stacks(started[0])


@pytest.mark.parametrize(
    ("how", "number", "says"),
    [
        ("segfault", signal.SIGSEGV, "Segmentation fault"),
        ("abort", signal.SIGABRT, "Aborted"),
        ("stack overflow", signal.SIGSEGV, "Segmentation fault"),
    ],
)
def test_a_crash_leaves_the_python_stack(started, how: str, number: signal.Signals, says: str) -> None:
    started.append(WorkerProcess.start(targets.crashes, (how,)))
    facts = Facts(ended(started[0]), dump=started[0].words())
    assert facts.code == -number
    assert tell(facts).startswith(f"killed by {number.name} in crashes (targets.py:")
    kept = account(tell(facts), facts)
    assert f"Fatal Python error: {says}" in kept
    assert "in crashes" in kept


def test_a_crash_is_told_apart_from_stacks_asked_for_before(started, tmp_path: Path) -> None:
    started.append(WorkerProcess.start(targets.crashes_after_stacks, (tmp_path / "up",)))
    text_of(tmp_path / "up")
    assert "in crashes_after_stacks" in stacks(started[0], timeout=60)
    (tmp_path / "up.go").touch()
    code = ended(started[0])
    assert tell(Facts(code, dump=started[0].words())).startswith("killed by SIGSEGV in crashes (targets.py:")


def test_an_exception_before_the_worker_is_up_is_kept(started) -> None:
    started.append(WorkerProcess.start(targets.raises, ("no such thing",)))
    assert ended(started[0]) == 1
    assert started[0].words().endswith("ValueError: no such thing\n")


def test_the_next_one_begins_with_nothing_said(started) -> None:
    for _ in range(2):
        started.append(WorkerProcess.start(targets.raises, ("once",)))
        ended(started[-1])
        assert started[-1].words().count("ValueError: once") == 1


def test_answers_of_long_ago_are_dropped(started, tmp_path: Path) -> None:
    started.append(WorkerProcess.start(targets.waits_with_a_thread, (tmp_path / "up", "idle")))
    text_of(tmp_path / "up")
    os.write(started[0]._birth.words.fd, b"x" * (LIMIT + 1))
    assert stacks(started[0], timeout=60).count("x") < 100
    assert len(started[0].words()) < 10_000
