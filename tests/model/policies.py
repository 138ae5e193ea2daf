"""What happens in a simulated run: who goes on, who dies and when, how time passes. Decides and does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol, TypeVar


class Turn(Protocol):
    """What a policy looks at: a simulated process."""

    name: str
    last_turn: int


T = TypeVar("T", bound=Turn)


class Policy:
    """Decides what happens. This one: no fault, turn by turn."""

    def __init__(self) -> None:
        self.steps = 0
        self.torn = False

    def fault(self, process: Turn, kind: str) -> str:
        """What happens at this step: "", "process" (this process dies), "system" (everything does), or "zombie" (the
        supervisor takes this process for dead, although it is not)."""
        self.steps += 1
        return ""

    def switch(self, process: Turn, kind: str) -> bool:
        """Whether another process may go on."""
        return kind == "turn"

    def choose(self, ready: Sequence[T]) -> T:
        return min(ready, key=lambda one: one.last_turn)  # who has waited longest

    def restart_now(self, name: str) -> bool:
        """Whether a dead worker is started before the others have done all they can."""
        return True

    def time_passes(self) -> bool:
        """Whether time jumps, so that a batch is cut."""
        return False

    def flaky(self) -> bool:
        """Whether a handler raises."""
        return False

    def loses(self) -> bool:
        """Whether a record is lost in a ring, which does not happen."""
        return False


class FaultAt(Policy):
    """One fault, at step `at`, and perhaps another one (`after`, else the same), `then` steps later. `late`: the dead
    stay dead until nobody can do anything without them."""

    def __init__(self, at: int, fault: str, late: bool = False, then: int = 0, after: str = "") -> None:
        super().__init__()
        self._late = late
        self._faults = {at: fault}
        if then:
            self._faults[at + then] = after or fault

    def fault(self, process: Turn, kind: str) -> str:
        self.steps += 1
        return self._faults.get(self.steps, "")

    def restart_now(self, name: str) -> bool:
        return not self._late


class Chance(Policy):
    """Everything at random, as the seed says; no more faults after so many."""

    def __init__(self, seed: int, faults: int = 6) -> None:
        super().__init__()
        self.random = Random(seed)
        self._faults = faults
        self._kill = self.random.choice([0.002, 0.01, 0.03])
        self._system = self.random.choice([0.0, 0.2, 0.6])
        self._switch = self.random.choice([0.02, 0.1, 0.4])
        self._late = self.random.choice([0.0, 0.5, 0.95])
        self._jump = self.random.choice([0.0, 0.1])
        self._flaky = self.random.choice([0.0, 0.0, 0.1])

    def fault(self, process: Turn, kind: str) -> str:
        self.steps += 1
        if not self._faults or self.random.random() >= self._kill:
            return ""
        self._faults -= 1
        return "system" if self.random.random() < self._system else "process"

    def switch(self, process: Turn, kind: str) -> bool:
        return self.random.random() < self._switch

    def choose(self, ready: Sequence[T]) -> T:
        return self.random.choice(ready)

    def restart_now(self, name: str) -> bool:
        return self.random.random() >= self._late

    def time_passes(self) -> bool:
        return self.random.random() < self._jump

    def flaky(self) -> bool:
        return self.random.random() < self._flaky


class Clock:
    """In place of the module `time`: every look takes a microsecond."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._now = 10**9

    def passes(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)

    def monotonic_ns(self) -> int:
        self._now += 1000
        if self._policy.time_passes():
            self._now += 10**8
        return self._now

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    time_ns = monotonic_ns
