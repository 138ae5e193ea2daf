"""What handlers say about messages that fail, with real workers: how often, when, and who waits meanwhile."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors import ExitStatus, Handler, Message, State, Topology, handle
from actors.exits import WorkerExit, describe
from bus import Field, Text
from persist import read

from .poisoned import Get, Job, Log, Seen, Worker, done_by, kill, letters_of
from .waiting import until


class Patient(Worker, max_attempts=5): ...


class Strict(Worker, max_attempts=2): ...


class Stubborn(Worker, on_error="retry", retry_first=0.01): ...


class Brittle(Worker, on_error="crash"): ...


class BrittleOnce(Worker, on_error="crash", max_attempts=1): ...


class Late(Worker, retry_first=0.4, max_attempts=3): ...


class LateForEver(Worker, retry_first=0.4, on_error="retry"): ...


class LateAlone(Worker, retry_first=0.4, on_error="retry", ordered=False): ...


class VeryLate(Worker, retry_first=60.0): ...


class VeryLateAlone(Worker, retry_first=60.0, ordered=False): ...


class Second(Handler):
    """Passes jobs on, so that they come to a worker by another link."""

    @handle
    def on_job(self, job: Job) -> None:
        self.send(job)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def one(directory: Path, log: Log, cls: Any, **options: Any) -> Topology:
    app = Topology("poison", directory=directory, **({"max_restarts": 100, "backoff_first": 0.01} | options))
    app.worker("work", worker=cls.spec(str(log)))
    app.external("worker", Job, Get)
    return app


def two_links(directory: Path, log: Log, cls: Any, **handlers: Any) -> Topology:
    """Jobs come to `worker` from outside and, by `second`, from another worker."""
    app = Topology("poison", directory=directory, max_restarts=100)
    app.worker("work", worker=cls.spec(str(log)), **handlers)
    app.worker("other", second=Second)
    app.route("second", Job, to="worker")
    app.external("worker", Job, Get)
    app.external("second", Job)
    return app


# ---------------------------------------------------------------------------------------------------- how often
@pytest.mark.parametrize("how", ["raise", "die"])
@pytest.mark.parametrize(("cls", "attempts"), [(Patient, 5), (Strict, 2), (Worker, 4)])
def test_a_handlers_own_max_attempts_hold_else_the_topologys(
    directory: Path, log: Log, cls: type[Worker], attempts: int, how: str
) -> None:
    with one(directory, log, cls, max_attempts=4).start() as system:
        for n in range(1, 5):
            system.send("worker", Job(n, how if n == 2 else ""))
        until(lambda: len(done_by(system)) == 3, "the others", 30)
        assert done_by(system) == (1, 3, 4)
        (letter,) = letters_of(system)
        assert (letter.attempts, letter.handler) == (attempts, "worker")
        # Once more together with its neighbours, when it was not yet known which of them it was.
        assert attempts <= len(log.tries(2)) <= attempts + 1


def test_for_a_message_to_several_handlers_the_smallest_max_attempts_hold(directory: Path, log: Log) -> None:
    app = Topology("poison", directory=directory)
    app.worker("work", patient=Patient.spec(str(log)), strict=Strict.spec(str(log)))
    app.worker("other", second=Second)
    app.route("second", Job, to=["patient", "strict"])
    app.external("second", Job)
    app.external("patient", Get)
    app.external("strict", Get)
    with app.start() as system:
        system.send("second", Job(1, "raise"))
        until(lambda: letters_of(system), "the dead letter", 30)
        (letter,) = letters_of(system)
        assert (letter.attempts, letter.handler) == (2, "patient,strict")


# ---------------------------------------------------------------------------------------------------- on_error
@pytest.mark.parametrize("how", ["raise", "die"])
def test_retry_never_gives_up(directory: Path, log: Log, gate: Path, how: str) -> None:
    with one(directory, log, Stubborn, max_attempts=1).start() as system:
        system.send("worker", Job(1, how, str(gate)))
        system.send("worker", Job(2))
        log.wait_for(1, times=6)
        assert not log.tries(2)
        gate.touch()
        until(lambda: done_by(system) == (1, 2), "both in order", 30)
        assert not letters_of(system)


def test_crash_ends_the_worker_and_each_death_is_one_attempt(directory: Path, log: Log) -> None:
    with one(directory, log, Brittle, max_attempts=3).start() as system:
        for n in range(1, 4):
            system.send("worker", Job(n, "raise" if n == 2 else ""))
        until(lambda: done_by(system) == (1, 3), "the others", 30)
        block = system.block("work")
        assert block.get(Field.LAST_DEATH_CODE) == WorkerExit.MESSAGE_FAILED
        death = block.text(Text.LAST_DEATH)
        assert death.startswith(describe(WorkerExit.MESSAGE_FAILED))
        assert "in on_job" in death
        assert "ValueError: cannot do 2" in death
        assert "handler 'worker' failed on" in death
        assert block.get(Field.RESTARTS) == 3
        (letter,) = letters_of(system)
        assert (letter.attempts, letter.reason) == (3, "killed its worker")
        assert "ValueError: cannot do 2" in letter.detail, "what it died of is kept with it"
        assert len(log.tries(2)) <= 4


def test_crash_at_level_memory_counts_too(directory: Path, log: Log) -> None:
    with one(directory, log, BrittleOnce, durability="memory").start() as system:
        system.send("worker", Job(1, "raise"))
        until(lambda: system.block("work").get(Field.DEAD_LETTERS) == 1, "the dead letter", 30)
        assert system.block("work").get(Field.RESTARTS) == 1


# ---------------------------------------------------------------------------------------------------- when
class Ticker(Handler):
    """A source that leaves a trace, too."""

    def __init__(self, log: str) -> None:
        self.log = log

    def on_loop(self) -> float | None:
        with open(self.log, "a") as file:
            file.write(f"ticker 0 - {time.monotonic()}\n")
        return 0.0005  # nearly every turn of the loop


def test_attempts_wait_longer_each_time(directory: Path, log: Log) -> None:
    with one(directory, log, Late).start() as system:
        system.send("worker", Job(1, "raise"))
        until(lambda: letters_of(system), "the dead letter", 30)
        times = [one.at for one in log.tries(1)]
        assert len(times) == 3, "the first one counts, too"
        assert times[1] - times[0] >= 0.4
        assert times[2] - times[1] >= 0.8
        assert letters_of(system)[0].attempts == 3


def test_while_a_message_waits_in_order_its_worker_handles_nothing_else(directory: Path, log: Log) -> None:
    with two_links(directory, log, Late, ticker=Ticker.spec(str(log))).start() as system:
        log.wait_for(0)
        system.send("worker", Job(1, "raise"))
        log.wait_for(1)
        system.send("second", Job(2))
        beat = system.block("work").get(Field.HEARTBEAT_NS)
        log.wait_for(1, times=3)
        until(lambda: system.block("work").get(Field.HEARTBEAT_NS) > beat, "its loop to go on")
        log.wait_for(2)
    tries = [one.n for one in log.tries()]
    first, last = tries.index(1), len(tries) - 1 - tries[::-1].index(1)
    assert set(tries[first + 1 : last]) == {1}, "neither messages of others nor sources"
    assert tries.index(2) > first


@pytest.mark.parametrize(("cls", "ordered"), [(VeryLate, True), (VeryLateAlone, False)])
def test_a_message_that_waits_is_shown_in_the_status(
    directory: Path, log: Log, cls: type[Worker], ordered: bool
) -> None:
    with one(directory, log, cls, drain_timeout=0.1).start() as system:
        system.send("worker", Job(1))
        until(lambda: done_by(system) == (1,), "the first")
        system.send("worker", Job(2, "raise"))
        until(lambda: system.status().worker("work").retry, "that it waits")
        worker = system.status().worker("work")
        assert worker.retry is not None
        (waiting,) = read(directory / "journals" / "work").attempts
        assert (worker.in_progress, worker.retry.id) == (None, f"{waiting[0]}/{waiting[1]}")
        assert (worker.retry.attempts, worker.retry.ordered) == (1, ordered)
        assert 0 < worker.retry.next_in_seconds <= 60


def test_of_several_that_wait_the_one_that_holds_up_everything_is_shown(directory: Path, log: Log) -> None:
    app = Topology("poison", directory=directory, drain_timeout=0.1)
    app.worker("work", alone=VeryLateAlone.spec(str(log)), strict=VeryLate.spec(str(log)))
    app.worker("other", second=Second)
    app.route("second", Job, to="strict")
    app.external("alone", Job, Get)
    app.external("strict", Get)
    app.external("second", Job)

    def shown() -> str:
        retry = system.status().worker("work").retry
        return retry.id if retry else ""

    with app.start() as system:
        system.send("alone", Job(1, "raise"))
        until(lambda: shown() == "gateway/1", "the first")
        system.send("second", Job(2, "raise"))  # its time comes later
        until(lambda: shown() == "other/1", "the one that keeps the order")


def test_a_message_that_is_over_its_wait_is_no_longer_shown(directory: Path, log: Log, gate: Path) -> None:
    app = Topology("poison", directory=directory)
    app.worker("work", worker=LateForEver.spec(str(log)), late=Late.spec(str(log)))
    for name in ("worker", "late"):
        app.external(name, Job, Get)
    with app.start() as system:
        system.send("worker", Job(1, "raise", str(gate)))
        until(lambda: system.status().worker("work").retry, "that it waits")
        gate.touch()
        until(lambda: done_by(system) == (1,), "the message")
        assert system.status().worker("work").retry is None
        system.send("late", Job(2, "raise"))
        until(lambda: system.status().worker("work").retry or letters_of(system), "that the next one waits")
        until(lambda: letters_of(system), "the dead letter")
        assert system.status().worker("work").retry is None


def test_while_a_message_waits_out_of_order_others_and_sources_flow(directory: Path, log: Log, gate: Path) -> None:
    with two_links(directory, log, LateAlone, ticker=Ticker.spec(str(log))).start() as system:
        system.send("worker", Job(1, "raise", str(gate)))
        system.send("worker", Job(3))
        log.wait_for(1)
        seen = len(log.tries())
        for n in range(10, 60):
            system.send("second", Job(n))
        log.wait_for(59)
        until(lambda: any(one.n == 0 for one in log.tries()[seen:]), "the source")
        assert not log.tries(3), "what came from the same sender waits"
        times = [one.at for one in log.tries(1)]
        for number, (before, after) in enumerate(pairwise(times)):
            assert after - before >= 0.4 * 2**number, "it waits its time, whatever comes meanwhile"
        gate.touch()
        until(lambda: 3 in done_by(system), "what waited")
        assert done_by(system) == (*range(10, 60), 1, 3)
        assert not letters_of(system)


def test_innocents_of_the_same_batch_take_effect_in_order_around_one_that_waits(directory: Path, log: Log) -> None:
    with one(directory, log, VeryLate).start() as system:
        for n in range(1, 30):
            system.send("worker", Job(n, "raise" if n == 20 else ""))
        log.wait_for(20)
        journal = directory / "journals" / "work"
        until(lambda: read(journal).watermarks.get("gateway") == 19, "the commit of those before")
        assert not log.tries(21)
        assert system.stop(drain=False) is ExitStatus.NOT_DRAINED
    with one(directory, log, Worker).start() as system:
        until(lambda: len(done_by(system)) == 28, "the rest", 30)
        assert done_by(system) == tuple(n for n in range(1, 30) if n != 20)


def test_a_stop_does_not_wait_for_the_next_attempt(directory: Path, log: Log) -> None:
    with one(directory, log, VeryLate).start() as system:
        system.send("worker", Job(1, "raise"))
        log.wait_for(1)
        started = time.monotonic()
        assert system.stop(drain=False) is ExitStatus.NOT_DRAINED
        assert time.monotonic() - started < 60, "less than it waits"
    assert len(log.tries(1)) == 1


def test_a_drain_waits_for_the_next_attempt(directory: Path, log: Log, gate: Path) -> None:
    system = one(directory, log, LateForEver).start()
    system.send("worker", Job(1, "raise", str(gate)))
    log.wait_for(1)
    gate.touch()
    assert system.stop() is ExitStatus.OK
    assert len(log.tries(1)) >= 2
    assert not letters_of(system)
    assert read(directory / "journals" / "work").watermarks["gateway"] == 1


def test_a_drain_does_not_wait_longer_than_its_deadline(directory: Path, log: Log) -> None:
    system = one(directory, log, VeryLate, drain_timeout=0.3).start()
    system.send("worker", Job(1, "raise"))
    counted = {("gateway", 1): 1}
    until(lambda: read(directory / "journals" / "work").attempts == counted, "the first attempt to be counted")
    assert system.stop() is ExitStatus.NOT_DRAINED
    assert read(directory / "journals" / "work").attempts == counted


def test_attempts_that_wait_are_counted_durably_before_the_next(directory: Path, log: Log) -> None:
    """Killed after each failure, while nothing is in progress: no attempt is forgotten, and no death is blamed."""
    with one(directory, log, Late, max_restarts=100).start() as system:
        system.send("worker", Job(1, "raise"))
        for attempt in (1, 2):
            path = directory / "journals" / "work"

            def counted(path: Path = path, attempt: int = attempt) -> bool:
                """Or more, where the machine is slow to tell us."""
                found = read(path)
                return found.attempts.get(("gateway", 1), 0) >= attempt or bool(found.dead)

            until(counted, f"attempt {attempt}")
            kill(system)
        until(lambda: letters_of(system), "the dead letter", 30)
        assert letters_of(system)[0].attempts == 3
        assert len(log.tries(1)) <= 4


# ---------------------------------------------------------------------------------------------------- no messages
class BadSource(Handler, max_attempts=2):
    """It is good until the gate is there."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def on_loop(self) -> float | None:
        if not os.path.exists(self.gate):
            return 0.01
        raise RuntimeError("no more")


