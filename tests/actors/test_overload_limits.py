"""When a worker says that it has too much waiting, and when that its cycle feeds itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.overload import MULTIPLYING, Overload
from bus import Field
from bus.layout import BLOCK_CELLS

LIMIT, CLAIMS = 1000, 5000


class Weighed:
    """One worker of a cycle, or of none."""

    def __init__(self, cycle: bool = True) -> None:
        self.cells = [0] * BLOCK_CELLS
        block: Any = SimpleNamespace(cells=self.cells)
        other: Any = SimpleNamespace(cells=[0] * BLOCK_CELLS)
        self.overload = Overload(block, LIMIT, CLAIMS)
        self.overload.watch([other] if cycle else [])

    def weigh(self, backlog: int, held: int, *, messages: int = 1000, claims: int = 1000) -> tuple[int, int]:
        """Twice, as whoever is over its limit is at first no more than that."""
        for _ in range(2):
            self.overload.weigh(backlog, held, lambda: messages, lambda: claims)
        return self.cells[Field.OVER_LIMIT], self.cells[Field.MULTIPLYING]


@pytest.mark.parametrize(("backlog", "held"), [(LIMIT, 0), (0, CLAIMS)])
def test_it_is_over_its_limit_until_half_of_that_is_gone(backlog: int, held: int) -> None:
    one = Weighed()
    assert one.weigh(backlog, held) == (0, 0)
    assert one.weigh(backlog + 1, held + 1) == (1, 0)
    assert one.weigh(backlog // 2 + 1, held // 2 + 1) == (1, 0)
    assert one.weigh(backlog // 2, held // 2) == (0, 0)


@pytest.mark.parametrize(("backlog", "held"), [(LIMIT, 0), (0, CLAIMS)])
def test_a_cycle_feeds_itself_where_much_waits_and_many(backlog: int, held: int) -> None:
    most = (backlog * MULTIPLYING, held * MULTIPLYING)
    more = (most[0] + 1, most[1] + 1)
    assert Weighed().weigh(*most) == (1, 0)
    assert Weighed().weigh(*more) == (1, 1)
    assert Weighed(cycle=False).weigh(*more) == (1, 0), "overload goes back to where it comes from"
    assert Weighed().weigh(*more, messages=MULTIPLYING, claims=MULTIPLYING) == (1, 0), "they are large, not many"
    assert Weighed().weigh(*more, messages=MULTIPLYING + 1, claims=MULTIPLYING + 1) == (1, 1)


def test_many_small_messages_beside_one_large_one_are_no_alarm() -> None:
    assert Weighed().weigh(LIMIT, CLAIMS * MULTIPLYING * 100, messages=10**6, claims=1) == (1, 0)


def test_the_alarm_ends_with_what_it_was_about() -> None:
    one = Weighed()
    assert one.weigh(LIMIT * MULTIPLYING + 1, 0) == (1, 1)
    assert one.weigh(LIMIT // 2, 0) == (0, 0)
