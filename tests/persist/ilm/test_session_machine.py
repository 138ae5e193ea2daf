"""Sessions over a network that loses, doubles, delays and reorders, while ends crash, go back in time and forget.

Whatever happens: what an end has delivered is the beginning of what the other has sent, each message once and in order;
when the faults end everything is delivered; and if it cannot be, because someone lost state, someone says so. The same
walks catch each of the mistakes in session_mutants.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.persist.ilm.session_mutants import LOSSY, MUTANTS, NOISY, Mutant
from tests.persist.ilm.session_world import Violation, World, wander

SEEDS = 200  # a mistake must be caught by one of so many walks
STEPS = 120
indexes = st.integers(0, 1 << 16)
ends = st.integers(0, 2)


class Sessions(RuleBasedStateMachine):
    @initialize(three=st.booleans())
    def begin(self, three: bool) -> None:
        self.world = World(("a", "b", "c") if three else ("a", "b"))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle_for_good()

    def pair(self, which: int) -> tuple[str, str]:
        return self.world.pairs[which % len(self.world.pairs)]

    @rule(which=indexes, counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), gap=st.sampled_from([0, 0, 7]))
    def send(self, which: int, counts: list[int], gap: int) -> None:
        a, b = self.pair(which)
        self.world.ends[a].send(b, counts, gap)
        self.world.pump()

    @rule(count=st.integers(1, 9))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            self.world.arrive(0)
        self.world.pump()

    @rule(which=indexes, most=st.integers(1, 20))
    def deliver(self, which: int, most: int) -> None:
        a, b = self.pair(which)
        self.world.ends[a].deliver(b, most)
        self.world.pump()

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.pump()

    @rule(index=indexes, keep=st.booleans())
    def reorder(self, index: int, keep: bool) -> None:
        self.world.arrive(index, keep)
        self.world.pump()

    @rule(index=indexes)
    def lose(self, index: int) -> None:
        self.world.lose(index)

    @rule(index=indexes)
    def replay(self, index: int) -> None:
        self.world.replay(index)

    @rule(which=indexes, told=st.booleans())
    def reconnect(self, which: int, told: bool) -> None:
        self.world.reconnect(*self.pair(which), told)
        self.world.pump()

    @rule(which=indexes, told=st.booleans())
    def crash(self, which: int, told: bool) -> None:
        self.world.restart(self.pair(which)[0], told=told)
        self.world.pump()

    @rule(which=indexes)
    def save(self, which: int) -> None:
        self.world.ends[self.pair(which)[0]].save()

    @precondition(lambda self: any(end.saved for end in self.world.ends.values()))
    @rule(told=st.booleans())
    def go_back(self, told: bool) -> None:
        name = next(name for name, end in self.world.ends.items() if end.saved)
        self.world.restart(name, "go_back", told)
        self.world.pump()

    @rule(which=indexes, told=st.booleans(), really=st.integers(0, 3))
    def lose_all(self, which: int, told: bool, really: int) -> None:
        if really == 3:
            self.world.restart(self.pair(which)[0], "lose_all", told)
            self.world.pump()

    @rule(which=indexes, really=st.integers(0, 3))
    def forget(self, which: int, really: int) -> None:
        if really == 3:
            self.world.forget(*self.pair(which))
            self.world.pump()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def walk(seed: int, faults: tuple[str, ...]) -> Violation | None:
    world = World(("a", "b", "c") if seed % 5 == 0 else ("a", "b"))
    try:
        wander(world, Random(seed), STEPS, faults)
        world.settle_for_good()
    except Violation as violation:
        return violation
    return None


@pytest.mark.parametrize("faults", [(), NOISY, LOSSY, NOISY + LOSSY], ids=["none", "noisy", "lossy", "all"])
def test_everything_arrives_once_and_in_order(faults: tuple[str, ...]) -> None:
    assert [found for seed in range(SEEDS // 8) if (found := walk(seed, faults))] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught(mutant: Mutant) -> None:
    with mutant.patch():
        seed, found = next(((seed, found) for seed in range(SEEDS) if (found := walk(seed, mutant.faults))), (0, None))
    assert found is not None, f"not caught: {mutant.text}"
    assert found.invariant in mutant.violates.split(), found
    assert walk(seed, mutant.faults) is None, "it is not the mistake that was caught"
