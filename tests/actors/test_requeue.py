"""Dead letters that are handled again, or forgotten: exactly once, whether the system runs or not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors import AskFailed, ExitStatus, Handler, Message, SystemClosed, Topology, control_protocol, handle
from actors.cli import app
from actors.dead_letters import LetterChange, LetterPlace, collect
from actors.letters_stopped import change_stopped
from actors.rundir import AlreadyRunning
from actors.system import System
from bus import Field, WorkerState
from persist import Journal, check, read, replay
from persist.reopen import reopen

from .poisoned import Done, Get, Job, Log, Seen, Worker, done_by, kill, letters_of
from .waiting import until

LEVELS = ["process", "power"]


class Told(Message):
    n: int


class Teller(Worker):
    """Sends on what it has done, so that it can be counted elsewhere."""

    @handle
    def on_job(self, job: Job) -> None:
        super().on_job(job)
        self.send(Told(job.n))


class Asked(Worker):
    @handle
    def on_job(self, job: Job) -> None:
        super().on_job(job)
        self.reply(Told(job.n))


class Sink(Handler):
    state: Done

    @handle
    def on_told(self, told: Told) -> None:
        self.state.items.append(told.n)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def tellers(directory: Path, log: Log, **options: Any) -> Topology:
    app = Topology("tellers", directory=directory, **({"max_restarts": 1000, "max_attempts": 1} | options))
    app.worker("work", worker=Teller.spec(str(log)))
    app.worker("end", sink=Sink)
    app.route("worker", Told, to="sink")
    app.external("worker", Job, Get)
    app.external("sink", Get)
    return app


def bury(system: System, gate: Path, *numbers: int, handler: str = "worker", worker: str = "work") -> None:
    """These are dead letters of the worker."""
    before = system.block(worker).get(Field.DEAD_LETTERS)
    for n in numbers:
        system.send(handler, Job(n, "raise", str(gate)))
    until(lambda: system.block(worker).get(Field.DEAD_LETTERS) == before + len(numbers), f"{len(numbers)} letters", 30)


def place(seq: int, peer: str = "gateway", worker: str = "work") -> LetterPlace:
    return LetterPlace(worker, peer, seq)


def problems(changes: list[LetterChange]) -> list[str]:
    return [change.problem for change in changes]


def sound(directory: Path) -> None:
    for journal in sorted((directory / "journals").iterdir()):
        report = check(journal)
        assert report.ok, (report.faults, report.gaps)


# ---------------------------------------------------------------------------------------------------- running
@pytest.mark.parametrize("level", ["memory", *LEVELS])
def test_a_requeued_message_is_handled_once_by_a_running_system(
    directory: Path, log: Log, gate: Path, level: str
) -> None:
    with tellers(directory, log, durability=level).start() as system:
        bury(system, gate, 1, 2, 3)
        gate.touch()
        changes = system.requeue_dead_letters([("work", "gateway", 2), ("work", "gateway", 3)])
        assert [(one.id, one.worker, one.done, one.problem) for one in changes] == [
            ("gateway/2", "work", "requeued", ""),
            ("gateway/3", "work", "requeued", ""),
        ]
        until(lambda: len(done_by(system, "sink")) == 2, "their effect", 30)
        assert done_by(system) == done_by(system, "sink") == (2, 3), "in their order"
        assert system.block("work").get(Field.DEAD_LETTERS) == 1
        again = system.requeue_dead_letters([("work", "gateway", 2), ("work", "gateway", 1)])
        assert problems(again) == ["no such dead letter", ""]
        until(lambda: done_by(system, "sink") == (2, 3, 1), "the last one", 30)
        assert system.stop() is ExitStatus.OK
    if level != "memory":
        assert not letters_of(system)
        sound(directory)


def test_a_requeued_message_that_fails_again_has_all_its_attempts_again(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log, max_attempts=2).start() as system:
        bury(system, gate, 1)
        before = len(log.tries(1))
        assert problems(system.requeue_dead_letters([place(1)])) == [""]
        until(lambda: [(one.peer, one.seq) for one in letters_of(system)] == [("work", 1)], "the next letter", 30)
        assert letters_of(system)[0].attempts == 2
        assert len(log.tries(1)) >= before + 2
        assert {one.message_id for one in log.tries(1)[before:]} == {"work/1"}, "an id of its own"
        gate.touch()
        system.requeue_dead_letters([place(1, "work")])
        until(lambda: done_by(system, "sink") == (1,), "its effect", 30)


def test_an_answer_to_a_requeued_message_goes_nowhere(directory: Path, log: Log, gate: Path) -> None:
    app = Topology("asked", directory=directory, max_attempts=1)
    app.worker("work", worker=Asked.spec(str(log)))
    app.external("worker", Job, Get)
    with app.start() as system:
        with pytest.raises(AskFailed):
            system.ask("worker", Job(1, "raise", str(gate)))
        gate.touch()
        system.requeue_dead_letters([place(1)])
        until(lambda: done_by(system) == (1,), "its effect", 30)
        assert system.block("work").get(Field.DEAD_LETTERS) == 0
        assert system.ask("worker", Job(2), reply=Told) == Told(2)


@pytest.mark.parametrize("level", ["memory", *LEVELS])
def test_a_dropped_letter_is_gone_for_good(directory: Path, log: Log, gate: Path, level: str) -> None:
    with tellers(directory, log, durability=level).start() as system:
        bury(system, gate, 1, 2)
        (change,) = system.drop_dead_letters([place(1)])
        assert (change.id, change.done, change.problem) == ("gateway/1", "dropped", "")
        assert system.block("work").get(Field.DEAD_LETTERS) == 1
        assert problems(system.drop_dead_letters([place(1)])) == ["no such dead letter"]
        if level != "memory":
            kill(system)
            until(lambda: done_by(system) == (), "the next incarnation", 30)
            assert [one.seq for one in letters_of(system)] == [2]
    assert len(log.tries(1)) == 1, "not again"
    if level != "memory":
        sound(directory)


def test_dropped_letters_take_no_room_in_the_journal(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log).start() as system:
        for n in range(1, 21):
            system.send("worker", Job(n, "raise", "x" * 1000))
        until(lambda: system.block("work").get(Field.DEAD_LETTERS) == 20, "the letters", 30)
        assert problems(system.drop_dead_letters([place(n) for n in range(1, 21)])) == [""] * 20
        assert system.stop() is ExitStatus.OK
    assert sum(path.stat().st_size for path in (directory / "journals" / "work").glob("*.journal")) < 2000


def test_workers_and_letters_that_are_not_there_are_told(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log).start() as system:
        bury(system, gate, 1)
        wanted = [("work", "gateway", 9), ("work", "nobody", 1), ("gone", "gateway", 1), ("end", "gateway", 1)]
        for change in (system.requeue_dead_letters, system.drop_dead_letters):
            found = problems(change(wanted))
            assert found[:2] == ["no such dead letter"] * 2
            assert "no worker 'gone'" in found[2]
            assert found[3] == "no such dead letter"
        assert len(letters_of(system)) == 1
    with pytest.raises(SystemClosed):
        system.drop_dead_letters([place(1)])


def test_what_is_not_answered_in_time_takes_effect_all_the_same(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log).start() as system:
        bury(system, gate, 1)
        pid = system.block("work").get(Field.PID)
        os.kill(pid, signal.SIGSTOP)
        try:
            (problem,) = problems(system.drop_dead_letters([place(1)], timeout=0.2))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "takes effect all the same" in problem
        until(lambda: not letters_of(system), "the drop", 30)


def test_letters_of_one_id_at_two_workers_are_two(directory: Path, log: Log, gate: Path) -> None:
    app = Topology("two", directory=directory, max_attempts=1)
    app.worker("work", worker=Worker.spec(str(log)))
    app.worker("more", other=Worker.spec(str(log)))
    app.external("worker", Job, Get)
    app.external("other", Job, Get)
    with app.start() as system:
        bury(system, gate, 1)
        bury(system, gate, 2, handler="other", worker="more")
        assert {(one.worker, one.id) for one in collect(directory).dead_letters} == {
            ("work", "gateway/1"),
            ("more", "gateway/1"),
        }
        gate.touch()
        assert problems(system.requeue_dead_letters([place(1, worker="more")])) == [""]
        until(lambda: done_by(system, "other") == (2,), "its effect", 30)
        assert [(one.worker, one.id) for one in collect(directory).dead_letters] == [("work", "gateway/1")]


def test_a_running_system_is_asked_by_the_command_line(
    directory: Path, log: Log, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_protocol, "SILENCE", 60.0)  # however slow this machine is, somebody is listening

    def ringleader(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["dead-letters", *arguments])
        return done.exit_code, done.stdout, done.stderr

    run = str(directory)
    with tellers(directory, log).start() as system:
        bury(system, gate, 1, 2, 3)
        gate.touch()
        assert ringleader("requeue", run, "gateway/1") == (0, "gateway/1 of work: requeued\n", "")
        until(lambda: done_by(system, "sink") == (1,), "its effect", 30)
        assert ringleader("drop", run, "--handler", "worker") == (
            0,
            "gateway/2 of work: dropped\ngateway/3 of work: dropped\n",
            "",
        )
        assert ringleader("drop", run, "--all") == (0, "tellers: no dead letters\n", "")
        assert ringleader("drop", run, "gateway/1") == (4, "", "ringleader: no dead letter 'gateway/1'\n")
        assert not letters_of(system)


# ---------------------------------------------------------------------------------------------------- kills
def killed_at_least(system: System, times: int) -> Callable[[], bool]:
    return lambda: system.block("work").get(Field.RESTARTS) >= times


@pytest.mark.parametrize("level", LEVELS)
def test_a_requeue_takes_effect_once_however_often_its_worker_is_killed_meanwhile(
    directory: Path, log: Log, gate: Path, level: str
) -> None:
    count = 10
    with tellers(directory, log, durability=level).start() as system:
        bury(system, gate, *range(1, count + 1))
    gate.touch()
    patient = {"max_attempts": 1000, "backoff_first": 0.001, "backoff_max": 0.01}
    with tellers(directory, log, durability=level, **patient).start() as system:
        for n in range(1, count + 1):
            block = system.block("work")
            pid, epoch = block.get(Field.PID), block.get(Field.EPOCH)
            killer = threading.Timer(n * 0.0005, os.kill, (pid, signal.SIGKILL))
            killer.start()
            changes = system.requeue_dead_letters([place(n)])
            killer.join()
            until(lambda: block.get(Field.EPOCH) > epoch, "the next incarnation", 30)  # noqa: B023
            until(lambda: block.get(Field.STATE) == WorkerState.RUNNING, "its start", 30)  # noqa: B023
            assert problems(changes) == [""]
        until(lambda: len(done_by(system, "sink")) >= count, "all of them", 60)
        assert system.block("work").get(Field.RESTARTS) == count
        assert sorted(done_by(system)) == sorted(done_by(system, "sink")) == list(range(1, count + 1))
        assert not letters_of(system)
    sound(directory)


class Killed(BaseException):
    """In place of SIGKILL, for a command that runs in this process."""


@pytest.mark.parametrize("level", LEVELS)
def test_a_requeue_while_the_system_does_not_run_is_whole_or_has_not_happened(
    directory: Path, log: Log, gate: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the append, right behind it, and at the next letter."""
    with tellers(directory, log, durability=level).start() as system:
        bury(system, gate, 1, 2, 3, 4)
    gate.touch()
    real = Journal.append

    def dies(after: int, late: bool) -> Callable[..., int]:
        done: list[int] = []

        def append(self: Journal, transaction: Any) -> int:
            if len(done) == after and not late:
                raise Killed
            position = real(self, transaction)
            done.append(position)
            if len(done) > after:
                raise Killed
            return position

        return append

    left = [place(n) for n in range(1, 5)]
    for after, late, remain in ((0, False, 4), (0, True, 3), (1, False, 2)):
        monkeypatch.setattr(Journal, "append", dies(after, late))
        with pytest.raises(Killed):
            change_stopped(directory, "requeue", left)
        monkeypatch.undo()
        left = [LetterPlace(one.worker, one.peer, one.seq) for one in collect(directory).dead_letters]
        assert len(left) == remain
    assert problems(change_stopped(directory, "requeue", left)) == ["", ""]
    sound(directory)
    with tellers(directory, log, durability=level).start() as system:
        until(lambda: len(done_by(system, "sink")) >= 4, "all of them", 30)
        assert done_by(system) == done_by(system, "sink") == (1, 2, 3, 4)
    sound(directory)


