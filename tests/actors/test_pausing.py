"""Pause, drain and resume: every request counts, whatever was asked for before it, or comes between two looks."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import Handler, Message, Overridden, Topology, handle
from actors.pausing import Pausing
from bus import Field, Pause, pause_asked, pause_cell
from bus.layout import BLOCK_CELLS
from tests.actors.waiting import until


class Inbound:
    """A worker's endpoint with one link: so much was committed towards it, so much was consumed."""

    def __init__(self) -> None:
        self.cells = [0] * BLOCK_CELLS
        self.committed = 0
        own = SimpleNamespace(
            inbound=SimpleNamespace(watermark=0), outbound=SimpleNamespace(assigned=0), consuming=None
        )
        self.link = SimpleNamespace(
            inbound=SimpleNamespace(watermark=0), consuming=SimpleNamespace(get=lambda cell: self.committed)
        )
        self.links, self.me = [own, self.link], own
        self.number = 0

    def ask(self, pause: Pause) -> None:
        self.number += 1
        self.cells[Field.PAUSE] = pause_cell(self.number, pause)

    def consume(self) -> None:
        self.link.inbound.watermark = self.committed

    @property
    def reached(self) -> bool:
        return self.cells[Field.PAUSED] == self.cells[Field.PAUSE]


@pytest.fixture
def worker() -> Inbound:
    return Inbound()


@pytest.fixture
def pausing(worker: Inbound) -> Pausing:
    endpoint: Any = worker
    return Pausing(endpoint)


@pytest.mark.parametrize("pause", Pause)
@pytest.mark.parametrize("number", [0, 1, 1 << 40])
def test_a_request_survives_its_cell(number: int, pause: Pause) -> None:
    assert pause_asked(pause_cell(number, pause)) == (number, pause)


def test_a_worker_that_was_never_asked_runs(worker: Inbound, pausing: Pausing) -> None:
    assert not pausing.look()
    assert pausing.sources
    assert worker.reached


@pytest.mark.parametrize("pause", [Pause.RUN, Pause.PAUSE])
def test_to_pause_and_to_go_on_come_about_at_once(worker: Inbound, pausing: Pausing, pause: Pause) -> None:
    worker.committed = 7
    for _ in range(2):
        worker.ask(pause)
        assert not worker.reached
        assert pausing.look() is (pause is Pause.PAUSE)
        assert pausing.sources is (pause is Pause.RUN)
        assert worker.reached


def test_a_drain_has_come_about_when_what_was_sent_before_it_is_consumed(worker: Inbound, pausing: Pausing) -> None:
    worker.committed = 7
    worker.ask(Pause.DRAIN)
    assert not pausing.look()
    assert not pausing.sources
    assert not worker.reached
    worker.consume()
    worker.committed = 8
    assert pausing.look()
    assert worker.reached


@pytest.mark.parametrize("between", [(), (Pause.RUN,), (Pause.PAUSE,)])
def test_each_drain_is_one_whatever_came_between_two_looks(
    worker: Inbound, pausing: Pausing, between: tuple[Pause, ...]
) -> None:
    worker.ask(Pause.DRAIN)
    assert pausing.look()
    worker.committed = 8
    for pause in (*between, Pause.DRAIN):
        worker.ask(pause)
    assert not pausing.look(), "something was sent since"
    assert not worker.reached
    assert worker.cells[Field.PAUSED] == 0, "and nobody takes it for paused"
    worker.consume()
    assert pausing.look()
    assert worker.reached


def test_the_next_incarnation_takes_up_what_was_asked_for(worker: Inbound, pausing: Pausing) -> None:
    worker.ask(Pause.RUN)
    worker.ask(Pause.PAUSE)
    assert pausing.look()
    worker.cells[Field.PAUSED] = 0  # as the supervisor does
    endpoint: Any = worker
    assert Pausing(endpoint).look()
    assert worker.reached


# --------------------------------------------------------------------------------------------- with real processes
class Number(Message):
    n: int


class Keeper(Handler):
    """Writes down what it gets; the number 0 keeps it busy until the file `go` is there."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @handle
    def on_number(self, number: Number) -> None:
        if number.n == 0:
            (self.folder / "busy").touch()
            until((self.folder / "go").exists, "the word to go on")
        with (self.folder / "got").open("a") as file:
            file.write(f"{number.n}\n")


def topology(folder: Path) -> Topology:
    app = Topology("pausing", directory=folder / "run")
    app.worker("keeper", keeper=Keeper.spec(str(folder)))
    app.external("keeper", Number)
    return app


def test_a_second_drain_has_handled_what_was_sent_since_the_first(tmp_path: Path) -> None:
    with topology(tmp_path).start() as system:
        for n in range(1, 6):
            system.send("keeper", Number(n))
            system.drain("keeper")
            assert (tmp_path / "got").read_text().split() == [str(one) for one in range(1, n + 1)]
            assert system.status().worker("keeper").paused


def test_a_drain_after_a_resume_that_a_busy_worker_has_not_seen(tmp_path: Path) -> None:
    with topology(tmp_path).start() as system:
        system.send("keeper", Number(0))
        until((tmp_path / "busy").exists, "it to be busy")
        system._supervisor.request_drain_worker("keeper")
        system._supervisor.request_resume("keeper")
        system.send("keeper", Number(1))
        drained = threading.Thread(target=system.drain, args=("keeper",))
        drained.start()
        (tmp_path / "go").touch()
        drained.join()
        assert (tmp_path / "got").read_text().split() == ["0", "1"]


def test_a_pause_that_a_resume_overtakes_is_told_at_once(tmp_path: Path) -> None:
    with topology(tmp_path).start() as system:
        system.send("keeper", Number(0))
        until((tmp_path / "busy").exists, "it to be busy")
        problems: list[Overridden] = []

        def pause() -> None:
            try:
                system.pause("keeper", timeout=100)
            except Overridden as problem:
                problems.append(problem)

        waiting = threading.Thread(target=pause)
        waiting.start()
        until(lambda: pause_asked(system.block("keeper").get(Field.PAUSE))[1] is Pause.PAUSE, "it to be passed on")
        system._supervisor.request_resume("keeper")
        waiting.join(50)
        assert not waiting.is_alive()
        assert [str(problem) for problem in problems] == [
            "worker 'keeper': the request to pause was overridden by a later one, to resume"
        ]
        (tmp_path / "go").touch()
