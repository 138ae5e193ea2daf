"""What the C11 memory model allows: all executions of a few threads with a few steps each.

The model is RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer: Repairing Sequential Consistency in C/C++11, 2017). It is weaker
here in two places: release sequences have no later stores of the same thread, as since C++20, and a relaxed load may
take its value from a store that comes after it, as on ARM. What the model forbids no compiler and no processor does:
what compilers make of the orders is proven right for x86, ARMv8 and POWER. So what holds here holds on ARM.

A thread is a generator: it yields the steps (`load`, `store`, `exchange`, `fence`, plain `read` and `write`) and is
sent what they give. An execution says from which store each load takes its value, and in which order the stores to each
place lie; all of them are made up and those kept that the model allows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, permutations, product
from typing import NamedTuple

PLAIN, RELAXED, ACQUIRE, RELEASE, SEQ_CST = "PLAIN", "RELAXED", "ACQUIRE", "RELEASE", "SEQ_CST"
_ACQUIRES, _RELEASES = {ACQUIRE, SEQ_CST}, {RELEASE, SEQ_CST}


class Step(NamedTuple):
    kind: str  # "load", "store", "exchange", "fence"
    place: str
    value: int  # that is stored
    order: str


Thread = Generator[Step, int, int | None]  # gives what is to be judged
Relation = set[tuple[int, int]]


def load(place: str, order: str) -> Step:
    return Step("load", place, 0, order)


def store(place: str, value: int, order: str) -> Step:
    return Step("store", place, value, order)


def exchange(place: str, value: int, order: str) -> Step:
    return Step("exchange", place, value, order)


def fence(order: str) -> Step:
    return Step("fence", "", 0, order)


def read(place: str) -> Step:
    return load(place, PLAIN)


def write(place: str, value: int) -> Step:
    return store(place, value, PLAIN)


@dataclass(frozen=True)
class Event:
    thread: int  # -1: what was there at first
    step: Step
    seen: int  # by a load or an exchange

    @property
    def reads(self) -> bool:
        return self.step.kind in {"load", "exchange"}

    @property
    def writes(self) -> bool:
        return self.step.kind in {"store", "exchange"}


class Outcome(NamedTuple):
    """What the threads of an execution gave, and whether two of them met unordered, which is a data race."""

    results: tuple[int | None, ...]
    race: bool


def outcomes(first: Mapping[str, int], threads: Sequence[Callable[[], Thread]]) -> set[Outcome]:
    """All that may come of these threads, when this is in memory at first."""
    values: dict[str, set[int]] = {place: {value} for place, value in first.items()}
    while True:
        traces = [list(_traces(number, thread, values)) for number, thread in enumerate(threads)]
        known = sum(map(len, values.values()))
        for event in (event for of_one in traces for events, _ in of_one for event in events if event.writes):
            values[event.step.place].add(event.step.value)
        if known == sum(map(len, values.values())):
            break
    initial = [Event(-1, store(place, value, RELAXED), 0) for place, value in first.items()]
    return {
        Outcome(tuple(result for _, result in chosen), race)
        for chosen in product(*traces)
        for race in _executions([*initial, *(event for events, _ in chosen for event in events)])
    }


def _traces(
    number: int, thread: Callable[[], Thread], values: Mapping[str, set[int]]
) -> Iterator[tuple[list[Event], int | None]]:
    """What one thread may do, if a load may give whatever is ever stored in its place."""
    unfinished: list[list[int]] = [[]]
    while unfinished:
        given = unfinished.pop()
        running, events, answer = thread(), list[Event](), iter(given)
        try:
            step = next(running)
            while True:
                seen = 0
                if step.kind in {"load", "exchange"}:
                    got = next(answer, None)
                    if got is None:
                        unfinished += [[*given, value] for value in values[step.place]]
                        break
                    seen = got
                events.append(Event(number, step, seen))
                step = running.send(seen)
        except StopIteration as end:
            yield events, end.value


def _executions(events: list[Event]) -> Iterator[bool]:
    """For each execution of these events that the model allows: is there a race?"""
    numbers = range(len(events))
    places = {event.step.place for event in events if event.step.place}
    sources = [
        [w for w in numbers if w != r and events[w].writes and _fits(events[w], events[r])]
        for r in numbers
        if events[r].reads
    ]
    readers = [r for r in numbers if events[r].reads]
    orders = []
    for place in sorted(places):
        first = [w for w in numbers if events[w].writes and events[w].step.place == place and events[w].thread < 0]
        later = [w for w in numbers if events[w].writes and events[w].step.place == place and events[w].thread >= 0]
        orders.append([[*first, *order] for order in permutations(later)])
    for chosen in product(*sources):
        read_from = set(zip(chosen, readers, strict=True))
        for order in product(*orders):
            modified = {(a, b) for line in order for at, a in enumerate(line) for b in line[at + 1 :]}
            race = _judge(events, read_from, modified)
            if race is not None:
                yield race


def _fits(source: Event, reader: Event) -> bool:
    return source.step.place == reader.step.place and source.step.value == reader.seen


def _judge(events: list[Event], rf: Relation, mo: Relation) -> bool | None:
    """None: the model forbids it. The names are those of the paper."""
    everything = range(len(events))
    sb = {
        (a, b)
        for a in everything
        for b in everything
        if a < b and (events[a].thread == events[b].thread >= 0 or events[a].thread < 0 <= events[b].thread)
    }
    rb = {(r, after) for w, r in rf for before, after in mo if before == w and after != r}
    if any((r, after) in rb and (after, r) in mo for r, after in rb):
        return None  # between an exchange's load and its store there was another store
    eco = _closed(rf | mo | rb)
    hb = _closed(sb | _synchronized(events, sb, rf))
    if any(a == b for a, b in hb | eco | _then(hb, eco)):
        return None
    if not _acyclic(_sequential(events, sb, hb, eco, mo | rb)):
        return None
    return any(
        events[a].thread != events[b].thread
        and events[a].step.place == events[b].step.place != ""
        and (events[a].writes or events[b].writes)
        and PLAIN in {events[a].step.order, events[b].step.order}
        and not {(a, b), (b, a)} & hb
        for a in everything
        for b in range(a)
        if min(events[a].thread, events[b].thread) >= 0
    )


def _synchronized(events: list[Event], sb: Relation, rf: Relation) -> Relation:
    """Who releases to whom: by a store or a fence before it, to a load or a fence after it, through exchanges."""
    chain = _closed(rf & {(a, b) for a, b in rf if events[b].step.kind == "exchange"})
    found = set()
    for w, r in rf | _then(chain, rf):
        if PLAIN in {events[w].step.order, events[r].step.order} or events[w].thread < 0:
            continue
        releasing = {w} if events[w].step.order in _RELEASES else set()
        releasing |= {f for f, after in sb if after == w and _is_fence(events[f], _RELEASES)}
        acquiring = {r} if events[r].step.order in _ACQUIRES else set()
        acquiring |= {f for before, f in sb if before == r and _is_fence(events[f], _ACQUIRES)}
        found |= set(product(releasing, acquiring))
    return found


def _sequential(events: list[Event], sb: Relation, hb: Relation, eco: Relation, unseen: Relation) -> Relation:
    """What has to be one order among everything that is sequentially consistent."""
    everything = range(len(events))
    same = {(a, b) for a in everything for b in everything if events[a].step.place == events[b].step.place != ""}
    away = sb - same
    scb = sb | _then(_then(away, hb), away) | (hb & same) | unseen
    fences = {e for e in everything if _is_fence(events[e], {SEQ_CST})}
    accesses = {e for e in everything if events[e].step.order == SEQ_CST and e not in fences}
    before = {(e, e) for e in accesses | fences} | {(a, b) for a, b in hb if a in fences}
    after = {(e, e) for e in accesses | fences} | {(a, b) for a, b in hb if b in fences}
    base = _then(_then(before, scb), after)
    between = {(a, b) for a, b in hb | _then(_then(hb, eco), hb) if a in fences and b in fences}
    return base | between


def _is_fence(event: Event, orders: set[str]) -> bool:
    return event.step.kind == "fence" and event.step.order in orders


def _then(first: Relation, second: Relation) -> Relation:
    following: dict[int, set[int]] = {}
    for a, b in second:
        following.setdefault(a, set()).add(b)
    return {(a, c) for a, b in first for c in following.get(b, ())}


def _closed(relation: Relation) -> Relation:
    closed = set(relation)
    for _ in count():
        more = closed | _then(closed, relation)
        if more == closed:
            break
        closed = more
    return closed


def _acyclic(relation: Relation) -> bool:
    return all(a != b for a, b in _closed(relation))
