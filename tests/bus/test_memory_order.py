"""bus/MEMORY_ORDER.md against the C sources and the C11 memory model: every atomic operation is on the page with the
order that it has, each order that the page says is needed is needed, and with all of them nothing goes wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tests.bus.atomics import Atomic, atomics
from tests.bus.memory_model import (
    PLAIN,
    RELAXED,
    Outcome,
    Step,
    Thread,
    exchange,
    fence,
    load,
    outcomes,
    read,
    store,
    write,
)
from tests.bus.variants import ROOT

PAGE = (ROOT / "bus" / "MEMORY_ORDER.md").read_text()
IDLE, ARMED = 0, 1
Orders = Mapping[tuple[str, int], str]  # of the operations of each function, by their number


class Core:
    """The functions of the core, as steps in the model."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def ring_store(self, place: str, value: int) -> Any:
        yield store(place, value, self._orders["ring_store", 0])

    def ring_load(self, place: str) -> Any:
        return (yield load(place, self._orders["ring_load", 0]))

    def bell_arm(self) -> Any:
        yield store("bell", ARMED, self._orders["bell_arm", 0])
        yield fence(self._orders["bell_arm", 1])

    def bell_disarm(self) -> Any:
        yield store("bell", IDLE, self._orders["bell_disarm", 0])

    def bell_armed(self) -> Any:
        return (yield load("bell", self._orders["bell_armed", 0])) == ARMED

    def bell_clear(self) -> Any:
        yield fence(self._orders["bell_clear", 0])
        if (yield load("bell", self._orders["bell_clear", 1])) != ARMED:
            return False
        return (yield exchange("bell", IDLE, self._orders["bell_clear", 2])) == ARMED


Test = tuple[dict[str, int], Sequence[Callable[[], Thread]], Callable[[Outcome], bool]]


def publish(core: Core) -> Test:
    """A record is written, then the tail moves; who sees the tail reads the record."""

    def producer() -> Thread:
        yield write("record", 7)
        yield from core.ring_store("tail", 1)
        return None

    def consumer() -> Thread:
        seen = None
        if (yield from core.ring_load("tail")):
            seen = yield read("record")
        return seen

    return {"record": 0, "tail": 0}, [producer, consumer], lambda seen: seen.race or seen.results[1] == 0


def reuse(core: Core) -> Test:
    """A record is read, then the head moves; who sees the head writes over it."""

    def consumer() -> Thread:
        seen = yield read("record")
        yield from core.ring_store("head", 1)
        return seen

    def producer() -> Thread:
        if (yield from core.ring_load("head")):
            yield write("record", 8)
        return None

    return {"record": 7, "head": 0}, [consumer, producer], lambda seen: seen.race or seen.results[0] != 7


def wake(core: Core) -> Test:
    """The consumer arms, looks and goes to sleep; the producer publishes and rings: one of them sees the other."""

    def producer() -> Thread:
        yield from core.ring_store("tail", 1)
        return int((yield from core.bell_clear()))

    def consumer() -> Thread:
        yield from core.bell_arm()
        seen: int = yield from core.ring_load("tail")
        return seen

    return {"tail": 0, "bell": IDLE}, [producer, consumer], lambda seen: seen.results == (0, 0)


def again(core: Core) -> Test:
    """The same when it has been armed and disarmed just before, and may still seem to be armed."""

    def producer() -> Thread:
        yield from core.ring_store("tail", 1)
        return int((yield from core.bell_clear()))

    def consumer() -> Thread:
        yield from core.bell_disarm()
        yield from core.bell_arm()
        if (yield from core.ring_load("tail")):
            return 1
        return int(not (yield from core.bell_armed()))  # it does not sleep then, and looks again

    return {"tail": 0, "bell": ARMED}, [producer, consumer], lambda seen: seen.results == (0, 0)


def rung(core: Core) -> Test:
    """The bell was rung: what was published before is seen by whoever sees that."""

    def producer() -> Thread:
        yield from core.ring_store("tail", 1)
        yield from core.bell_clear()
        return None

    def consumer() -> Thread:
        seen: int | None = None
        if not (yield from core.bell_armed()):
            seen = yield from core.ring_load("tail")
        return seen

    return {"tail": 0, "bell": ARMED}, [producer, consumer], lambda seen: seen.results[1] == 0


LITMUS = {"publish": publish, "reuse": reuse, "wake": wake, "again": again, "rung": rung}


def goes_wrong(name: str, orders: Orders) -> bool:
    first, threads, wrong = LITMUS[name](Core(orders))
    return any(wrong(outcome) for outcome in outcomes(first, threads))


def in_the_sources() -> dict[tuple[str, int], str]:
    return {(one.function, one.number): one.order for one in atomics()}


