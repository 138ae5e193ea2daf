"""The mistakes: functions that patch the real code, each with one thing out of order or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from actors import endpoint as endpoint_module
from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from actors.hosted import Hosted
from actors.links import Arrival, Link
from actors.plan import GATEWAY
from bus import Cell, Field
from persist.format import DeadLetter, Transaction
from persist.journal import Journal
from persist.link import NEW, Entry, Inbound, Kind, Outbound, Verdict
from persist.recovery import Recovered
from tests.model.disk import SimLock
from tests.model.topologies import around

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
        removed: Sequence[tuple[int, int]] = (),
        attempts: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        consumed = [link for link in self.links if link.inbound.seen != link.inbound.watermark]
        if not (consumed or runs or states or keys or dead or attempts):
            return
        journal = self.journal
        assert journal is not None
        sends, position = self._number(runs), journal.position
        watermarks = [(link.index, link.inbound.seen) for link in consumed]
        assert not removed
        counted = list(attempts)
        for action in order:
            match action:
                case "append":
                    journal.append(Transaction(watermarks, sends, list(states), list(keys), list(dead), [], counted))
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


def pop(original: Callable[[Outbound], Entry]) -> Any:
    def pop(self: Outbound) -> Entry:
        entry = original(self)
        self.acked = max(self.acked, entry.last)
        return entry

    return pop


def numbers_from_1(original: Callable[..., None]) -> Any:
    def resume(self: Endpoint, journal: Any, recovered: Any) -> None:
        original(self, journal, recovered)
        for link in self.links:
            if link.outbound.acked == link.outbound.assigned:
                link.outbound = Outbound(link.outbound.limit)
                journal._assigned[link.index] = 0  # which would refuse it

    return resume


def no_dedupe() -> Patch:
    admit, stage = Inbound.admit, Inbound.stage

    def all_new(self: Inbound, first: int, count: int) -> Verdict:
        verdict = admit(self, first, count)
        return verdict if verdict.kind is Kind.GAP else NEW

    def forward(self: Inbound, last: int) -> None:
        stage(self, max(last, self.seen))

    return mock.patch.multiple(Inbound, admit=all_new, stage=forward)


def without_sync(original: Callable[..., None]) -> Any:
    def cut(self: Journal, *found: Any) -> None:
        durable, self._durable = self._durable, False
        original(self, *found)
        self._durable = durable

    return cut


@contextmanager
def leaking_state() -> Iterator[None]:
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


def uncounted(original: Callable[..., Any]) -> Any:
    return lambda self, recovered, suspect, **options: original(self, recovered, None, **options)


def buried_at_once(original: Callable[..., Any]) -> Any:
    """A message whose attempts are used up is given up before those in front of it were handled."""

    def run(self: Dispatcher, arrivals: Sequence[Arrival]) -> Any:
        for (peer, seq), attempts in list(self.attempts.items()):
            for arrival in arrivals:
                here = arrival.link.index == peer and arrival.first <= seq < arrival.first + arrival.length
                if here and attempts >= self._plan.limits.max_attempts and seq > arrival.link.inbound.seen:
                    self.careful._bury(arrival, seq, b"")
                    del self.attempts[peer, seq]
        return original(self, arrivals)

    return run


def from_epoch_0(original: Callable[..., Recovered]) -> Any:
    def recover(*given: Any) -> Recovered:
        recovered = original(*given)
        recovered.epoch = 0
        return recovered

    return recover


def ack_by_count() -> Patch:
    """What was consumed is acknowledged by the number of messages that were taken, duplicates too."""
    take, taken = Endpoint.take, dict[tuple[int, int], int]()

    def count(self: Endpoint, *given: Any) -> list[Arrival]:
        arrivals = take(self, *given)
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


def ack_at_the_head(original: Callable[..., list[Arrival]]) -> Any:
    def take(self: Endpoint, *given: Any) -> list[Arrival]:
        arrivals = original(self, *given)
        for arrival in arrivals:
            if arrival.link.consuming is not None:
                arrival.link.consuming.set(Cell.ACK, arrival.first + arrival.length - 1)
        return arrivals

    return take


def blocking_publish(original: Callable[[Endpoint], bool]) -> Any:
    def publish(self: Endpoint) -> bool:
        moved = original(self)
        while any(link.outbound.published != link.outbound.assigned for link in self._sending):
            around.step("turn")
            moved |= original(self)
        return moved

    return publish


def paused_inside(original: Callable[..., None]) -> Any:
    def connect(self: Endpoint, name: str, *, producing: Any, consuming: Any, bell: Any, inside: bool) -> None:
        inside = self.me.name == GATEWAY
        original(self, name, producing=producing, consuming=consuming, bell=bell, inside=inside)

    return connect


def gateway_paused(original: Callable[..., None]) -> Any:
    def connect(self: Endpoint, name: str, *, producing: Any, consuming: Any, bell: Any, inside: bool) -> None:
        inside = inside and self.me.name != GATEWAY
        original(self, name, producing=producing, consuming=consuming, bell=bell, inside=inside)

    return connect


def blames_nobody(original: Callable[..., None]) -> Any:
    def commit(self: Dispatcher, *given: Any) -> None:
        self._cells[Field.BUSY_PEER] = 0
        original(self, *given)

    return commit


def unlocked(original: Callable[..., None]) -> Any:
    def init(self: SimLock, store: Any, process: object, alive: Any) -> None:
        original(self, store, process, lambda holder: False)

    return init


def silent() -> Patch:
    def without_bell(original: Callable[..., bool]) -> Callable[..., bool]:
        def publish(link: Link, *given: Any) -> bool:
            bell, link.bell = link.bell, mock.Mock()
            moved = original(link, *given)
            link.bell = bell
            return moved

        return publish

    both: Any = {name: without_bell(getattr(endpoint_module, name)) for name in ("publish", "publish_straight")}
    patch: Patch = mock.patch.multiple(endpoint_module, **both)
    return patch


def forgets_room(original: Callable[..., bool]) -> Any:
    """Does not look for room once more before it sleeps."""

    def idle(self: Endpoint, *but: Any) -> bool:
        with mock.patch.object(Endpoint, "publish", return_value=False):
            return original(self, *but)

    return idle


def stays_over(original: Callable[..., None]) -> Any:
    """A new incarnation takes over what its predecessor, which died over its limit, had told the others."""

    def resume(self: Endpoint, *given: Any) -> None:
        over = self.cells[Field.OVER_LIMIT]
        original(self, *given)
        self.cells[Field.OVER_LIMIT] = over

    return resume
