"""Batch handlers: several messages at once, and everything else as with one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from actors import ExitStatus, FixedMessage, Handler, Message, Rows, State, System, Topology, handle
from actors.fixed import f8
from actors.handler import describe
from bus import Field
from persist import read

from .waiting import until


class Row(FixedMessage):
    it: f8


class Number(Message):
    n: int
    how: str = ""


class Word(Message):
    items: list[str]  # can change


class Get(Message): ...


class Seen(Message):
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]


class Done(State):
    numbers: list[int] = []
    sizes: list[int] = []


class Sink(Handler, max_attempts=3):
    """Notes what came, and in lists of which size; fails as it is told."""

    state: Done

    def __init__(self, gate: str = "", log: str = "") -> None:
        self.gate, self.log = gate, log

    @handle(batch=True)
    def on_numbers(self, numbers: list[Number]) -> None:
        for number in numbers:
            if number.how == "raise":
                raise ValueError(f"not {number.n}")
            if number.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.message_id or '-'} {len(numbers)}\n")
        self.state.numbers.extend(number.n for number in numbers)
        self.state.sizes.append(len(numbers))
        numbers.clear()  # it is the handler's own

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.numbers), tuple(self.state.sizes)))


class One(Sink):
    @handle
    def on_numbers(self, number: Number) -> None:  # type: ignore[override]
        super().on_numbers([number])


class Burst(Handler):
    """Sends what it is told to, in one transaction."""

    @handle
    def on_word(self, word: Word) -> None:
        for n, how in enumerate(word.items):
            self.send(Number(n, how))


def app(directory: Path, level: str = "process", *, local: bool = False, second: type[Sink] | None = None) -> Topology:
    made = Topology("batch", directory=directory / "run", durability=level)
    sinks = {"sink": Sink.spec(log=str(directory / "log"))} | ({"second": second} if second else {})
    if local:
        made.worker("w", burst=Burst, **sinks)
    else:
        made.worker("source", burst=Burst)
        made.worker("w", **sinks)
    made.route("burst", Number, to=list(sinks))
    made.external("burst", Word)
    for name in sinks:
        made.external(name, Get)
    return made


def seen(system: System, name: str = "sink") -> Seen:
    return system.ask(name, Get(), reply=Seen)


def all_numbers(system: System, count: int, name: str = "sink") -> Seen:
    until(lambda: len(seen(system, name).numbers) >= count, f"{count} numbers", 30)
    return seen(system, name)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("level", ["memory", "process"])
def test_what_was_sent_together_is_handled_in_one_call(tmp_path: Path, level: str, local: bool) -> None:
    with app(tmp_path, level, local=local).start() as system:
        system.send("burst", Word([""] * 300))
        found = all_numbers(system, 300)
        assert found.numbers == tuple(range(300))
        assert found.sizes == (300,)
        assert system.stop() is ExitStatus.OK


@pytest.mark.parametrize("second", [Sink, One])
def test_of_two_handlers_of_a_worker_each_gets_all_messages_whatever_the_other_does(
    tmp_path: Path, second: type[Sink]
) -> None:
    with app(tmp_path, second=second).start() as system:
        system.send("burst", Word([""] * 50))
        assert all_numbers(system, 50).sizes == (50,)
        found = all_numbers(system, 50, "second")
        assert found.numbers == tuple(range(50))
        assert found.sizes == ((50,) if second is Sink else (1,) * 50)


@pytest.mark.parametrize("level", ["memory", "process"])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("how", ["raise", "die"])
def test_of_a_batch_that_fails_one_message_is_given_up_and_no_other(
    tmp_path: Path, how: str, level: str, local: bool
) -> None:
    with app(tmp_path, level, local=local).start() as system:
        system.send("burst", Word(["", "", how, "", ""]))
        if level == "process" or how == "raise":
            assert all_numbers(system, 4).numbers == (0, 1, 3, 4)
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        if level == "process":
            (letter,) = read(system.directory / "journals" / "w").dead
            assert letter.attempts == 3
            assert letter.type.endswith("Number")
        assert system.stop() is ExitStatus.OK


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_neighbour_in_a_batch_that_killed_its_worker_is_not_counted(tmp_path: Path, level: str) -> None:
    class Once(Sink, max_attempts=1):
        """Who is tried once must not be blamed for another one."""

        def on_numbers(self, numbers: list[Number]) -> None:
            super().on_numbers(numbers[:])
            with open(tmp_path / "taken", "a") as file:
                file.writelines(f"{number.n}\n" for number in numbers)

    def taken() -> list[str]:
        return (tmp_path / "taken").read_text().split() if (tmp_path / "taken").exists() else []

    made = Topology("batch", directory=tmp_path / "run", durability=level)
    made.worker("source", burst=Burst)
    made.worker("w", sink=Once)
    made.route("burst", Number, to="sink")
    made.external("burst", Word)
    made.external("sink", Get)
    with made.start() as system:
        system.send("burst", Word(["", "die", "", ""]))
        until(lambda: taken() == ["0", "2", "3"], "the others")
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        assert system.block("w").get(Field.DEATHS) == 2, "together, and alone"


def test_it_survives_kills_and_loses_doubles_and_reorders_nothing(tmp_path: Path) -> None:
    with app(tmp_path).start() as system:
        block = system.block("w")
        for turn in range(5):
            for _ in range(10):
                system.send("burst", Word([""] * 100))
            until(lambda: block.get(Field.PID) != 0, "a process", 30)
            os.kill(block.get(Field.PID), signal.SIGKILL)
            assert all_numbers(system, 1000 * (turn + 1)).numbers == tuple(range(100)) * 10 * (turn + 1)
        assert system.stop() is ExitStatus.OK


def test_a_message_that_comes_alone_has_an_id_and_several_have_none(tmp_path: Path) -> None:
    with app(tmp_path).start() as system:
        system.send("burst", Word([""]))
        all_numbers(system, 1)
        system.send("burst", Word(["", ""]))
        all_numbers(system, 3)
    assert (tmp_path / "log").read_text().split("\n")[:2] == ["source/1 1", "- 2"]


class Asked(Handler):
    @handle(batch=True)
    def on_gets(self, gets: list[Get]) -> None:
        self.reply(Seen((len(gets),), ()))


def test_each_question_is_answered(tmp_path: Path) -> None:
    made = Topology("asked", directory=tmp_path / "run")
    made.worker("w", asked=Asked)
    made.external("asked", Get)
    with made.start() as system:
        assert [system.ask("asked", Get(), reply=Seen).numbers for _ in range(3)] == [(1,)] * 3


def test_what_cannot_be_a_batch_handler_is_told() -> None:
    def problems(annotation: object) -> list[str]:
        def on_it(self, it): ...

        on_it.__annotations__["it"] = annotation
        return list(describe(type("Wrong", (Handler,), {"on_it": handle(batch=True)(on_it)})).problems)

    assert problems(list[Number]) == []
    assert problems(list[Number | Get]) == []
    assert problems(Number)[0] == (
        "on_it: it is a batch handler and takes Number: declare a list, as in `trades: list[Trade]`"
    )
    assert problems(Row) == ["on_it: it is a batch handler and takes Row: declare rows, as in `ticks: Rows[Row]`"]
    assert problems(Rows)[0].endswith("takes Rows: declare rows, as in `ticks: Rows[Tick]`")
    assert problems(tuple[Number, ...])[0].startswith("on_it: it is a batch handler and takes tuple: declare a list")
    assert problems(list)[0].startswith("on_it: it is a batch handler and takes list: declare a list")
    assert problems(list[int])[0].startswith("on_it: it takes int, which is not a Message class")


def test_a_subclass_inherits_or_replaces_a_batch_handler() -> None:
    class Plain(Sink):
        def on_numbers(self, numbers: list[Number]) -> None: ...

    assert describe(Sink).batches == describe(Plain).batches == {"on_numbers"}
    assert describe(One).batches == frozenset()
    assert describe(One).handles == describe(Sink).handles


@pytest.mark.parametrize("wrong", [1, "on_x", Number])
def test_a_mark_on_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="stands above a method"):
        handle(batch=True)(wrong)  # type: ignore[type-var]
