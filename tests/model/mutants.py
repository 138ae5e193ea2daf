"""The runtime with one mistake each: what the simulation must catch, and by which invariant.

Each mistake is made in the real code, by replacing a method. `hunt` makes the runs in which it is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from actors.resume import Names
from persist import journal as journal_module
from persist.journal import Journal
from persist.link import Outbound
from tests.model.disk import SimLock
from tests.model.mutations import (
    AS_IT_IS,
    Patch,
    ack_at_the_head,
    ack_by_count,
    blames_nobody,
    blocking_publish,
    buried_at_once,
    commits,
    forgets_room,
    from_epoch_0,
    gateway_paused,
    leaking_state,
    no_dedupe,
    numbers_from_1,
    paused_inside,
    pop,
    replaced,
    silent,
    stays_over,
    uncounted,
    unlocked,
    without_sync,
)
from tests.model.policies import Chance, FaultAt, Policy
from tests.model.topologies import Scene, cycle, join, pair


def hunt(**fault: Any) -> Callable[[int], Iterator[Policy]]:
    """One run for each step at which this can happen."""
    return lambda steps: (FaultAt(at, **fault) for at in range(1, steps + 1))


def chance(faults: int) -> Callable[[int], Iterator[Policy]]:
    return lambda steps: (Chance(seed, faults) for seed in range(100))


def plain(steps: int) -> Iterator[Policy]:
    yield Policy()


def power_loss(steps: int) -> Iterator[Policy]:
    """A worker dies; others go on with what it has left; then the power goes."""
    for then in (20, 15, 25, 10, 30):
        yield from hunt(fault="process", late=True, then=then, after="system")(steps)


KILL = hunt(fault="process")
KILL_LATE = hunt(fault="process", late=True)
TWICE = hunt(fault="process", then=7)
BOTH = hunt(fault="process", then=60, after="system")
ZOMBIE = hunt(fault="zombie")
PEACE = chance(0)


@dataclass(frozen=True)
class Mutant:
    name: str
    text: str
    patch: Callable[[], Patch]
    violates: str  # the invariants by which it may be caught
    scene: Callable[[], Scene]
    hunt: Callable[[int], Iterator[Policy]]
    limit: int = 20_000


process_pair = partial(pair, "process")
power_pair = partial(pair, "power")
poisoned = partial(pair, "process", poison=3, how="die", max_attempts=3)

MUTANTS = [
    Mutant(
        "mark_first",
        "consumed is written before the rest",
        commits("append what was consumed", "append the rest", *AS_IT_IS[1:]),
        "I2",
        process_pair,
        plain,
    ),
    Mutant(
        "split_commit",
        "the state is written behind the rest",
        commits("append all but the state", "append the state", *AS_IT_IS[1:]),
        "I2 I4",
        process_pair,
        plain,
    ),
    Mutant(
        "publish_first",
        "published before the append",
        commits("outbox", "publish", "append", "sync", "staged", "acknowledge"),
        "I3",
        process_pair,
        KILL,
    ),
    Mutant("ack_first", "acknowledged before the append", commits("acknowledge", *AS_IT_IS), "I5", process_pair, KILL),
    Mutant(
        "head_first",
        "the head moves before the append",
        commits("release", *AS_IT_IS),
        "gap liveness",
        process_pair,
        KILL,
    ),
    Mutant(
        "lazy_publish",
        "published before the fsync",
        commits("append", "outbox", "publish", "sync", "staged", "acknowledge"),
        "I3",
        power_pair,
        power_loss,
    ),
    Mutant(
        "lazy_ack",
        "acknowledged before the fsync",
        commits("append", "acknowledge", *AS_IT_IS[1:]),
        "I5",
        power_pair,
        KILL_LATE,
    ),
    Mutant(
        "no_sync",
        "no fsync at all",
        commits("append", "outbox", "staged", "publish", "acknowledge"),
        "I5 I3",
        power_pair,
        plain,
    ),
    Mutant(
        "recover_nosync",
        "what recovery has read is taken for durable",
        replaced(Journal, "_cut", without_sync),
        "failure I3 I5",
        power_pair,
        BOTH,
    ),
    Mutant("trim_on_publish", "forgotten when published", replaced(Outbound, "pop", pop), "I5", process_pair, plain),
    Mutant(
        "ack_at_head",
        "acknowledged is what the head has passed",
        replaced(Endpoint, "take", ack_at_the_head),
        "I5",
        process_pair,
        KILL_LATE,
    ),
    Mutant(
        "ack_count",
        "acknowledged is the number of messages taken, duplicates too",
        ack_by_count,
        "I5 failure",
        process_pair,
        KILL,
    ),
    Mutant(
        "seq_reuse",
        "the next number is not recovered when everything is acknowledged",
        replaced(Endpoint, "resume", numbers_from_1),
        "failure I3",
        process_pair,
        KILL,
    ),
    Mutant("no_dedupe", "duplicates are handled", no_dedupe, "I1", process_pair, KILL),
    Mutant("state_leak", "state survives outside of the journal", leaking_state, "I4 I1 I2", process_pair, KILL),
    Mutant(
        "torn_kept",
        "the torn tail is not cut off",
        replaced(Journal, "_cut", lambda original: lambda self, *found: None),
        "failure",
        process_pair,
        TWICE,
    ),
    Mutant(
        "counter_in_memory",
        "attempts are not counted durably",
        replaced(Names, "first", uncounted),
        "liveness",
        poisoned,
        plain,
        3000,
    ),
    Mutant(
        "poison_commit",
        "nobody is blamed for a death at the commit",
        replaced(Dispatcher, "commit", blames_nobody),
        "liveness",
        partial(poisoned, how="die at commit"),
        plain,
        3000,
    ),
    Mutant(
        "dead_letter_unchecked",
        "given up although it is not the next",
        replaced(Dispatcher, "run", buried_at_once),
        "I2",
        partial(pair, "process", poison=2, how="die", max_attempts=1),
        plain,
    ),
    Mutant(
        "epoch_volatile",
        "the epoch is not recovered",
        replaced(journal_module, "recover", from_epoch_0),
        "I6",
        process_pair,
        BOTH,
    ),
    Mutant("zombie", "no lock on the journal", replaced(SimLock, "__init__", unlocked), "I4", process_pair, ZOMBIE),
    Mutant(
        "block_publish",
        "a commit waits until everything is published",
        replaced(Endpoint, "publish", blocking_publish),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4),
        PEACE,
        8000,
    ),
    Mutant(
        "backpressure",
        "edges inside of a cycle are paused",
        replaced(Endpoint, "connect", paused_inside),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4, outbox_limit_bytes=1),
        PEACE,
        8000,
    ),
    Mutant(
        "no_answers",
        "the gateway takes no answers while its own outbox is over the limit",
        replaced(Endpoint, "connect", gateway_paused),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4),
        PEACE,
        8000,
    ),
    Mutant(
        "stays_over",
        "the limit of the dead holds for the living",
        replaced(Endpoint, "resume", stays_over),
        "liveness",
        partial(cycle, "process", outbox_limit_bytes=1),
        chance(8),
        8000,
    ),
    Mutant(
        "silent",
        "the doorbell is not rung",
        silent,
        "wake-up",
        process_pair,
        PEACE,
    ),
    Mutant(
        "rung_in_vain",
        "room that came before the bell was armed is not seen",
        replaced(Endpoint, "idle", forgets_room),
        "wake-up",
        partial(join, "process", count=3),
        PEACE,
    ),
]