def rows() -> dict[tuple[str, int], tuple[str, str, str]]:
    """The table of the page: kind, order, and what is said of doing without."""
    found: dict[tuple[str, int], tuple[str, str, str]] = {}
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            function, kind, order, *_, without = (part.strip() for part in line.strip("|").split("|"))
            function = function.strip("`")
            number = sum(known == function for known, _ in found)
            found[function, number] = (kind, order, without)
    return found


def test_every_atomic_operation_of_the_sources_is_on_the_page() -> None:
    told = {key: (kind, order) for key, (kind, order, _) in rows().items()}
    assert told == {(one.function, one.number): (one.kind, one.order.lower()) for one in atomics()}


@pytest.mark.parametrize("name", LITMUS)
def test_as_it_is_nothing_goes_wrong(name: str) -> None:
    assert not goes_wrong(name, in_the_sources())


@pytest.mark.parametrize("one", atomics(), ids=lambda one: f"{one.function}-{one.number}")
def test_the_page_says_what_breaks_without_it(one: Atomic) -> None:
    weakened = in_the_sources() | {(one.function, one.number): RELAXED}
    breaks = {name for name in LITMUS if goes_wrong(name, weakened)}
    assert set(re.findall(r"\*(\w+)\*", rows()[one.function, one.number][2])) == breaks


def step(text: str) -> Step:
    """One of `x=1 RELEASE`, `x ACQUIRE`, `x:=2 RELAXED` (exchange), `fence SEQ_CST`; without an order it is plain."""
    what, _, order = text.partition(" ")
    if what == "fence":
        return fence(order)
    place, between, value = what[0], what[1:].rstrip("0123456789"), what[1:].lstrip(":=")
    kind = {"": "load", "=": "store", ":=": "exchange"}[between]
    return Step(kind, place, int(value or 0), order or PLAIN)


def threads(*of: str) -> list[Callable[[], Thread]]:
    """Each does these steps and gives the numbers that it has seen, as digits."""

    def running(steps: list[Step]) -> Callable[[], Thread]:
        def thread() -> Thread:
            seen = 0
            for one in steps:
                got = yield one
                if one.kind in {"load", "exchange"}:
                    seen = seen * 10 + got
            return seen

        return thread

    return [running([step(text) for text in steps.split(", ")]) for steps in of]


SB, MP = "store buffering", "message passing"


@pytest.mark.parametrize(
    ("case", "of", "result", "allowed"),
    [
        (SB, ("x=1 SEQ_CST, y SEQ_CST", "y=1 SEQ_CST, x SEQ_CST"), (0, 0), False),
        (SB, ("x=1 RELEASE, y ACQUIRE", "y=1 RELEASE, x ACQUIRE"), (0, 0), True),
        (SB, ("x=1 RELAXED, fence SEQ_CST, y RELAXED", "y=1 RELAXED, fence SEQ_CST, x RELAXED"), (0, 0), False),
        (SB, ("x=1 RELAXED, fence SEQ_CST, y RELAXED", "y=1 RELAXED, x RELAXED"), (0, 0), True),
        (MP, ("x=1 RELAXED, y=1 RELEASE", "y ACQUIRE, x RELAXED"), (0, 10), False),
        (MP, ("x=1 RELAXED, y=1 RELAXED", "y ACQUIRE, x RELAXED"), (0, 10), True),
        (MP, ("x=1 RELAXED, y=1 RELEASE", "y RELAXED, x RELAXED"), (0, 10), True),
        (MP, ("x=1 RELAXED, fence RELEASE, y=1 RELAXED", "y RELAXED, fence ACQUIRE, x RELAXED"), (0, 10), False),
        ("coherence", ("x=1 RELAXED, x=2 RELAXED", "x RELAXED, x RELAXED"), (0, 21), False),
        ("load buffering", ("x RELAXED, y=1 RELAXED", "y RELAXED, x=1 RELAXED"), (1, 1), True),
        ("exchanges", ("x:=1 RELAXED", "x:=2 RELAXED"), (0, 0), False),
        ("on an exchange", ("x=1 RELAXED, y=1 RELEASE", "y:=2 RELAXED", "y ACQUIRE, x RELAXED"), (0, 1, 20), False),
    ],
)
def test_the_model_gives_what_is_known_of_it(
    case: str, of: tuple[str, ...], result: tuple[int, ...], allowed: bool
) -> None:
    seen = {outcome.results for outcome in outcomes({"x": 0, "y": 0}, threads(*of))}
    assert (result in seen) == allowed, case


def test_the_model_sees_a_race() -> None:
    first = {"x": 0}
    assert Outcome((0, 0), True) in outcomes(first, threads("x=1", "x"))
    assert all(outcome.race for outcome in outcomes(first, threads("x=1", "x SEQ_CST")))
    assert not any(outcome.race for outcome in outcomes(first, threads("x", "x")))
