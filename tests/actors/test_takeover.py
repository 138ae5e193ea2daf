"""A changed topology over the journals of another one."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors import Handler, Message, StartFailed, State, Topology, handle
from actors.exits import ExitStatus
from bus import Field

from .faked import send


class Number(Message):
    n: int


class Get(Message):
    pass


class Seen(Message):
    total: int


class Total(State):
    total: int = 0


class Adder(Handler):
    state: Total

    @handle
    def on_number(self, number: Number) -> None:
        self.state.total += number.n

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.total))


class Forward(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        self.send(number)


def topology(directory: Path, hosts: Mapping[str, tuple[str, ...]], **options: object) -> Topology:
    app = Topology("changing", directory=directory, **options)  # type: ignore[arg-type]
    names = [name for handlers in hosts.values() for name in handlers]
    for worker, handlers in hosts.items():
        app.worker(worker, **{name: Forward if name == "forward" else Adder for name in handlers})
    for name in names:
        app.external(name)
    if "forward" in names:
        app.route("forward", Number, to="adder")
    return app


def add(app: Topology, handler: str, n: int) -> int:
    with app.start() as system:
        system.send(handler, Number(n))
        return system.ask(handler, Get(), reply=Seen).total


def test_added_workers_and_handlers_just_work(tmp_path: Path) -> None:
    assert add(topology(tmp_path / "run", {"a": ("adder",)}), "adder", 1) == 1
    grown = {"z": ("first",), "a": ("other", "adder"), "b": ("last",)}
    assert add(topology(tmp_path / "run", grown), "adder", 1) == 2
    assert add(topology(tmp_path / "run", grown), "other", 1) == 1


def test_state_follows_a_handler_to_another_worker_and_back(tmp_path: Path) -> None:
    for total, hosts in enumerate(
        [
            {"a": ("adder",)},
            {"a": ("other",), "b": ("adder",)},
            {"c": ("adder",)},
            {"a": ("adder",)},
            {"b": ("adder",)},
        ],
        1,
    ):
        assert add(topology(tmp_path / "run", hosts), "adder", 1) == total, hosts


def test_state_of_a_handler_that_was_away_is_still_there(tmp_path: Path) -> None:
    assert add(topology(tmp_path / "run", {"a": ("adder",)}), "adder", 5) == 5
    assert add(topology(tmp_path / "run", {"a": ("other",)}), "other", 1) == 1
    assert add(topology(tmp_path / "run", {"b": ("adder",)}), "adder", 1) == 6


@pytest.mark.parametrize(
    "changed",
    [{"a": ("forward",), "c": ("adder",)}, {"a": ("forward", "adder"), "b": ("other",)}, {"c": ("forward", "adder")}],
    ids=["receiver gone", "handler moved", "both gone"],
)
def test_what_cannot_be_honoured_is_refused_with_what_is_pending(
    tmp_path: Path, changed: dict[str, tuple[str, ...]]
) -> None:
    hosts = {"a": ("forward",), "b": ("adder",)}
    with topology(tmp_path / "run", hosts).start() as system:
        system.send("adder", Number(1))
        assert system.ask("adder", Get(), reply=Seen).total == 1
        send(system.block("b").get(Field.PID), signal.SIGSTOP)
        for _ in range(3):
            system.send("adder", Number(1))
        system.stop(drain=False)
    with pytest.raises(StartFailed, match="pending") as refused:
        topology(tmp_path / "run", changed).start()
    assert refused.value.status == ExitStatus.USAGE
    assert "3 on gateway -> b" in refused.value.reason
    # Refusing has lost nothing.
    assert add(topology(tmp_path / "run", hosts), "adder", 1) == 5


def test_pending_messages_are_not_dropped_by_a_change_to_memory(tmp_path: Path) -> None:
    hosts = {"a": ("forward",), "b": ("adder",)}
    assert add(topology(tmp_path / "run", hosts), "adder", 1) == 1
    with topology(tmp_path / "run", hosts, durability="memory").start():
        pass  # nothing is pending: fine