# ---------------------------------------------------------------------------------------------------- stopped
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ["clean", "crash"])
def test_a_requeue_is_handled_at_the_next_start(directory: Path, log: Log, gate: Path, level: str, end: str) -> None:
    with tellers(directory, log, durability=level).start() as system:
        bury(system, gate, 1, 2)
        if end == "crash":
            assert system.stop(drain=False) in {ExitStatus.NOT_DRAINED, ExitStatus.OK}
    gate.touch()
    changes = change_stopped(directory, "requeue", [place(2), place(9), place(1, worker="gone"), place(2)])
    assert [(one.done, one.problem) for one in changes] == [
        ("requeued", ""),
        ("", "no such dead letter"),
        ("", "no such dead letter"),
        ("requeued", ""),
    ]
    sound(directory)
    assert change_stopped(directory, "drop", [place(1)])[0].done == "dropped"
    sound(directory)
    with tellers(directory, log, durability=level).start() as system:
        until(lambda: done_by(system, "sink") == (2,), "its effect", 30)
        kill(system)
        assert done_by(system) == (2,)
        assert not letters_of(system)


def test_a_running_system_is_not_changed_behind_its_back(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log).start() as system:
        bury(system, gate, 1)
        with pytest.raises(AlreadyRunning):
            change_stopped(directory, "drop", [place(1)])
        assert len(letters_of(system)) == 1


