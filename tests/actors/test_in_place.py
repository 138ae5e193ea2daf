"""Rows that a transaction writes in the ring: one behind the other, before all else, and not for nobody."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.codec import RUN, pack_header, unpack_header
from actors.endpoint import Endpoint
from actors.errors import ViewEscaped
from actors.fixed import FixedMessage, u8
from actors.fixed_runs import FixedRuns
from actors.in_place import MOST, SHARE
from actors.layout import FINGERPRINT
from actors.outgoing import EncodedRun, Outgoing
from actors.reserving import Reserver
from actors.views import Views
from bus import Board, PyRing, board_size, format_ring, ring_size

NAMES = ["gateway", "a", "b"]
CAPACITY = 1 << 14
PEER = 2


class Row(FixedMessage):
    number: u8


class Sender:
    """A worker's sending half, level memory, over one ring; `commit` and `rollback` as its dispatcher does them."""

    def __init__(self) -> None:
        memory = bytearray(ring_size(CAPACITY))
        format_ring(memory, CAPACITY, 1)
        self.ring, self.reader = PyRing(memory), PyRing(memory)
        board = Board.format(bytearray(board_size(NAMES)), NAMES)
        self.endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=10**6, memory_limit=10**6)
        self.endpoint.connect("b", producing=self.ring, consuming=None, bell=board.block("b").doorbell, inside=False)
        self.endpoint.resume(None, None)
        self.views = Views()
        self.outgoing = Outgoing(CAPACITY // 4, CAPACITY // 4)
        lane: Any = SimpleNamespace(route=7, peers=(PEER,), local=False, source="feed", codec=FixedRuns(Row))
        longest = dict.fromkeys((0, PEER), self.ring.max_record - RUN.size)
        reserver = Reserver(self.outgoing, self.views, self.endpoint.reserve, longest)
        self.lane, self.reserve = lane, reserver.of("feed", {Row: lane})

    def rows(self, first: int, count: int) -> None:
        with self.reserve(Row, count) as rows:
            rows["number"] = range(first, first + count)

    def commit(self) -> None:
        assert not self.views.take_back()
        self.endpoint.commit(self.outgoing.encode(self.endpoint.me.index))
        self._clear()

    def rollback(self) -> None:
        self.endpoint.rollback()
        self._clear()

    def _clear(self) -> None:
        self.outgoing.clear()
        self.endpoint.places.drop()
        self.views.take_back()

    @property
    def in_ring(self) -> int:
        return len(self.endpoint.links[PEER].places)

    def received(self) -> list[tuple[int, int, int, list[int] | bytes]]:
        """First number, count, route, and what the rows say."""
        found: list[tuple[int, int, int, list[int] | bytes]] = []
        for view in self.reader.take_views(99, CAPACITY):
            first, count, route, _ = unpack_header(view)
            body = view[RUN.size :]
            found.append((first, count, route, list(body[FINGERPRINT:].cast("Q")) if route == 7 else bytes(body)))
        return found


def test_all_rows_of_a_transaction_are_written_in_the_ring_and_come_by_its_commit() -> None:
    sender = Sender()
    for first in (10, 20, 30):
        sender.rows(first, 2)
    assert sender.in_ring == 3
    assert sender.received() == []
    sender.commit()
    assert sender.in_ring == 0
    assert sender.received() == [(1, 2, 7, [10, 11]), (3, 2, 7, [20, 21]), (5, 2, 7, [30, 31])]


def test_what_is_sent_in_between_stays_in_between() -> None:
    sender = Sender()
    sender.rows(1, 1)
    sender.rows(2, 1)
    sender.outgoing.add_rows(sender.lane, [EncodedRun(8, 1, 0, (PEER,), b"between")])
    sender.rows(3, 1)
    assert sender.in_ring == 2
    sender.commit()
    assert sender.received() == [(1, 1, 7, [1]), (2, 1, 7, [2]), (3, 1, 8, b"between"), (4, 1, 7, [3])]


def test_what_is_sent_inside_a_block_goes_before_its_rows_and_behind_those_of_earlier_blocks() -> None:
    sender = Sender()
    sender.rows(1, 1)
    with sender.reserve(Row, 1) as rows:
        rows["number"] = 3
        sender.rows(2, 1)  # two at a time are not written in one ring
    del rows
    assert sender.in_ring == 2
    sender.commit()
    assert sender.received() == [(1, 1, 7, [1]), (2, 1, 7, [2]), (3, 1, 7, [3])]


def test_a_block_that_is_left_by_an_error_leaves_nothing_between_those_around_it() -> None:
    sender = Sender()
    sender.rows(1, 1)
    with pytest.raises(ValueError, match="never mind"), sender.reserve(Row, 100) as rows:
        raise ValueError("never mind")
    del rows
    sender.rows(2, 1)
    sender.commit()
    assert sender.received() == [(1, 1, 7, [1]), (2, 1, 7, [2])]


def test_after_a_rollback_the_ring_has_all_its_places_again() -> None:
    sender = Sender()
    for first in (1, 2, 3):
        sender.rows(first, 100)
    sender.rollback()
    assert sender.in_ring == 0
    sender.rows(4, 1)
    sender.commit()
    assert sender.received() == [(1, 1, 7, [4])]
    assert sender.ring.used() == 8 + RUN.size + FINGERPRINT + 8


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_place_that_somebody_can_still_write_to_is_not_used_again(kept: int) -> None:
    sender = Sender()
    views = []
    for number in range(3):
        with sender.reserve(Row, 1) as rows:
            if number == kept:
                views.append(rows["number"])
        del rows
    sender.rollback()
    assert sender.in_ring == kept + 1  # and those before it, as a ring gives up the last one first
    sender.rows(9, 1)
    assert sender.in_ring == kept + 1
    with pytest.raises(ViewEscaped):
        sender.commit()
    views[0][0] = 1
    assert sender.received() == []


def test_a_place_is_used_again_once_nobody_can_write_to_it() -> None:
    sender = Sender()
    with sender.reserve(Row, 1) as rows:
        kept = rows["number"]
    del rows
    sender.rollback()
    del kept
    sender.rows(5, 1)
    assert sender.in_ring == 1
    sender.commit()
    assert sender.received() == [(1, 1, 7, [5])]


def test_a_transaction_has_enough_with_its_share_of_a_ring_or_with_many_runs_there() -> None:
    sender, quarter = Sender(), CAPACITY // SHARE // 8

    def enough(count: int) -> bool:
        sender.rows(0, count)
        return sender.outgoing.heavy

    assert [enough(quarter // 2), enough(quarter // 2)] == [False, True]
    sender.commit()
    assert [enough(1) for _ in range(MOST)] == [False] * (MOST - 1) + [True]


def test_a_transaction_has_enough_if_one_more_like_the_last_finds_no_room() -> None:
    sender, part = Sender(), CAPACITY // 8 // 8 - 8
    for first in range(5):
        sender.rows(first, part)
        assert not sender.outgoing.heavy
        sender.commit()
    sender.rows(5, part)
    assert not sender.outgoing.heavy
    sender.rows(6, 1)
    assert not sender.outgoing.heavy
    sender.rollback()
    sender.rows(5, 7 * part // 4)
    assert sender.outgoing.heavy


def test_rows_that_are_not_in_a_ring_are_soon_enough() -> None:
    sender = Sender()
    sender.lane.peers = (PEER, 0)

    def enough() -> bool:
        sender.rows(0, 1 << 10)
        return sender.outgoing.heavy

    assert [enough() for _ in range(8)] == [False] * 7 + [True]
    assert sender.in_ring == 0


@pytest.mark.parametrize(("count", "taken"), [(1000, 8), (10_000, 3), (13_000, 2), (20_000, 1), (60_000, 1)])
def test_of_rows_that_come_by_many_a_quarter_of_the_ring_is_taken_at_a_time(count: int, taken: int) -> None:
    """Of others 64 KiB, as after a death they may all be handled one by one; the first in any case."""
    capacity = 1 << 20
    memory = bytearray(ring_size(capacity))
    format_ring(memory, capacity, 1)
    out = PyRing(memory)
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=10**6, memory_limit=10**6)
    endpoint.connect("b", producing=None, consuming=PyRing(memory), bell=board.block("b").doorbell, inside=False)
    endpoint.resume(None, None)
    endpoint.links[PEER].lends = True
    endpoint.rows.add(7)
    body, pushed = bytes(FINGERPRINT + 8 * count), 0
    while out.push(pack_header(1 + pushed * count, count, 7, 0), body):
        pushed += 1
    numbers = [arrival.first for _ in range(pushed) for arrival in endpoint.take()]
    assert numbers == [1 + number * count for number in range(pushed)]
    endpoint.put_back()
    assert len(endpoint.take()) == min(taken, pushed)
