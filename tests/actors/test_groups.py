"""Supervision with real processes: strategies, groups that give up, order, readiness; restart, pause and drain."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import ExitStatus, Handler, Message, StartFailed, State, System, Topology, events, handle
from actors.local_messages import INLINE_LIMIT
from actors.system_errors import UnknownWorker
from bus import Field, WorkerState
from tests.actors.waiting import until


class Number(Message):
    n: int
    ballast: str = ""


class Leave(Message):
    pass


class Part(Message):
    n: int


class Look(Message):
    pass


class Known(Message):
    pid: int
    numbers: tuple[int, ...]


class Kept(State):
    numbers: list[int] = []


class Keeper(Handler):
    """Keeps what it gets, passes it on, and tells. Appends its name to a file whenever it is made and when it ends."""

    state: Kept

    def __init__(self, log: str, pause: float = 0.0) -> None:
        self.log = Path(log)
        self.pause = pause

    def note(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {self.name}\n")

    def on_start(self) -> None:
        time.sleep(self.pause)
        self.note("start")

    def on_stop(self) -> None:
        self.note("stop")

    @handle
    def on_number(self, number: Number) -> None:
        self.state.numbers.append(number.n)
        if self.name != "c":
            self.send(number)

    @handle
    def on_leave(self, leave: Leave) -> None:
        self.state.numbers.append(-1)
        self.stop_worker()

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Known(os.getpid(), tuple(self.state.numbers)))


class Counter(Handler):
    """A source."""

    state: Kept

    def on_loop(self) -> float:
        self.state.numbers.append(len(self.state.numbers))
        return 0.001

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Known(os.getpid(), tuple(self.state.numbers)))


def chain(folder: Path, **options: object) -> Topology:
    """a -> b -> c, each in a worker of its own: wa, wb, wc."""
    topology = Topology("chain", directory=folder / "run", **options)  # type: ignore[arg-type]
    for name in "abc":
        topology.worker(f"w{name}", **{name: Keeper.spec(str(folder / "log"))})
        topology.external(name)
    topology.route("a", Number, to="b")
    topology.route("b", Number, to="c")
    topology.route("c", Number, to=[])
    return topology


def pid(system: System, worker: str) -> int:
    return system.block(worker).get(Field.PID)


def pids(system: System) -> dict[str, int]:
    return {name: pid(system, f"w{name}") for name in "abc"}


def kill(system: System, worker: str) -> None:
    os.kill(pid(system, worker), signal.SIGKILL)


def restarted(system: System, worker: str, times: int = 1) -> Callable[[], bool]:
    block = system.block(worker)
    return lambda: block.get(Field.RESTARTS) >= times and block.get(Field.SUPERVISED_STATE) == WorkerState.RUNNING


def look(system: System, handler: str) -> Known:
    return system.ask(handler, Look(), reply=Known)


def lines(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_handlers_start_in_order_and_stop_in_the_reverse(tmp_path: Path) -> None:
    topology = Topology("order", directory=tmp_path / "run")
    for number, name in enumerate("abc"):
        topology.worker(f"w{name}", **{name: Keeper.spec(str(tmp_path / "log"), pause=0.05 * (2 - number))})
        topology.external(name)
        topology.route(name, Number, to=[])
    with topology.start() as system:
        assert lines(tmp_path) == ["start a", "start b", "start c"]
        assert system.stop() is ExitStatus.OK
    assert lines(tmp_path)[3:] == ["stop c", "stop b", "stop a"]


@pytest.mark.parametrize(("strategy", "again"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")])
def test_strategies_restart_whom_they_name_and_nothing_is_lost(tmp_path: Path, strategy: str, again: str) -> None:
    with chain(tmp_path, strategy=strategy).start() as system:
        before = pids(system)
        system.send("a", Number(1))
        kill(system, "wb")
        system.send("a", Number(2))
        for name in again:
            until(restarted(system, f"w{name}"), f"w{name} to be restarted")
        system.send("a", Number(3))
        until(lambda: look(system, "c").numbers == (1, 2, 3), "everything to arrive")
        after = pids(system)
        assert {name for name in "abc" if before[name] != after[name]} == set(again)
        assert system.stop() is ExitStatus.OK
    made = lines(tmp_path)[3:]
    assert made[: len(again)] == [f"start {name}" for name in again], "in order"
    assert sum(line.startswith("stop") for line in made) == 3, "on_stop is for the end of the system only"


def test_a_group_that_gives_up_is_restarted_as_a_whole_by_the_one_around_it(tmp_path: Path) -> None:
    seen: list[events.Event] = []
    topology = chain(tmp_path)
    topology.group("pair", ["wb", "wc"], max_restarts=0)
    with topology.start(observer=seen.append) as system:
        before = pids(system)
        kill(system, "wc")
        until(restarted(system, "wb"), "the whole group to be restarted")
        until(restarted(system, "wc"), "the whole group to be restarted")
        system.send("a", Number(1))
        until(lambda: look(system, "c").numbers == (1,), "it to work")
        assert pids(system)["a"] == before["a"]
        assert [event.group for event in seen if isinstance(event, events.GroupGaveUp)] == ["pair"]
        assert system.stop() is ExitStatus.OK


def test_a_temporary_group_that_gives_up_stays_down_and_the_end_tells_of_it(tmp_path: Path) -> None:
    topology = chain(tmp_path)
    topology.group("pair", ["wb", "wc"], max_restarts=0, restart="temporary")
    system = topology.start()
    system.send("a", Number(1))
    until(lambda: look(system, "c").numbers == (1,), "it to arrive")
    kill(system, "wc")
    states = (Field.SUPERVISED_STATE, WorkerState.GAVE_UP)
    until(lambda: all(system.block(name).get(states[0]) == states[1] for name in ("wb", "wc")), "the group to be down")
    status = system.status()
    assert status.worker("wa").state == "running"
    assert look(system, "a").numbers == (1,)
    assert system.stop() is ExitStatus.GAVE_UP
    assert "group 'pair' was given up" in system.reason
    ended = system.status()
    assert ended.ended is not None
    assert ended.ended.name == "GAVE_UP"
    assert "killed by SIGKILL" in ended.ended.last_deaths["wc"]


def test_the_end_tells_who_died_how_often_and_what_was_pending(tmp_path: Path) -> None:
    topology = chain(tmp_path, max_restarts=1)
    system = topology.start()
    system.pause("wc")
    for n in range(5):
        system.send("a", Number(n))
    until(lambda: len(look(system, "b").numbers) == 5, "b to have sent it all")
    kill(system, "wa")
    until(restarted(system, "wa"), "wa to be restarted")
    kill(system, "wa")
    assert system.join(30) is ExitStatus.GAVE_UP
    status = system.status()
    assert status.ended is not None
    assert status.ended.pending_messages == {"wb -> wc": 5}
    assert status.ended.deaths == {"wa": 2}
    told = " ".join(status.notes)
    assert "worker wa: 2 deaths" in told
    assert "5 on wb -> wc" in told
    with topology.start() as again:
        until(lambda: look(again, "c").numbers == (0, 1, 2, 3, 4), "what was pending to arrive")


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_restart_that_is_asked_for_loses_nothing_and_counts_against_no_limit(tmp_path: Path, level: str) -> None:
    with chain(tmp_path, max_restarts=0, durability=level).start() as system:
        for n in range(20):
            system.send("a", Number(n))
            if n % 5 == 0:
                before = pid(system, "wb")
                system.restart("wb")
                assert pid(system, "wb") != before
        until(lambda: look(system, "c").numbers == tuple(range(20)), "everything to arrive")
        with pytest.raises(UnknownWorker, match="no worker 'wx' in this system; there are wa, wb, wc"):
            system.restart("wx")
        assert system.status().worker("wb").last_death == "", "a restart is no death"
        assert system.stop() is ExitStatus.OK


def test_a_paused_worker_handles_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with chain(tmp_path).start() as system:
        system.pause("wb")
        for n in range(10):
            system.send("a", Number(n))
        until(lambda: len(look(system, "a").numbers) == 10, "a to have handled it all")
        worker = system.status().worker("wb")
        assert (worker.paused, worker.handled_messages) == (True, 0)
        beat = system.block("wb").get(Field.HEARTBEAT_NS)
        until(lambda: system.block("wb").get(Field.HEARTBEAT_NS) > beat, "it to beat")
        kill(system, "wb")
        until(restarted(system, "wb"), "wb to be restarted")
        until(lambda: system.status().worker("wb").paused, "it to be paused again")
        assert look(system, "c").numbers == ()
        system.resume("wb")
        until(lambda: look(system, "c").numbers == tuple(range(10)), "everything to arrive")
        system.pause("wc")
        system.send("a", Number(10))
        assert system.stop() is ExitStatus.OK, "a stop resumes who is paused"


def test_a_drained_worker_has_handled_what_was_sent_and_calls_no_source(tmp_path: Path) -> None:
    topology = chain(tmp_path)
    topology.worker("source", counter=Counter)
    topology.external("counter")
    with topology.start() as system:
        system.pause("wb")
        for n in range(10):
            system.send("a", Number(n))
        until(lambda: len(look(system, "a").numbers) == 10, "a to have handled it all")
        system.drain("wb")
        until(lambda: look(system, "c").numbers == tuple(range(10)), "all that was sent before the drain to arrive")
        system.send("a", Number(10))
        until(lambda: len(look(system, "a").numbers) == 11, "a to have handled the last one")
        assert system.status().edge("wa", "wb").backlog_messages == 1
        system.drain("source")
        count = system.block("source").get(Field.COMMITS)
        system.resume("wb")
        until(lambda: look(system, "c").numbers == tuple(range(11)), "the rest to arrive")
        assert system.block("source").get(Field.COMMITS) == count
        system.resume("source")
        until(lambda: system.block("source").get(Field.COMMITS) > count, "the source to go on")


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_a_worker_may_end_itself_cleanly(tmp_path: Path, restart: str) -> None:
    topology = chain(tmp_path)
    topology.supervise("wb", restart=restart)
    with topology.start() as system:
        system.send("a", Number(1))
        until(lambda: look(system, "c").numbers == (1,), "it to arrive")
        system.send("b", Leave())
        if restart == "permanent":
            until(restarted(system, "wb"), "wb to be restarted")
            assert look(system, "b").numbers == (1, -1)
            system.send("a", Number(2))
            until(lambda: look(system, "c").numbers == (1, 2), "it to go on")
        else:
            state = Field.SUPERVISED_STATE
            until(lambda: system.block("wb").get(state) == WorkerState.STOPPED, "wb to be gone")
            assert pid(system, "wb") == 0
        assert system.stop() is ExitStatus.OK
    assert lines(tmp_path).count("stop b") == (2 if restart == "permanent" else 1)


class Slow(Keeper):
    """So slow that a batch ends before all that was taken is handled."""

    @handle
    def on_number(self, number: Number) -> None:
        time.sleep(0.004)
        self.send(number)

    @handle
    def on_leave(self, leave: Leave) -> None:
        for n in range(INLINE_LIMIT + 50):  # more than one transaction holds: the rest is carried over
            self.send(Part(n))
        self.stop_worker()


class Tail(Handler):
    @handle
    def on_part(self, part: Part) -> None: ...


@pytest.mark.parametrize("level", ["memory", "process"])
def test_what_was_taken_when_a_worker_ends_itself_is_for_its_next_incarnation(tmp_path: Path, level: str) -> None:
    topology = Topology("leaving", directory=tmp_path / "run", durability=level)
    topology.worker("wa", a=Keeper.spec(str(tmp_path / "log")))
    topology.worker("wb", b=Slow.spec(str(tmp_path / "log")), tail=Tail)
    topology.worker("wc", c=Keeper.spec(str(tmp_path / "log")))
    for name in "abc":
        topology.external(name)
    topology.route("b", Part, to="tail")
    topology.route("a", Number, to="b")
    topology.route("b", Number, to="c")
    topology.route("c", Number, to=[])
    with topology.start() as system:
        system.pause("wb")
        for n in range(20):
            system.send("a", Number(n))
        system.send("b", Leave())
        for n in range(20, 40):
            system.send("b", Number(n))
        until(lambda: len(look(system, "a").numbers) == 20, "a to have sent its share")
        system.resume("wb")
        until(restarted(system, "wb"), "wb to be restarted")
        until(lambda: len(look(system, "c").numbers) >= 40, "everything to arrive", 30)
        assert sorted(look(system, "c").numbers) == list(range(40))
        assert system.status().worker("wb").gaps == 0
        assert system.stop() is ExitStatus.OK


class Burst(Handler):
    def on_start(self) -> None:
        for n in range(3000):
            self.send(Number(n, "x" * 1000))


class Pass(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        self.send(number)


@pytest.mark.parametrize(("victim", "status"), [("burst", ExitStatus.FAILED), ("pass", ExitStatus.OK)])
def test_at_level_memory_only_what_has_no_cause_is_lost_with_a_worker_and_the_end_tells_of_it(
    tmp_path: Path, victim: str, status: ExitStatus
) -> None:
    """Rings and outboxes are full, for the last one is paused."""
    seen: list[events.Event] = []
    sizes = {"ring_bytes": 1 << 16, "max_message_bytes": 1 << 14}
    topology = Topology("full", directory=tmp_path / "run", durability="memory", **sizes)  # type: ignore[arg-type]
    topology.worker("burst", one=Burst)
    topology.worker("pass", two=Pass)
    topology.worker("keep", c=Keeper.spec(str(tmp_path / "log")))
    topology.route("one", Number, to="two")
    topology.route("two", Number, to="c")
    topology.route("c", Number, to=[])
    topology.external("c")
    with topology.start(observer=seen.append) as system:
        system.pause("keep")
        block = system.block("burst")
        until(lambda: block.get(Field.AT_RISK) == 1, "more than the rings hold")
        until(lambda: system.status().edge("pass", "keep").outbox_bytes > 0, "the other one, too")
        kill(system, victim)
        until(restarted(system, victim), "it to be restarted")
        system.resume("keep")
        if status is ExitStatus.OK:
            until(lambda: set(look(system, "c").numbers) == set(range(3000)), "everything", 30)
        assert system.stop() is status
    assert bool([event for event in seen if isinstance(event, events.Alarm)]) is (status is not ExitStatus.OK)


def test_who_does_not_come_up_in_time_ends_the_start(tmp_path: Path) -> None:
    topology = Topology("slow", directory=tmp_path / "run")
    topology.worker("w", sleeper=Keeper.spec(str(tmp_path / "log"), pause=600.0))
    topology.external("sleeper")
    topology.route("sleeper", Number, to=[])
    topology.supervise("w", ready_within=0.3)
    with pytest.raises(StartFailed, match=r"it was not ready within 0\.3 s; killed by SIGKILL") as caught:
        topology.start()
    assert caught.value.status == ExitStatus.GAVE_UP


class Deaf(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        time.sleep(math.inf if number.n < 0 else 600)


@pytest.mark.parametrize("shutdown", ["brutal_kill", 0.3])
def test_who_does_not_end_in_time_is_killed(tmp_path: Path, shutdown: float | str) -> None:
    """Its handler is at work for ten minutes."""
    topology = Topology("deaf", directory=tmp_path / "run")
    topology.worker("w", deaf=Deaf)
    topology.external("deaf")
    topology.supervise("w", shutdown=shutdown)
    system = topology.start()
    system.send("deaf", Number(1))
    until(lambda: system.block("w").get(Field.BUSY_PEER) != 0, "it to be busy")
    begun = time.monotonic()
    assert system.stop(drain=False) is ExitStatus.NOT_DRAINED
    assert time.monotonic() - begun < 15