def test_what_its_worker_no_longer_handles_stays_a_dead_letter_and_can_be_dropped(
    directory: Path, log: Log, gate: Path
) -> None:
    with tellers(directory, log).start() as system:
        bury(system, gate, 1)
    moved = Topology("tellers", directory=directory, max_attempts=1)
    moved.worker("work", sink=Sink)
    moved.worker("end", worker=Teller.spec(str(log)))
    moved.route("worker", Told, to="sink")
    moved.external("worker", Job, Get)
    moved.external("sink", Get)
    with moved.start() as system:
        assert problems(system.requeue_dead_letters([place(1)])) == ["its worker no longer handles it"]
    assert problems(change_stopped(directory, "requeue", [place(1)])) == ["its worker no longer handles it"]
    assert len(letters_of(system)) == 1
    assert problems(change_stopped(directory, "drop", [place(1)])) == [""]
    assert not letters_of(system)


def test_a_letter_from_a_worker_that_is_gone_can_be_dropped_while_the_system_runs(
    directory: Path, log: Log, gate: Path
) -> None:
    class Passing(Handler):
        @handle
        def on_job(self, job: Job) -> None:
            self.send(job)

    app = Topology("gone", directory=directory, max_attempts=1)
    app.worker("work", worker=Worker.spec(str(log)))
    app.worker("early", passing=Passing)
    app.route("passing", Job, to="worker")
    app.external("worker", Job, Get)
    app.external("passing", Job)
    with app.start() as system:
        system.send("passing", Job(1, "raise", str(gate)))
        until(lambda: letters_of(system), "the letter", 30)
    less = Topology("gone", directory=directory)
    less.worker("work", worker=Worker.spec(str(log)))
    less.external("worker", Job, Get)
    with less.start() as system:
        assert problems(system.requeue_dead_letters([place(1, "early")])) == ["its worker no longer handles it"]
        assert problems(system.drop_dead_letters([place(1, "early")])) == [""]
        kill(system)
        assert done_by(system) == ()
        assert not letters_of(system)
    sound(directory)


