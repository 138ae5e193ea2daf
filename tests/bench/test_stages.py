"""Where a message's time goes: each method's own time, and places that exist."""

from __future__ import annotations

import importlib

import pytest

from tests.bench import probe as probe_module
from tests.bench.probe import Place, Probe
from tests.bench.stages import PLACES, RECEIVER, SENDER, figures, table

INNER, OUTER = 20, 300  # nanoseconds


class Clock:
    """In place of the module `time`: it goes on by what is worked."""

    def __init__(self) -> None:
        self.now = 0

    def thread_time_ns(self) -> int:
        return self.now


clock = Clock()


class Inner:
    def work(self) -> str:
        clock.now += INNER
        return "done"


class Outer:
    def work(self) -> str:
        clock.now += OUTER
        return Inner().work()


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    monkeypatch.setattr(probe_module, "time", clock)
    for owner in (Inner, Outer):
        monkeypatch.setattr(owner, "work", owner.work)
    made = Probe()
    made.install((Place("inner", __name__, "Inner", "work"), Place("outer", __name__, "Outer", "work")))
    return made


def test_a_method_has_its_own_time_without_that_of_others(probe: Probe) -> None:
    assert Outer().work() == "done"
    assert probe.calls == {"inner": 1, "outer": 1}
    assert probe.spent == {"inner": INNER, "outer": OUTER}


def test_a_method_that_raises_is_timed(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inner, "work", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Outer().work()
    assert probe.calls == {"outer": 1}
    probe.reset()
    assert not probe.spent


def test_a_place_that_does_not_exist_is_passed_over() -> None:
    Probe().install((Place("none", "no_such_module", "None", "none"), Place("none", __name__, "Inner", "none")))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.stage)
def test_every_place_exists_and_its_stage_is_shown(place: Place) -> None:
    assert callable(getattr(getattr(importlib.import_module(place.module), place.owner), place.method))
    assert place.stage in {**SENDER, **RECEIVER} or place.stage == "sync"  # which only level `power` has


def test_the_table_has_medians_of_every_stage() -> None:
    runs = [{figure.series: [value] for figure in figures()} for value in (1.0, 7.0, 300.0)]
    rows = table(runs).splitlines()
    assert len(rows) == 2 + len(SENDER) + 2
    assert rows[2].startswith("| **make**: the message is made | 7 | **take**")
    assert rows[-1] == "| together | 7 | together | 7 |"
