"""What SEMANTICS.md promises, with real processes."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import (
    AskFailed,
    AskTimeout,
    ExitStatus,
    Handler,
    Message,
    StartFailed,
    State,
    System,
    SystemClosed,
    Table,
    Topology,
    UnknownHandler,
    handle,
)
from actors.status import read_status
from bus import Field
from persist import NamedDeadLetter, check, read, replay

LEVELS = ["memory", "process", "power"]


class Number(Message):
    n: int


class Square(Message):
    n: int
    square: int


class Get(Message):
    pass


class Seen(Message):
    items: tuple[int, ...]


class Total(State):
    items: list[int] = []


class Squarer(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        self.send(Square(number.n, number.n**2))


class Collector(Handler):
    state: Total

    @handle
    def on_square(self, square: Square) -> None:
        self.state.items.append(square.square)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


def squares(directory: Path, **options: Any) -> Topology:
    app = Topology("squares", directory=directory, **options)
    app.worker("left", squarer=Squarer)
    app.worker("right", collector=Collector)
    app.route("squarer", Square, to="collector")
    app.external("squarer", Number)
    app.external("collector", Get)
    return app


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Awaits a state."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        threading.Event().wait(0.005)


def worker_pid(system: System, worker: str) -> int:
    return system.block(worker).get(Field.PID)


def kill_worker(system: System, worker: str) -> None:
    """SIGKILL, and wait until the next incarnation is up."""
    block = system.block(worker)
    until(lambda: block.get(Field.PID) != 0)
    epoch = block.get(Field.EPOCH)
    os.kill(block.get(Field.PID), signal.SIGKILL)
    until(lambda: block.get(Field.EPOCH) > epoch)


def dead_letters(system: System) -> list[NamedDeadLetter]:
    names = [worker.name for worker in system.plan.workers]
    return [letter for name in names for letter in read(system.directory / "journals" / name).dead]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize("level", LEVELS)
def test_messages_arrive_in_order_at_every_level(directory: Path, level: str) -> None:
    with squares(directory, durability=level).start() as system:
        for n in range(500):
            system.send("squarer", Number(n))
        until(lambda: len(system.ask("collector", Get(), reply=Seen).items) == 500)
        assert system.ask("collector", Get(), reply=Seen).items == tuple(n**2 for n in range(500))
    assert system.join() is ExitStatus.OK


def test_ask_is_answered_by_reply(directory: Path) -> None:
    with squares(directory).start() as system:
        assert system.ask("collector", Get(), timeout=60) == Seen(())


def test_a_clean_end_drains_what_was_sent(directory: Path) -> None:
    with squares(directory).start() as system:
        for n in range(200):
            system.send("squarer", Number(n))
        assert system.stop() is ExitStatus.OK
    with squares(directory).start() as system:
        assert len(system.ask("collector", Get(), reply=Seen).items) == 200


def test_send_returns_when_durable(directory: Path) -> None:
    with squares(directory).start() as system:
        os.kill(worker_pid(system, "left"), signal.SIGSTOP)  # nobody can have taken it
        system.send("squarer", Number(3))
        assert system.stop(drain=False) is ExitStatus.NOT_DRAINED
    with squares(directory).start() as system:
        until(lambda: system.ask("collector", Get(), reply=Seen).items == (9,))


@pytest.mark.parametrize("worker", ["left", "right"])
def test_a_killed_worker_loses_doubles_and_reorders_nothing(directory: Path, worker: str) -> None:
    with squares(directory, max_restarts=100).start() as system:
        for n in range(300):
            system.send("squarer", Number(n))
            if n % 100 == 50:
                kill_worker(system, worker)
        until(lambda: len(system.ask("collector", Get(), reply=Seen).items) >= 300)
        assert system.ask("collector", Get(), reply=Seen).items == tuple(n**2 for n in range(300))


def test_a_send_that_is_interrupted_in_its_commit_closes_the_gateway_and_is_not_lost(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C: what the journal has and what the process knows may differ then, and the journal is right."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with squares(directory).start() as system:
        system.send("squarer", Number(1))
        with monkeypatch.context() as patch:
            patch.setattr(system._gateway._endpoint, "_enter_outbox", interrupted)
            with pytest.raises(KeyboardInterrupt):
                system.send("squarer", Number(2))
        with pytest.raises(SystemClosed):
            system.send("squarer", Number(3))
    with squares(directory).start() as system:
        system.send("squarer", Number(4))
        until(lambda: len(system.ask("collector", Get(), reply=Seen).items) >= 3)
        assert system.ask("collector", Get(), reply=Seen).items == (1, 4, 16)


def test_after_the_end_nothing_is_taken(directory: Path) -> None:
    with squares(directory).start() as system:
        system.stop()
        with pytest.raises(SystemClosed):
            system.send("squarer", Number(1))
        with pytest.raises(SystemClosed):
            system.ask("collector", Get(), reply=Seen)


def test_an_unknown_handler_or_type_is_refused_with_what_there_is(directory: Path) -> None:
    with squares(directory).start() as system:
        with pytest.raises(UnknownHandler, match="squarer, collector") as unknown:
            system.send("sqarer", Number(1))
        assert unknown.value.handler == "sqarer"
        with pytest.raises(UnknownHandler, match="it takes Number"):
            system.send("squarer", Get())


def test_two_systems_on_one_directory_the_second_is_refused(directory: Path) -> None:
    with squares(directory).start(), pytest.raises(StartFailed) as refused:
        squares(directory).start()
    assert refused.value.status == ExitStatus.HELD
    assert str(os.getpid()) in refused.value.reason


# ---------------------------------------------------------------------------------------------------- failures
class Job(Message):
    n: int
    how: str = ""


class Done(Message):
    n: int
    value: float


class Fragile(Handler):
    state: Total

    @handle
    def on_job(self, job: Job) -> None:
        self.state.items.append(job.n)
        self.send(Done(job.n, float(job.n)))
        if job.how == "raise":
            raise ValueError(f"cannot do {job.n}")
        if job.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.how == "exit":
            raise SystemExit(3)
        if job.how == "misfit":
            self.send(Done(job.n, "not a float"))  # type: ignore[arg-type]
        if job.how == "unrouted":
            self.send(next(iter([Get()])))  # a plain self.send(Get()) would be refused before the start
        if job.how == "state":
            self.state.items.append("not an int")  # type: ignore[arg-type]

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


class Sink(Handler):
    state: Total

    @handle
    def on_done(self, done: Done) -> None:
        self.state.items.append(done.n)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


def fragile(directory: Path, one_worker: bool = False, **options: Any) -> Topology:
    app = Topology("fragile", directory=directory, max_restarts=100, **options)
    if one_worker:
        app.worker("both", fragile=Fragile, sink=Sink)
    else:
        app.worker("work", fragile=Fragile)
        app.worker("end", sink=Sink)
    app.route("fragile", Done, to="sink")
    app.external("fragile", Job, Get)
    app.external("sink", Get)
    return app


REASONS = {
    "raise": "ValueError: cannot do 5",
    "die": "killed its worker",
    "exit": "killed its worker",
    "misfit": "fragile",
    "unrouted": "Get",
    "state": "fragile",
}


@pytest.mark.parametrize("one_worker", [False, True], ids=["two workers", "one worker"])
@pytest.mark.parametrize("how", sorted(REASONS))
def test_a_failing_message_becomes_a_dead_letter_and_the_others_flow_on(
    directory: Path, how: str, one_worker: bool
) -> None:
    with fragile(directory, one_worker).start() as system:
        for n in range(10):
            system.send("fragile", Job(n, how if n == 5 else ""))
        expected = (0, 1, 2, 3, 4, 6, 7, 8, 9)
        until(lambda: len(system.ask("sink", Get(), reply=Seen).items) >= 9)
        assert system.ask("sink", Get(), reply=Seen).items == expected
        assert system.ask("fragile", Get(), reply=Seen).items == expected
        (letter,) = dead_letters(system)
        assert letter.attempts == 3
        assert letter.handler == "fragile"
        assert REASONS[how] in letter.reason
        assert system.stop() is ExitStatus.OK
        assert system.reason == "everything was handled, but for 1 dead letter"
    assert read_status(system.directory).notes[-1] == (
        f"1 dead letter at the end, on {'both' if one_worker else 'work'}: see `ringleader dead-letters list`"
    )


def test_the_traceback_is_kept_with_the_dead_letter(directory: Path) -> None:
    with fragile(directory).start() as system:
        with pytest.raises(AskFailed, match="cannot do 7"):
            system.ask("fragile", Job(7, "raise"))
        (letter,) = dead_letters(system)
        assert "in on_job" in letter.detail


def test_dead_letters_survive_restarts_of_everything(directory: Path) -> None:
    with fragile(directory).start() as system, pytest.raises(AskFailed):
        system.ask("fragile", Job(7, "raise"))
    with fragile(directory).start() as system:
        kill_worker(system, "work")
        assert len(dead_letters(system)) == 1


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_message_that_kills_its_worker_is_given_up_at_every_level(directory: Path, level: str) -> None:
    with fragile(directory, durability=level).start() as system:
        with pytest.raises(AskFailed, match="killed its worker"):
            system.ask("fragile", Job(1, "die"))
        assert system.block("work").get(Field.RESTARTS) == 3


def test_ask_without_reply_times_out_and_says_so(directory: Path) -> None:
    with fragile(directory).start() as system, pytest.raises(AskTimeout, match=r"self\.reply"):
        system.ask("fragile", Job(1), timeout=0.2)


class Crasher(Handler):
    def on_start(self) -> None:
        raise RuntimeError("no such device")

    @handle
    def on_number(self, number: Number) -> None: ...


def test_a_worker_that_cannot_start_is_given_up_with_its_reason(directory: Path) -> None:
    app = Topology("crasher", directory=directory, max_restarts=2, backoff_first=0.01)
    app.worker("w", crasher=Crasher)
    app.external("crasher", Number)
    with pytest.raises(StartFailed, match="no such device") as failed:
        app.start()
    assert failed.value.status == ExitStatus.GAVE_UP


# ---------------------------------------------------------------------------------------------------- lifecycle
class Greeter(Handler):
    state: Total

    def __init__(self, path: str) -> None:
        self.log = open(path, "a", buffering=1)  # noqa: SIM115

    def on_start(self) -> None:
        print("start", file=self.log)
        self.state.items.append(1)
        self.send(Number(1))

    def on_stop(self) -> None:
        print("stop", file=self.log)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


class Keeper(Handler):
    state: Total

    @handle
    def on_number(self, number: Number) -> None:
        self.state.items.append(number.n)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


def greeter(directory: Path, log: Path) -> Topology:
    app = Topology("greeter", directory=directory, max_restarts=100)
    app.worker("a", greeter=Greeter.spec(str(log)))
    app.worker("b", keeper=Keeper)
    app.route("greeter", Number, to="keeper")
    app.external("keeper", Get)
    app.external("greeter", Get)
    return app


def test_on_start_takes_effect_once_per_start(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with greeter(directory, log).start() as system:
        until(lambda: system.ask("keeper", Get(), reply=Seen).items == (1,))
        kill_worker(system, "a")
        assert system.ask("greeter", Get(), reply=Seen).items == (1,)
        assert system.ask("keeper", Get(), reply=Seen).items == (1,)
    assert log.read_text().split() == ["start", "start", "stop"]
    with greeter(directory, log).start() as system:
        until(lambda: system.ask("keeper", Get(), reply=Seen).items == (1, 1))
        assert system.ask("greeter", Get(), reply=Seen).items == (1, 1)


class Finite(Handler):
    state: Total

    def on_loop(self) -> float | None:
        if len(self.state.items) >= 1000:
            self.stop_system()
            return math.inf
        self.state.items.append(0)
        self.send(Number(len(self.state.items)))
        return None


class Counts(State):
    total: int = 0


class Tally(Handler):
    state: Table[str, Counts]

    @handle
    def on_number(self, number: Number) -> None:
        key = "even" if number.n % 2 == 0 else "odd"
        if key not in self.state:
            self.state[key] = Counts()
        self.state[key].total += 1

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen((self.state["odd"].total, self.state["even"].total)))


def finite(directory: Path, tally_in: str = "b") -> Topology:
    app = Topology("finite", directory=directory, max_restarts=100)
    if tally_in == "a":
        app.worker("a", finite=Finite, tally=Tally)
    else:
        app.worker("a", finite=Finite)
        app.worker("b", tally=Tally)
    app.route("finite", Number, to="tally")
    app.external("tally", Get)
    return app


@pytest.mark.parametrize("tally_in", ["a", "b"])
def test_a_handler_ends_the_system_after_all_was_handled(directory: Path, tally_in: str) -> None:
    system = finite(directory, tally_in).start()
    assert system.join(30) is ExitStatus.OK
    table = read(directory / "journals" / tally_in).tables["tally"]
    decoded = {msgspec.msgpack.decode(key): msgspec.msgpack.decode(value) for key, value in table.items()}
    assert decoded == {"odd": {"total": 500}, "even": {"total": 500}}


class Shouter(Handler):
    """What it sends is routed to nobody, on purpose."""

    @handle
    def on_number(self, number: Number) -> None:
        self.send(Square(number.n, number.n))

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(()))


def test_a_route_to_nobody_drops_what_is_sent(directory: Path) -> None:
    app = Topology("shouter", directory=directory)
    app.worker("w", shouter=Shouter)
    app.route("shouter", Square, to=[])
    app.external("shouter")
    with app.start() as system:
        system.send("shouter", Number(1))
        assert system.ask("shouter", Get(), reply=Seen) == Seen(())
        assert not dead_letters(system)


class Ids(Handler):
    state: Total

    def __init__(self, path: str) -> None:
        self.path = path

    @handle
    def on_number(self, number: Number) -> None:
        with open(self.path, "a") as file:
            file.write(f"{self.message_id} {number.n}\n")
        if number.n == 2:
            raise RuntimeError("again")


def test_message_id_is_stable_across_attempts(directory: Path, tmp_path: Path) -> None:
    app = Topology("ids", directory=directory)
    app.worker("w", ids=Ids.spec(str(tmp_path / "log")))
    app.external("ids")
    with app.start() as system:
        for n in (1, 2, 3):
            system.send("ids", Number(n))
        until(lambda: len(dead_letters(system)) == 1)
        system.stop()
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    by_number = {n: {identity for identity, number in lines if number == n} for n in "123"}
    assert by_number == {"1": {"gateway/1"}, "2": {"gateway/2"}, "3": {"gateway/3"}}
    assert len([n for _, n in lines if n == "2"]) >= 3


def test_an_exception_rolls_back_sends_and_state(directory: Path) -> None:
    with fragile(directory, max_attempts=1).start() as system:
        for how in ("", "raise", ""):
            system.send("fragile", Job(1, how))
        until(lambda: len(system.ask("sink", Get(), reply=Seen).items) == 2)
        assert system.ask("fragile", Get(), reply=Seen).items == (1, 1)
        assert system.block("work").get(Field.SENT) == 2 + 1  # and the answer


def test_a_bad_value_is_blamed_on_the_handler_that_sent_it(directory: Path) -> None:
    with fragile(directory).start() as system:
        with pytest.raises(AskFailed, match=r"handler 'fragile' sent a .*Done.*value: .*float"):
            system.ask("fragile", Job(1, "misfit"))
        assert system.block("work").get(Field.SENT) == 1  # the failure, to whoever asked


def test_old_segments_go_soon_after_a_restart(directory: Path) -> None:
    """Every restart reads what is still there: it must not grow with the number of restarts."""
    with squares(directory, max_restarts=100).start() as system:
        for n in range(3):
            system.send("squarer", Number(n))
            kill_worker(system, "left")
        until(lambda: system.block("left").get(Field.JOURNAL_SEGMENTS) == 1)
        until(lambda: len(system.ask("collector", Get(), reply=Seen).items) == 3)


@pytest.mark.parametrize(
    ("options", "kept"), [({"retain_bytes": 1 << 20}, True), ({"retain_seconds": 3600.0}, True), ({}, False)]
)
def test_history_is_there_to_be_replayed_if_the_topology_says_so(
    directory: Path, options: dict[str, Any], kept: bool
) -> None:
    """Also behind a kill, and after a clean end, when everything has been consumed and nobody needs it."""
    with squares(directory, **options).start() as system:
        for n in range(50):
            system.send("squarer", Number(n))
        kill_worker(system, "left")
        for n in range(50, 100):
            system.send("squarer", Number(n))
        until(lambda: len(system.ask("collector", Get(), reply=Seen).items) == 100)
    sent = [(run.edges["right"], run.count) for one in replay(directory / "journals" / "left") for run in one.sends]
    assert sum(count for _, count in sent) == (100 if kept else 0)
    assert [first for first, _ in sent] == sorted(first for first, _ in sent)
    for journal in sorted((directory / "journals").iterdir()):
        assert check(journal).ok, check(journal)
