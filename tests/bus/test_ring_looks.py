"""Many rings looked at in one call: what has come, what was answered, and how long a look lasts."""

from __future__ import annotations

import math
from functools import partial

import pytest

from bus import Cell, RingCorrupt
from tests.bus.implementations import RINGS, each, needs_c, new_ring, pairs
from tests.bus.test_doorbell import LONG, SOON, background, soonest
from tests.bus.test_ring import set_cell


@each
def test_one_look_finds_the_rings_that_have_something_to_take(name: str) -> None:
    buffers = [new_ring() for _ in range(4)]
    outs, rings = [RINGS[name](buffer) for buffer in buffers], [RINGS[name](buffer) for buffer in buffers]
    assert RINGS[name].waiting(rings) == RINGS[name].waiting([]) == []
    outs[1].push(b"one")
    outs[3].push(b"one")
    outs[3].push(b"two")
    assert RINGS[name].waiting(rings) == [1, 3]
    rings[1].take_many(1, 100)
    rings[3].take_many(1, 100)
    assert RINGS[name].waiting(rings) == [3], "the other record of it is still there"
    rings[1].rewind()
    assert RINGS[name].waiting(rings) == [1, 3]


@needs_c
def test_a_longer_look_ends_with_its_time_and_with_what_comes() -> None:
    buffer = new_ring()
    ring, out = RINGS["c"](buffer), RINGS["c"](buffer)

    def look(seconds: float) -> None:
        assert RINGS["c"].waiting([ring], seconds) == []

    def look_and_push() -> None:
        with background(lambda: RINGS["c"].waiting([ring], LONG)) as results:
            out.push(b"one")  # while the other thread looks: it does not keep this one from running
        assert results == [[0]]
        assert RINGS["c"].waiting([ring], LONG) == [0]
        assert ring.take_many(1, 100) == [b"one"]

    for seconds in (0.02, 0.0, -1.0):
        assert max(0.0, seconds) * 0.9 <= soonest(partial(look, seconds)) < SOON
    assert soonest(look_and_push) < SOON


@each
@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
def test_a_look_without_bound_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="bounded"):
        RINGS[name].waiting([RINGS[name](new_ring())], seconds)


@needs_c
def test_a_ring_that_is_closed_while_it_is_looked_at_is_refused() -> None:
    ring = RINGS["c"](new_ring())

    def look() -> str:
        with pytest.raises(ValueError, match="closed") as caught:
            RINGS["c"].waiting([ring], LONG)
        return str(caught.value)

    with background(look) as results:
        ring.close()
    assert results


@pairs
def test_one_look_finds_the_rings_whose_consumer_has_said_something_new(producer: str, consumer: str) -> None:
    buffers = [new_ring() for _ in range(3)]
    outs, intos = [RINGS[producer](one) for one in buffers], [RINGS[consumer](one) for one in buffers]
    answered = RINGS[producer].answered
    assert answered(outs) == answered([]) == []
    intos[0].set(Cell.ACK, 5)
    intos[2].set(Cell.RESEND_ASKED, 1)
    for cell in (Cell.RESUME, Cell.HEAD):
        intos[1].set(cell, 8)
    assert answered(outs) == [0, 2]
    assert answered(outs) == [], "it was told"
    intos[0].set(Cell.ACK, 4)
    assert answered(outs) == [0], "also of one that began anew, and knows less"
    assert answered([RINGS[producer](one) for one in buffers]) == [0, 2], "whoever comes new has seen nothing"


@each
def test_a_look_at_something_else_is_refused(name: str) -> None:
    ring, broken = RINGS[name](new_ring()), RINGS[name](buffer := new_ring())
    set_cell(buffer, Cell.TAIL, 7)
    for look in (RINGS[name].waiting, RINGS[name].answered):
        with pytest.raises((TypeError, AttributeError)):
            look([ring, b"ring"])
        with pytest.raises(TypeError):
            look(None)
    with pytest.raises(RingCorrupt, match="not a position"):
        RINGS[name].waiting([ring, broken])
    ring.close()
    for look in (RINGS[name].waiting, RINGS[name].answered):
        with pytest.raises(ValueError, match="closed"):
            look([ring])