def test_an_on_loop_may_fail_as_often_as_its_handler_says(
    directory: Path, gate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Topology("sources", directory=directory, max_attempts=50, max_restarts=0)
    app.worker("work", source=BadSource.spec(str(gate)))
    system = app.start()
    gate.touch()  # only now: a worker that has died before the supervisor has seen it up, is a start that failed
    assert system.join(60) is ExitStatus.GAVE_UP
    assert "on_loop of handler 'source' failed 2 times in a row" in system.reason
    [told] = [record for record in caplog.records if record.getMessage().startswith("on_loop")]
    assert told.getMessage() == "on_loop of source failed (1 of 2 in a row), it is called again in 0.1 s"
    assert "RuntimeError: no more" in (told.exc_text or "")


class Count(State):
    items: list[int] = []


class Hello(Message): ...


class SlowStarter(Handler, max_attempts=3):
    state: Count

    def __init__(self, log: str) -> None:
        self.log = log

    def on_start(self) -> None:
        self.send(Hello())
        self.state.items.append(1)
        with open(self.log, "a") as file:
            file.write("start\n")
        if len(Path(self.log).read_text().split()) < 3:
            raise RuntimeError("not yet")


class Greeted(Handler):
    state: Count

    def on_start(self) -> None:
        self.state.items.append(0)

    @handle
    def on_hello(self, hello: Hello) -> None:
        self.state.items.append(1)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


def test_an_on_start_is_tried_again_as_often_as_its_handler_says_and_takes_effect_once(
    directory: Path, log: Log
) -> None:
    app = Topology("starters", directory=directory)
    app.worker("work", greeted=Greeted, starter=SlowStarter.spec(str(log)))
    app.route("starter", Hello, to="greeted")
    app.external("greeted", Get)
    with app.start() as system:
        until(lambda: system.ask("greeted", Get(), reply=Seen).items == (0, 1), "the greeting", 30)
    assert read(directory / "journals" / "work").states.keys() == {"greeted", "starter"}
    assert log.path.read_text().split() == ["start"] * 3
