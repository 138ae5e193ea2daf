"""What ends the polling of a worker: each of these by itself, with the message at hand handled."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actors import polling
from actors.polling import Polling
from actors.spinning import FEW
from bus import Field

FOREVER = float("inf")


class Scene:
    """An endpoint and a dispatcher in one, to which five messages come; with the second one something happens."""

    def __init__(self, happens: Callable[[Scene], object]) -> None:
        self.cells = [0] * 64
        self.settled: Any = True
        self.left: list[str] = []
        self.handled: list[str] = []
        self.waits: list[tuple[float, bool, int]] = []
        self.spinning = SimpleNamespace(seconds=0.25, waited=lambda *told: self.waits.append(told))
        self._coming = ["1", "2", "3", "4", "5"]
        self._happens = happens

    def take(self, but: tuple[()], seconds: float) -> list[str]:
        return [self._coming.pop(0)] if self._coming else []

    def run(self, arrivals: list[str]) -> list[str]:
        self.handled += arrivals
        self.cells[Field.HANDLED] += 1
        if len(self.handled) == 2:
            self._happens(self)
        return self.left

    def poll(self, until: float = FOREVER) -> tuple[bool, Any]:
        came, left = Polling(self, self, self.spinning).poll(until)  # type: ignore[arg-type]
        return came, list(left)


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST", 600.0)


def test_it_goes_on_while_messages_come_one_by_one_and_says_that_the_last_look_was_in_vain() -> None:
    scene = Scene(lambda scene: None)
    assert scene.poll() == (True, [])
    assert scene.handled == ["1", "2", "3", "4", "5"]
    assert scene.waits == [(0.0, True, 1)] * 5 + [(0.25, False, 0)]
    assert scene.poll() == (False, [])


@pytest.mark.parametrize(
    "happens",
    [
        lambda scene: setattr(scene, "settled", False),
        lambda scene: setattr(scene.spinning, "seconds", 0.0),
        lambda scene: scene.cells.__setitem__(Field.CONTROL, 1),
        lambda scene: scene.cells.__setitem__(Field.PAUSE, 5),
    ],
    ids=["something waits", "it is not worth while", "control", "pause"],
)
def test_it_ends_behind_a_message_with_which_there_is_something_else_to_do(
    happens: Callable[[Scene], object],
) -> None:
    scene = Scene(happens)
    assert scene.poll() == (True, [])
    assert scene.handled == ["1", "2"]


@pytest.mark.parametrize("which", ["endpoint", "dispatcher"])
def test_it_ends_when_one_of_both_is_not_settled(which: str) -> None:
    scene = Scene(lambda scene: None)
    other = SimpleNamespace(settled=False, take=scene.take, run=scene.run, cells=scene.cells)
    endpoint, dispatcher = (other, scene) if which == "endpoint" else (scene, other)
    assert Polling(endpoint, dispatcher, scene.spinning).poll(FOREVER)[0]  # type: ignore[arg-type]
    assert scene.handled == ["1"]


def test_what_is_left_is_handed_over() -> None:
    scene = Scene(lambda scene: scene.left.append("2"))
    assert scene.poll() == (True, ["2"])
    assert scene.handled == ["1", "2"]


def test_it_ends_when_its_time_is_over_and_a_source_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(lambda scene: None)
    assert scene.poll(until=0.0) == (True, [])
    assert scene.handled == ["1"]
    monkeypatch.setattr(polling, "LONGEST", 0.0)
    assert scene.poll() == (True, [])
    assert scene.handled == ["1", "2"]


def test_how_many_messages_came_with_one_is_told() -> None:
    scene = Scene(lambda scene: scene.cells.__setitem__(Field.SENT, 2 * FEW))
    scene.poll()
    assert scene.waits[:3] == [(0.0, True, 1), (0.0, True, 1 + 2 * FEW), (0.0, True, 1)]
