"""Definitions whose annotations are strings, for the tests: at module level and local to functions."""

from __future__ import annotations

from actors.handler import Handler, handle
from actors.message import Message, State
from actors.table import Table


class Ping(Message):
    number: int


class Early(Handler):
    """Names what is defined further down."""

    state: Later

    @handle
    def on_late(self, message: Late | Ping) -> None:
        self.send(message)


class Late(Message):
    text: str


class Later(State):
    seen: int = 0


def local_messages() -> tuple[type, type]:
    class Inner(Message):
        value: int

    class Outer(Message):
        inner: Inner
        rest: Outer | None = None

    return Inner, Outer


def local_handler() -> tuple[type, type, type[Handler]]:
    class Local(Message):
        value: int

    class Count(State):
        seen: int = 0

    class Counter(Handler):
        state: Count

        @handle
        def on_local(self, local: Local) -> None:
            self.state.seen += 1

    return Local, Count, Counter


def local_table() -> tuple[type, type[Handler]]:
    class Row(State):
        seen: int = 0

    class Keeper(Handler):
        state: Table[str, Row]

        def on_start(self) -> None:
            self.state["start"] = Row()

    return Row, Keeper


class Unknown(Handler):
    @handle
    def on_nothing(self, message: Nothing) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass
