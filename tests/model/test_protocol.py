"""The delivery protocol, as it is implemented, under a simulated scheduler with crashes at every step.

What runs is the runtime itself: workers, dispatchers, endpoints, journals and rings. What must hold is in `oracle`. A
failure tells the command that replays it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model.oracle import Violation
from tests.model.policies import Chance, FaultAt, Policy
from tests.model.simulation import simulate
from tests.model.topologies import SCENES, Scene, poisoned_join, poisoned_pair

LEVELS = ("process", "power")
STRIDES = {"pair": 1, "join": 5, "cycle": 13, "carry": 7}  # every how many steps there is a run without --long
SEEDS = range(6)
FAULTS = {
    "a worker dies": ("process", False),
    "a worker dies and comes back late": ("process", True),
    "everything dies": ("system", False),
}


def steps_of(scene: Scene) -> int:
    policy = Policy()
    simulate(scene, policy)
    return policy.steps


def sweep(scene: Scene, stride: int, fault: str, late: bool, then: int = 0) -> Iterator[int]:
    """One run for each step (each `stride`-th) at which something can happen."""
    for at in range(1 + (len(scene.name) + len(fault)) % stride, steps_of(scene) + 1, stride):
        try:
            simulate(scene, FaultAt(at, fault, late, then), seed=at)
        except Violation as violation:
            more = f"{' --late' * late}{f' --then {then}' * bool(then)}"
            violation.add_note(f"scene {scene.name!r}, {scene.plan.level}: --fault {fault} --at {at}{more}")
            raise
        yield at


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SCENES)
def test_without_faults_everything_arrives_and_nobody_waits_in_vain(name: str, level: str) -> None:
    simulate(SCENES[name](level), Policy(), again=True)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SCENES)
def test_a_death_at_any_step_loses_doubles_and_reorders_nothing(name: str, level: str, fault: str) -> None:
    assert list(sweep(SCENES[name](level), STRIDES[name], *FAULTS[fault]))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("then", [0, 3, 17, 40])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SCENES)
def test_two_deaths_at_any_step_lose_double_and_reorder_nothing(name: str, level: str, fault: str, then: int) -> None:
    assert list(sweep(SCENES[name](level), 1, *FAULTS[fault], then))


@pytest.mark.parametrize("fault", ["process", "system"])
@pytest.mark.parametrize("how", ["raise", "die", "die at commit"])
@pytest.mark.parametrize("level", LEVELS)
def test_exactly_the_poison_message_is_given_up_after_its_attempts(level: str, how: str, fault: str) -> None:
    assert list(sweep(poisoned_pair(level, poison=3, how=how), 6, fault, late=False))
    for poison in (1, 2, 6):
        assert list(sweep(poisoned_pair(level, poison=poison, how=how), 60, fault, late=False))
    assert list(sweep(poisoned_join(level, how=how), 60, fault, late=False))


def test_a_message_is_not_charged_for_a_death_during_recovery() -> None:
    """An incarnation that had counted the attempt died before it had said so, and the attempt was counted again."""
    assert list(sweep(poisoned_pair("power", poison=1), 1, "process", late=False))


@pytest.mark.parametrize("level", LEVELS)
def test_who_was_taken_for_dead_and_lives_does_no_harm(level: str) -> None:
    """Its successor is refused the journal, until it is dead indeed."""
    assert list(sweep(SCENES["pair"](level), 2, "zombie", late=False))
    assert list(sweep(SCENES["cycle"](level), 40, "zombie", late=False))


def random_runs(seed: int, faults: int) -> None:
    for level in LEVELS:
        for name, make in SCENES.items():
            try:
                simulate(make(level), Chance(seed, faults), seed=seed, again=True)
            except Violation as violation:
                violation.add_note(f"python -m tests.model {name} {level} --seed {seed} --faults {faults}")
                raise


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules_and_deaths_lose_double_and_reorder_nothing(seed: int) -> None:
    random_runs(seed, faults=6)


def test_a_component_does_not_wait_for_the_limit_of_a_dead_worker() -> None:
    """A worker that died over its limit came back below it, and its peers went on waiting."""
    for seed in range(20):
        simulate(SCENES["cycle"]("process", outbox_limit_bytes=1), Chance(seed, 6), seed=seed)


def test_answers_are_taken_while_questions_find_no_room() -> None:
    """The gateway over its limit and a worker whose answers found no room waited for each other."""
    for seed in range(10):
        simulate(SCENES["cycle"]("process", feeds=4, balls=4), Chance(seed, 0), seed=seed)


def test_room_that_comes_before_the_doorbell_is_armed_is_not_missed() -> None:
    """It rang in vain, and the bound of the wait was all that helped."""
    for seed in range(15):
        simulate(SCENES["join"]("process", count=3), Chance(seed, 0), seed=seed)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(10))
def test_many_random_schedules(part: int) -> None:
    for seed in range(1000 + part * 30, 1030 + part * 30):
        random_runs(seed, faults=12)


class Holes(FaultAt):
    """Records vanish from the rings, which does not happen: what would fill the hole is tested all the same."""

    def __init__(self, at: int, fault: str, seed: int) -> None:
        super().__init__(at, fault)
        self._chance = Chance(seed)
        self._left = 4

    def switch(self, process: object, kind: str) -> bool:
        return self._chance.random.random() < 0.05

    def loses(self) -> bool:
        lost = self._left > 0 and self._chance.random.random() < 0.5
        self._left -= lost
        return lost


@pytest.mark.parametrize("level", LEVELS)
def test_a_hole_in_a_ring_is_noticed_and_filled(level: str) -> None:
    holes = 0
    for at in range(1, 301, 7):
        simulation = simulate(SCENES["pair"](level, count=8), Holes(at, "process", seed=at), seed=at)
        holes += simulation.holes
    assert holes > 20
