"""The simulation can fail: each mistake, out of order or left out, is caught by an invariant that it breaks."""

from __future__ import annotations

import pytest

from tests.model.mutants import MUTANTS, Mutant
from tests.model.mutations import AS_IT_IS, commits
from tests.model.oracle import Violation
from tests.model.policies import Policy
from tests.model.simulation import simulate
from tests.model.test_protocol import steps_of, sweep
from tests.model.topologies import SCENES


def caught(mutant: Mutant) -> Violation:
    scene = mutant.scene()
    for number, policy in enumerate(mutant.hunt(steps_of(scene))):
        try:
            with mutant.patch():
                simulate(scene, policy, seed=number, limit=mutant.limit)
        except Violation as violation:
            # The same run of the real thing holds: it is not the limit, nor the scene.
            for again, control in enumerate(mutant.hunt(steps_of(scene))):
                if again == number:
                    simulate(scene, control, seed=number, limit=mutant.limit)
                    break
            return violation
    raise AssertionError(f"not caught: {mutant.text}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught(mutant: Mutant) -> None:
    violation = caught(mutant)
    assert violation.invariant in mutant.violates.split(), violation


@pytest.mark.parametrize("level", ["process", "power"])
def test_the_commit_that_the_mutants_are_made_of_is_right(level: str) -> None:
    with commits(*AS_IT_IS)():
        simulate(SCENES["cycle"](level), Policy())
        assert list(sweep(SCENES["pair"](level), 5, "process", late=True))
        assert list(sweep(SCENES["carry"](level), 25, "system", late=False))
