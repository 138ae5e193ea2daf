"""The loop of a worker, in this process: it does not sleep over work, and looks before it sleeps where that pays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors import Handler, Message, Topology, handle, spinning, wiring
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
        self.looked: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def wait(self, timeout: float, spin: float) -> bool:
        self.looked.append(spin)
        self._steps.pop(0)()
        return True


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
        return PyRing(self._buffers[source, target])

    def send(self, source: str, message: Message, number: int) -> None:
        sender = GATEWAY if source == GATEWAY else "source"
        (route,) = [one for one in self.plan.routes if (one.source, one.message) == (sender, type(message))]
        body = RunCodec(type(message)).encode_run([message])
        assert self._ring(source, "w").push(pack_header(number, 1, route.id, 0), body)

    def run(self, *steps: Callable[[], object]) -> Bell:
        """Until it has waited once more than there are steps."""
        block = self.board.block("w")
        block.set(Field.GATE, 1)
        worker = Worker(Boot(self.plan, "w", "00000001", "", "51e5510a", 0, None, {}), self.board, block, Wires())
        bell = Bell(block.doorbell, [*steps, lambda: block.set(Field.CONTROL, Control.STOP)])
        block.doorbell = bell  # type: ignore[assignment]
        worker.run()
        return bell


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    monkeypatch.setattr(Tried, "tries", [])
    return Alone(tmp_path, monkeypatch)


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


def test_it_looks_before_it_sleeps_after_short_waits_with_few_messages(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spinning, "LONGEST", 60.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    bell = alone.run(*[lambda number=n: alone.send(GATEWAY, Once(2), number) for n in range(1, 20)])
    assert bell.looked == [0.0] + [60.0] * 19
    assert Tried.tries == [2] * 19
