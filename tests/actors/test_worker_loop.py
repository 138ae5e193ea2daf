"""The loop of a worker, in this process: it does not sleep over work, and looks before it sleeps where that pays."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors import Handler, Message, Topology, handle, polling, spinning, wiring
from actors.codec import RunCodec, pack_header
from actors.plan import GATEWAY
from actors.wiring import Wires
from actors.worker import Boot, Worker
from bus import Board, Control, Field, Pause, PyRing, board_size, format_ring, pause_cell, ring_size


class Bad(Message):
    n: int


class Once(Message):
    n: int


class Source(Handler):
    def on_start(self) -> None:
        self.send(Bad(0))


class Waiting(Handler, ordered=False, retry_first=60.0, max_attempts=5):
    @handle
    def on_bad(self, bad: Bad) -> None:
        raise ValueError("not now")


class Tried(Handler):
    """Its first message raises the first time; with the third one something happens meanwhile."""

    tries: ClassVar[list[int]] = []
    meanwhile: ClassVar[Callable[[], object]] = list

    @handle
    def on_once(self, once: Once) -> None:
        self.tries.append(once.n)
        if self.tries == [1]:
            raise ValueError("once")
        if once.n == 3:
            type(self).meanwhile()


class Bell:
    """In place of a doorbell: each wait takes the next step; after the last one the worker has to stop."""

    def __init__(self, real: Any, steps: list[Callable[[], object]]) -> None:
        self._real, self._steps = real, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def wait(self, timeout: float) -> bool:
        self._steps.pop(0)()
        return True


class Polls(PyRing):
    """Rings in which, while they are polled, the next of `coming` comes; when there is no more, nothing does."""

    __slots__ = ()
    coming: ClassVar[list[Callable[[], object]]] = []
    looks: ClassVar[int] = 0

    @classmethod
    def waiting(cls, rings: list[Any], seconds: float = 0.0, /) -> list[int]:
        if seconds:
            cls.looks += 1
            if cls.coming:
                cls.coming.pop(0)()
        return super().waiting(rings)


class Alone:
    """A worker of which this process is all peers, at level memory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        app = Topology("alone", directory=folder, durability="memory")
        app.worker("other", source=Source)
        app.worker("w", waiting=Waiting, tried=Tried)
        app.route("source", Bad, to="waiting")
        app.external("tried", Once)
        self.plan = app.compile()
        self.board = Board.format(bytearray(board_size(self.plan.peers)), self.plan.peers)
        self._buffers = {(edge.source, edge.target): bytearray(ring_size(4096)) for edge in self.plan.edges}
        for buffer in self._buffers.values():
            format_ring(buffer, 4096, 1)
        monkeypatch.setattr(wiring, "attach_ring", lambda run, edge, wires: self._ring(edge.source, edge.target))

    def _ring(self, source: str, target: str) -> PyRing:
        return Polls(self._buffers[source, target])

    def send(self, source: str, message: Message, number: int) -> None:
        sender = GATEWAY if source == GATEWAY else "source"
        (route,) = [one for one in self.plan.routes if (one.source, one.message) == (sender, type(message))]
        body = RunCodec(type(message)).encode_run([message])
        assert self._ring(source, "w").push(pack_header(number, 1, route.id, 0), body)

    def run(self, *steps: Callable[[], object]) -> None:
        """Until it has waited once more than there are steps."""
        block = self.board.block("w")
        block.set(Field.GATE, 1)
        worker = Worker(Boot(self.plan, "w", "00000001", "", "51e5510a", 0, None, {}), self.board, block, Wires())
        steps = (*steps, lambda: block.set(Field.CONTROL, Control.STOP))
        block.doorbell = Bell(block.doorbell, [*steps])  # type: ignore[assignment]
        worker.run()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    monkeypatch.setattr(Tried, "tries", [])
    return Alone(tmp_path, monkeypatch)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> type[Polls]:
    """However slow this machine is, a wait was short."""
    monkeypatch.setattr(spinning, "LONGEST", 60.0)
    monkeypatch.setattr(polling, "LONGEST", 60.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(Polls, "coming", [])
    monkeypatch.setattr(Polls, "looks", 0)
    return Polls


def test_a_message_that_is_to_be_tried_again_at_once_is_not_slept_over_while_another_one_waits(alone: Alone) -> None:
    seen: list[list[int]] = []
    alone.run(
        lambda: alone.send("other", Bad(1), 1),
        lambda: alone.send(GATEWAY, Once(1), 1),
        lambda: seen.append(list(Tried.tries)),
    )
    assert seen == [[1, 1]]


def test_a_pause_that_is_asked_for_while_a_handler_is_at_work_is_not_slept_over(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, asked = alone.board.block("w").cells, pause_cell(1, Pause.PAUSE)
    monkeypatch.setattr(Tried, "meanwhile", lambda: cells.__setitem__(Field.PAUSE, asked))
    told: list[int] = []
    alone.run(lambda: alone.send(GATEWAY, Once(3), 1), lambda: told.append(cells[Field.PAUSED]))
    assert told == [asked]


def test_it_polls_after_a_short_wait_and_sleeps_when_nothing_comes(alone: Alone, polls: type[Polls]) -> None:
    polls.coming += [partial(alone.send, GATEWAY, Once(2), n) for n in range(2, 20)]
    alone.run(lambda: alone.send(GATEWAY, Once(2), 1))
    assert polls.looks == 19, "the last one in vain"
    assert Tried.tries == [2] * 19


def test_where_there_is_one_processor_it_sleeps_at_once(
    alone: Alone, polls: type[Polls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    alone.run(*[partial(alone.send, GATEWAY, Once(2), n) for n in range(1, 5)])
    assert polls.looks == 0
    assert Tried.tries == [2] * 4


def test_a_pause_that_is_asked_for_while_it_polls_comes_about(alone: Alone, polls: type[Polls]) -> None:
    cells, asked = alone.board.block("w").cells, pause_cell(1, Pause.PAUSE)
    told: list[int] = []

    def pause() -> None:
        cells[Field.PAUSE] = asked
        alone.send(GATEWAY, Once(2), 2)
        alone.send(GATEWAY, Once(2), 3)

    polls.coming += [pause, lambda: told.append(cells[Field.PAUSED])]
    alone.run(lambda: alone.send(GATEWAY, Once(2), 1), lambda: told.append(cells[Field.PAUSED]))
    assert told == [asked]
    assert len(Tried.tries) < 4, "what came with the pause, and what comes after it, waits"


def test_a_pause_that_is_asked_for_while_it_polls_in_vain_is_not_slept_over(alone: Alone, polls: type[Polls]) -> None:
    """It does not wait for its doorbell then, and whoever has rung it, has rung it in vain."""
    cells, asked = alone.board.block("w").cells, pause_cell(1, Pause.PAUSE)
    told: list[int] = []
    polls.coming += [lambda: cells.__setitem__(Field.PAUSE, asked)]
    alone.run(lambda: alone.send(GATEWAY, Once(2), 1), lambda: told.append(cells[Field.PAUSED]))
    assert told == [asked]


def test_a_message_that_fails_while_it_polls_is_tried_again_at_once(
    alone: Alone, polls: type[Polls], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ValueError("once")]

    def fail() -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(Tried, "meanwhile", fail)
    polls.coming += [lambda: alone.send(GATEWAY, Once(3), 2)]
    alone.run(lambda: alone.send(GATEWAY, Once(2), 1))
    assert Tried.tries == [2, 3, 3]


def test_its_heartbeat_goes_on_while_messages_keep_it_polling(
    alone: Alone, polls: type[Polls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "LONGEST", 0.0)
    cells, beats = alone.board.block("w").cells, set[int]()

    def come(number: int) -> None:
        beats.add(cells[Field.HEARTBEAT_NS])
        alone.send(GATEWAY, Once(2), number)

    polls.coming += [partial(come, n) for n in range(2, 8)]
    alone.run(lambda: alone.send(GATEWAY, Once(2), 1))
    assert len(beats) == 6