def test_a_requeue_is_one_transaction(directory: Path, log: Log, gate: Path) -> None:
    """Its command consumed, the letter removed, the message carried over, the answer: no crash comes in between."""
    with tellers(directory, log, retain_bytes=1 << 20).start() as system:
        bury(system, gate, 1)
        gate.touch()
        system.requeue_dead_letters([place(1)])
        until(lambda: done_by(system, "sink") == (1,), "its effect", 30)
    (record,) = [one for one in replay(directory / "journals" / "work") if one.removed]
    assert (record.removed, record.consumed) == ([("gateway", 1)], {"gateway": 2})
    assert [(tuple(run.edges), run.count) for run in record.sends] == [(("work",), 1), (("gateway",), 1)]


def test_a_journal_is_reopened_as_it_was(directory: Path, log: Log, gate: Path) -> None:
    with tellers(directory, log).start() as system:
        bury(system, gate, 1)
    path = directory / "journals" / "work"
    before = read(path)
    journal, names = reopen(path)
    journal.close()
    after = read(path)
    assert (names.fingerprint, names.level) == (before.fingerprint, before.level)
    assert (after.epoch, after.dead, after.states) == (before.epoch + 1, before.dead, before.states)
    assert (after.assigned, after.watermarks, after.acked) == (before.assigned, before.watermarks, before.acked)
    with pytest.raises(FileNotFoundError):
        reopen(directory / "journals" / "none")
