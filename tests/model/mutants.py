"""The runtime with one mistake each: what the simulation must catch, and by which invariant.

Each mistake is made in the real code, by replacing a method. `where` are the runs in which it is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from actors.dispatch import Dispatcher
from actors.endpoint import Arrival, Endpoint, Link
from actors.hosted import Hosted
from actors.resume import Names
from bus import Cell, Field
from persist import journal as journal_module
from persist.format import DeadLetter, Transaction
from persist.journal import Journal
from persist.link import NEW, Entry, Inbound, Kind, Outbound, Verdict
from persist.recovery import Recovered
from tests.model.disk import SimLock
from tests.model.simulation import Chance, FaultAt, Policy
from tests.model.topologies import Scene, around, cycle, join, pair

Patch = AbstractContextManager[Any]

AS_IT_IS = ("append", "sync", "outbox", "staged", "publish", "acknowledge")


def commits(*order: str) -> Callable[[], Patch]:
    """The commit, its actions in this order."""

    def commit(
        self: Endpoint,
        runs: Sequence[Any] = (),
        states: Sequence[tuple[int, bytes]] = (),
        keys: Sequence[tuple[int, bytes, bytes | None]] = (),
        dead: Sequence[DeadLetter] = (),
    ) -> None:
        consumed = [link for link in self.links if link.inbound.seen != link.inbound.watermark]
        if not (consumed or runs or states or keys or dead):
            return
        journal = self.journal
        assert journal is not None
        sends, position = self._number(runs), journal.position
        watermarks = [(link.index, link.inbound.seen) for link in consumed]
        for action in order:
            match action:
                case "append":
                    journal.append(Transaction(watermarks, sends, list(states), list(keys), list(dead)))
                case "append what was consumed":
                    journal.append(Transaction(watermarks))
                case "append the rest":
                    journal.append(Transaction([], sends, list(states), list(keys), list(dead)))
                case "append all but the state":
                    journal.append(Transaction(watermarks, sends, [], list(keys), list(dead)))
                case "append the state":
                    journal.append(Transaction([], [], list(states)))
                case "sync" if self.level == "power":
                    journal.sync()
                case "outbox":
                    self.dead.extend(dead)
                    self._enter_outbox(sends, position)
                case "staged":
                    for link in consumed:
                        link.inbound.commit()
                case "publish":
                    self.publish()
                case "acknowledge":
                    for link in consumed:
                        _acknowledge(self, link, link.inbound.seen)
                case "release":
                    self.release()
        self.cells[Field.COMMITS] += 1

    return partial(mock.patch.object, Endpoint, "commit", commit)


def _acknowledge(self: Endpoint, link: Link, watermark: int) -> None:
    if link.consuming is not None:
        link.consuming.set(Cell.ACK, watermark)
    elif link is self.me:
        link.outbound.acknowledge(watermark)
        self.cells[Field.CARRIED_ACK] = watermark


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], Patch]:
    """`make` gets the original."""
    return lambda: mock.patch.object(owner, name, make(vars(owner)[name]))


def _pop(original: Callable[[Outbound], Entry]) -> Any:
    def pop(self: Outbound) -> Entry:
        entry = original(self)
        self.acked = max(self.acked, entry.last)
        return entry

    return pop


def _numbers_from_1(original: Callable[..., None]) -> Any:
    def resume(self: Endpoint, journal: Any, recovered: Any) -> None:
        original(self, journal, recovered)
        for link in self.links:
            if link.outbound.acked == link.outbound.assigned:
                link.outbound = Outbound(link.outbound.limit)
                journal._assigned[link.index] = 0  # which would refuse it

    return resume


def _no_dedupe() -> Patch:
    admit, stage = Inbound.admit, Inbound.stage

    def all_new(self: Inbound, first: int, count: int) -> Verdict:
        verdict = admit(self, first, count)
        return verdict if verdict.kind is Kind.GAP else NEW

    def forward(self: Inbound, last: int) -> None:
        stage(self, max(last, self.seen))

    return mock.patch.multiple(Inbound, admit=all_new, stage=forward)


def _without_sync(original: Callable[..., None]) -> Any:
    def cut(self: Journal, *found: Any) -> None:
        durable, self._durable = self._durable, False
        original(self, *found)
        self._durable = durable

    return cut


@contextmanager
def _leaking_state() -> Iterator[None]:
    changes, restore = Hosted.changes, Hosted.restore
    leaked: dict[str, bytes] = {}

    def leak(self: Hosted) -> Any:
        changed = changes(self)
        if changed[0] is not None:
            leaked[self.name] = changed[0]
        return changed

    def take(self: Hosted, state: bytes | None, items: Any) -> None:
        restore(self, leaked.get(self.name, state), items)

    with mock.patch.multiple(Hosted, changes=leak, restore=take):
        leaked.clear()
        yield
        leaked.clear()


def _uncounted(original: Callable[..., Any]) -> Any:
    return lambda self, recovered, suspect: original(self, recovered, None)


def _buried_at_once(original: Callable[..., Any]) -> Any:
    """A message whose attempts are used up is given up before those in front of it were handled."""

    def run(self: Dispatcher, arrivals: Sequence[Arrival]) -> Any:
        for (peer, seq), attempts in list(self.attempts.items()):
            for arrival in arrivals:
                if arrival.link.index == peer and arrival.first <= seq < arrival.first + arrival.length:
                    if attempts >= self._plan.limits.max_attempts and seq > arrival.link.inbound.seen:
                        self._bury(arrival, seq, b"", "given up", "")
                        del self.attempts[peer, seq]
        return original(self, arrivals)

    return run


def _from_epoch_0(original: Callable[..., Recovered]) -> Any:
    def recover(*given: Any) -> Recovered:
        recovered = original(*given)
        recovered.epoch = 0
        return recovered

    return recover


def _ack_by_count() -> Patch:
    """What was consumed is acknowledged by the number of messages that were taken, duplicates too."""
    take, taken = Endpoint.take, dict[tuple[int, int], int]()

    def count(self: Endpoint) -> list[Arrival]:
        arrivals = take(self)
        for arrival in arrivals:
            key = id(self), arrival.link.index
            taken[key] = taken.get(key, 0) + arrival.length
        return arrivals

    def acknowledge(self: Endpoint, consumed: Iterable[Link]) -> None:
        for link in consumed:
            ring = link.consuming
            if ring is not None:
                ring.set(Cell.ACK, ring.get(Cell.ACK) + taken.pop((id(self), link.index), 0))
            elif link is self.me:
                _acknowledge(self, link, link.inbound.watermark)

    return mock.patch.multiple(Endpoint, take=count, acknowledge=acknowledge)


def _ack_at_the_head(original: Callable[..., list[Arrival]]) -> Any:
    def take(self: Endpoint) -> list[Arrival]:
        arrivals = original(self)
        for arrival in arrivals:
            if arrival.link.consuming is not None:
                arrival.link.consuming.set(Cell.ACK, arrival.first + arrival.length - 1)
        return arrivals

    return take


def _blocking_publish(original: Callable[[Endpoint], bool]) -> Any:
    def publish(self: Endpoint) -> bool:
        moved = original(self)
        while any(link.outbound.published != link.outbound.assigned for link in self._sending):
            around.step("turn")
            moved |= original(self)
        return moved

    return publish


def _paused_inside(original: Callable[..., None]) -> Any:
    def connect(self: Endpoint, name: str, *, producing: Any, consuming: Any, bell: Any, inside: bool) -> None:
        original(self, name, producing=producing, consuming=consuming, bell=bell, inside=False)

    return connect


def _blames_nobody(original: Callable[..., None]) -> Any:
    def commit(self: Dispatcher, *given: Any) -> None:
        self._cells[Field.BUSY_PEER] = 0
        original(self, *given)

    return commit


def _unlocked(original: Callable[..., None]) -> Any:
    def init(self: SimLock, store: Any, process: object, alive: Any) -> None:
        original(self, store, process, lambda holder: False)

    return init


def _silent(original: Callable[..., bool]) -> Any:
    def publish(self: Endpoint, link: Link) -> bool:
        bell, link.bell = link.bell, mock.Mock()
        moved = original(self, link)
        link.bell = bell
        return moved

    return publish


def _forgets_room(original: Callable[..., bool]) -> Any:
    """Does not look for room once more before it sleeps."""

    def idle(self: Endpoint) -> bool:
        with mock.patch.object(Endpoint, "publish", lambda self: False):
            return original(self)

    return idle


def _stays_over(original: Callable[..., None]) -> Any:
    """A new incarnation takes over what its predecessor, which died over its limit, had told the others."""

    def resume(self: Endpoint, *given: Any) -> None:
        over = self.cells[Field.OVER_LIMIT]
        original(self, *given)
        self.cells[Field.OVER_LIMIT] = over

    return resume


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
    Mutant("head_first", "the head moves before the append", commits("release", *AS_IT_IS), "gap liveness", process_pair, KILL),
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
        replaced(Journal, "_cut", _without_sync),
        "failure I3 I5",
        power_pair,
        BOTH,
    ),
    Mutant("trim_on_publish", "forgotten when published", replaced(Outbound, "pop", _pop), "I5", process_pair, plain),
    Mutant(
        "ack_at_head",
        "acknowledged is what the head has passed",
        replaced(Endpoint, "take", _ack_at_the_head),
        "I5",
        process_pair,
        KILL_LATE,
    ),
    Mutant(
        "ack_count",
        "acknowledged is the number of messages taken, duplicates too",
        _ack_by_count,
        "I5 failure",
        process_pair,
        KILL,
    ),
    Mutant(
        "seq_reuse",
        "the next number is not recovered when everything is acknowledged",
        replaced(Endpoint, "resume", _numbers_from_1),
        "failure I3",
        process_pair,
        KILL,
    ),
    Mutant("no_dedupe", "duplicates are handled", _no_dedupe, "I1", process_pair, KILL),
    Mutant("state_leak", "state survives outside of the journal", _leaking_state, "I4 I1 I2", process_pair, KILL),
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
        replaced(Names, "first", _uncounted),
        "liveness",
        poisoned,
        plain,
        3000,
    ),
    Mutant(
        "poison_commit",
        "nobody is blamed for a death at the commit",
        replaced(Dispatcher, "_commit", _blames_nobody),
        "liveness",
        partial(poisoned, how="die at commit"),
        plain,
        3000,
    ),
    Mutant(
        "dead_letter_unchecked",
        "given up although it is not the next",
        replaced(Dispatcher, "run", _buried_at_once),
        "I2",
        partial(pair, "process", poison=2, how="die", max_attempts=1),
        plain,
    ),
    Mutant(
        "epoch_volatile",
        "the epoch is not recovered",
        replaced(journal_module, "recover", _from_epoch_0),
        "I6",
        process_pair,
        BOTH,
    ),
    Mutant("zombie", "no lock on the journal", replaced(SimLock, "__init__", _unlocked), "I4", process_pair, ZOMBIE),
    Mutant(
        "block_publish",
        "a commit waits until everything is published",
        replaced(Endpoint, "publish", _blocking_publish),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4),
        PEACE,
        8000,
    ),
    Mutant(
        "backpressure",
        "edges inside of a cycle are paused",
        replaced(Endpoint, "connect", _paused_inside),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4, outbox_limit_bytes=1),
        PEACE,
        8000,
    ),
    Mutant(
        "stays_over",
        "the limit of the dead holds for the living",
        replaced(Endpoint, "resume", _stays_over),
        "liveness",
        partial(cycle, "process", feeds=4, balls=4),
        KILL,
        8000,
    ),
    Mutant("silent", "the doorbell is not rung", replaced(Endpoint, "_publish", _silent), "wake-up", process_pair, PEACE),
    Mutant(
        "rung_in_vain",
        "room that came before the bell was armed is not seen",
        replaced(Endpoint, "idle", _forgets_room),
        "wake-up",
        partial(join, "process", count=3),
        PEACE,
    ),
]
