"""Workers that hang, for real: stopped, busy for ever. They are killed and restarted, and the status says why."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from actors import Handler, Message, State, System, Topology, handle
from bus import Field, WorkerState
from tests.actors.waiting import until


class Job(Message):
    n: int
    seconds: float


class Look(Message):
    pass


class Done(Message):
    jobs: tuple[int, ...]


class Jobs(State):
    done: list[int] = []


LIMIT = 1.0  # seconds: who is well has nearly all of it to be late, and a verdict takes two looks


class Busy(Handler, busy_limit=LIMIT, max_attempts=2):
    state: Jobs

    @handle
    def on_job(self, job: Job) -> None:
        if job.seconds > 100:
            while True:
                pass
        time.sleep(job.seconds)
        self.state.done.append(job.n)

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Done(tuple(self.state.done)))


class Patient(Busy, busy_limit=None):
    pass


class Together(Busy):
    """Takes them in one call, and long for each; for one alone a third of that."""

    @handle(batch=True)
    def on_job(self, jobs: list[Job]) -> None:  # type: ignore[override]
        for job in jobs:
            super().on_job(job if len(jobs) > 1 else Job(job.n, job.seconds / 3))


class Giver(Handler):
    """Sends jobs that arrive together."""

    @handle
    def on_job(self, job: Job) -> None:
        for n in range(job.n):
            self.send(Job(n, job.seconds))


class Spinning(Handler, busy_limit=LIMIT):
    def on_loop(self) -> None:
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            while True:
                pass

    def __init__(self, flag: str) -> None:
        self.flag = flag


def system(folder: Path, handler: type[Handler], **supervised: float) -> System:
    topology = Topology("hanging", directory=folder / "run")
    topology.worker("w", busy=handler)
    topology.external("busy")
    topology.supervise("w", **supervised)  # type: ignore[arg-type]
    return topology.start()


def done(one: System) -> tuple[int, ...]:
    return one.ask("busy", Look(), reply=Done).jobs


def death(one: System) -> str:
    return one.status().worker("w").last_death


def test_an_endless_loop_in_a_handler_is_killed_at_its_limit_and_its_message_given_up(tmp_path: Path) -> None:
    with system(tmp_path, Busy) as one:
        for n, seconds in enumerate((0.0, 1000.0, 0.0)):
            one.send("busy", Job(n, seconds))
        until(lambda: done(one) == (0, 2), "the others to be handled")
        assert "handler 'busy' busy for" in death(one)
        assert f"more than its busy_limit of {LIMIT:g} s" in death(one)
        assert one.status().dead_letters == 1


def test_the_limit_holds_for_the_whole_call_of_a_batch_handler(tmp_path: Path) -> None:
    """Each message is within it, so that one by one, after the death, none of them is given up."""
    topology = Topology("hanging", directory=tmp_path / "run")
    topology.worker("giver", giver=Giver)
    topology.worker("w", busy=Together)
    topology.route("giver", Job, to="busy")
    topology.external("giver", Job)
    topology.external("busy", Look)
    with topology.start() as one:
        one.send("giver", Job(8, LIMIT / 2))  # so long that a machine may stand still meanwhile, and times begin anew
        until(lambda: done(one) == tuple(range(8)), "all of them")
        assert f"more than its busy_limit of {LIMIT:g} s" in death(one)
        assert one.status().dead_letters == 0


def test_a_handler_without_a_limit_may_take_its_time(tmp_path: Path) -> None:
    with system(tmp_path, Patient, hung_after=LIMIT) as one:
        one.send("busy", Job(1, LIMIT + 1))
        assert done(one) == (1,)
        assert death(one) == ""


def test_sigstop_is_recognised_and_the_old_incarnation_never_writes_again(tmp_path: Path) -> None:
    with system(tmp_path, Busy, hung_after=LIMIT) as one:
        one.send("busy", Job(1, 0.0))
        assert done(one) == (1,)
        pid = one.block("w").get(Field.PID)
        os.kill(pid, signal.SIGSTOP)
        one.send("busy", Job(2, 0.0))
        until(lambda: one.block("w").get(Field.RESTARTS) == 1, "it to be restarted")
        until(lambda: not Path(f"/proc/{pid}").exists(), "the old incarnation to be gone")
        assert done(one) == (1, 2)
        assert "stopped by a signal (SIGSTOP)" in death(one)
        assert one.status().dead_letters == 0


def test_an_endless_loop_in_on_loop_is_killed_at_the_handlers_limit(tmp_path: Path) -> None:
    topology = Topology("spinning", directory=tmp_path / "run")
    topology.worker("w", spinning=Spinning.spec(str(tmp_path / "flag")))
    with topology.start() as one:
        until(lambda: one.block("w").get(Field.RESTARTS) == 1, "it to be killed")
        until(lambda: one.block("w").get(Field.SUPERVISED_STATE) == WorkerState.RUNNING, "it to be up again")
        assert "outside of any message" in death(one)
