"""What is tried at the failpoints: every point x action x {first, a later hit}, and how to come to each point."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.torture.hook import SUPERVISOR, WORKER

ACTIONS = ("exit", "SIGKILL", "SIGSEGV", "SIGSTOP", "error")
TOGETHER = 8  # combinations at once


@dataclass(frozen=True)
class Way:
    """How to come to a point: in whom it acts, what must happen, up to which hit it is worth waiting. `watched`: the
    supervisor finds out by itself that whoever acts there was stopped."""

    role: int = WORKER
    provoke: str = ""  # "": it is reached under load; a flag; "worker" or "system": by its death; "tear"
    most: int = 40
    watched: bool = True


RESTART = Way(WORKER, "worker", 4)
# The steps of rows and of claims that the system of `rows_system` has: some at level `memory` only.
IN_PLACE = ("place-claimed", "place-reserved", "place-headed", "place-published", "place-given-up")
ROWS = (
    "rows-reserved", "rows-written", "rows-sent", "views-taken", "rows-lent", "views-given-back", "view-escaped",
    "view-outlives",
)  # fmt: skip
CLAIMS_IN_MEMORY = ("claim-filled", "claim-reused", "claim-let-go", "claim-looked-at")
SYSTEMS: Mapping[str, Callable[[str], bool]] = {  # in which the points are tried
    "memory": lambda point: point in {*IN_PLACE, *ROWS, *CLAIMS_IN_MEMORY, "claims-recovered", "claim-laid"},
    "power": lambda point: point in ROWS,
    "whole": lambda point: point not in {*IN_PLACE, *ROWS, *CLAIMS_IN_MEMORY},
}
WAYS = {
    **dict.fromkeys(
        (
            "board-attached", "pid-told", "journal-locked", "journal-recovered", "journal-adopted", "incarnation-begun",
            "journal-opened", "epoch-told", "watermark-told", "resume-acknowledged", "links-restored", "republished",
            "gate-reached", "gate-passed", "on-start-before", "on-start-after", "session-told", "worker-running",
            "backlog-refilled", "ring-rewound", "claims-recovered",
        ),
        RESTART,
    ),
    **dict.fromkeys(("rotate-before", "rotate-begun", "rotate-switched", "segment-deleted"), Way(most=4)),
    **dict.fromkeys(
        ("segment-made", "snapshot-written", "segment-renamed", "spare-prepared"), Way(WORKER, "worker", 12)
    ),
    **dict.fromkeys(("reply-packed", "ring-record-copied"), Way(most=12)),
    **dict.fromkeys(("rollback-begun", "handlers-made", "careful-message"), Way(WORKER, "raise", 3)),
    "attempt-counted": Way(WORKER, "poison", 12),
    "handlers-made": Way(WORKER, "worker", 4),
    **dict.fromkeys(("own-taken", "own-acknowledged"), Way(WORKER, "carry", 3)),
    **dict.fromkeys(("dead-letter-made", "dead-letter-buried", "claim-kept", "claim-linked"), Way(WORKER, "poison", 2)),
    **dict.fromkeys(
        (
            "claim-laid", "claim-made", "claim-created", "claim-written", "claim-synced", "claim-redeemed",
            "claim-freeing", "claim-freed", *CLAIMS_IN_MEMORY,
        ),
        Way(most=8),
    ),
    "backlog-spilled": Way(WORKER, "pile", 6),
    **dict.fromkeys((*IN_PLACE, *ROWS), Way(most=12)),
    "place-given-up": Way(most=8),
    "view-escaped": Way(WORKER, "keep", 3),
    "view-outlives": Way(WORKER, "hold", 2),
    "tail-cut": Way(WORKER, "tear", 2),
    "start-committed": Way(WORKER, "session", 2),
    **dict.fromkeys(
        ("gateway-before-commit", "gateway-committed", "gateway-taken", "gateway-consumed", "gateway-answer"),
        Way(SUPERVISOR, "", 20),
    ),
    **dict.fromkeys(("death-seen", "death-buried", "restart-decided", "worker-launched"), Way(SUPERVISOR, "worker", 3)),
    "spare-waits": Way(WORKER, "worker", 2, watched=False),
    "spare-told": Way(SUPERVISOR, "worker", 2),
    "spare-let-go": Way(SUPERVISOR, "session", 2),
    **dict.fromkeys(
        ("run-locked", "stale-removed", "identity-written", "segments-created", "gateway-opened"),
        Way(SUPERVISOR, "system", 2),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Combination:
    point: str
    action: str
    nth: int

    @classmethod
    def read(cls, text: str) -> Combination:
        """As it is printed: POINT:ACTION:NTH."""
        point, action, nth = text.split(":")
        return cls(point, action, int(nth))

    @property
    def way(self) -> Way:
        return WAYS.get(self.point, Way())

    def __str__(self) -> str:
        return f"{self.point}:{self.action}:{self.nth}"


def combinations(chance: random.Random, names: Iterable[str]) -> list[Combination]:
    """All of them, the first hit and a random later one each, in random order."""
    found = []
    for name in names:
        for action in ACTIONS:
            found += [Combination(name, action, nth) for nth in (1, chance.randint(2, WAYS.get(name, Way()).most))]
    chance.shuffle(found)
    return found


def shares(wanted: Sequence[Combination], inside: Container[str], rings: Sequence[str]) -> dict[str, list[Combination]]:
    """For each ring all that is at the points inside of it, and its part of everything else."""
    return {
        ring: [one for at, one in enumerate(wanted) if one.point in inside or at % len(rings) == number]
        for number, ring in enumerate(rings)
    }


def work(
    wanted: Sequence[Combination], inside: Container[str], rings: Sequence[str]
) -> dict[tuple[str, str], list[Combination]]:
    """By ring and system; some are tried in several systems."""
    found: dict[tuple[str, str], list[Combination]] = {}
    for system, has in SYSTEMS.items():
        here = [one for one in wanted if has(one.point)]
        found |= {(ring, system): share for ring, share in shares(here, inside, rings).items() if share}
    return found


def together(all_of_them: Sequence[Combination]) -> Iterator[list[Combination]]:
    """Those that may be armed at once: of different points. One that acts in the supervisor ends all of it, so those
    go together, each in the system that the one before has left."""
    for kind in (SUPERVISOR, WORKER):
        waiting = [one for one in all_of_them if one.way.role == kind]
        while waiting:
            group: list[Combination] = []
            for one in waiting:
                if all(other.point != one.point for other in group) and len(group) < TOGETHER:
                    group.append(one)
            for one in group:
                waiting.remove(one)
            yield group


@dataclass
class Verdict:
    seed: int
    acted: set[tuple[str, str]] = field(default_factory=set)  # the ring in use, the point
    count: int = 0  # combinations
    systems: int = 0  # how often it was started
    items: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    sequence: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        self.acted |= other.acted
        self.count += other.count
        self.systems += other.systems
        self.items += other.items
        self.wrong += other.wrong
        if other.wrong or not self.wrong:
            self.sequence = other.sequence

    def __str__(self) -> str:
        points = {point for _, point in self.acted}
        head = f"seed {self.seed}: {self.count} combinations at {len(points)} failpoints, {self.systems} starts"
        lines = [f"{head}, {self.items:,} items, {self.seconds:.1f} s: {len(self.wrong)} wrong", *self.wrong[:20]]
        if self.wrong:
            lines += ["the last of them:", *self.sequence[-12:]]
            lines.append(f"again: python -m tests.torture.failpoints --seed {self.seed}")
        return "\n".join(lines)
