"""What an endpoint knows of its outbox when others know more."""

from __future__ import annotations

from actors.codec import pack_header
from actors.endpoint import Endpoint
from bus import Board, Cell, Field, PyRing, board_size, format_ring, ring_size
from persist import Outbound

NAMES = ["gateway", "a", "b"]


def test_a_receiver_that_has_all_of_a_recovered_backlog_ends_the_overload() -> None:
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    memory = bytearray(ring_size(4096))
    format_ring(memory, 4096, 1)
    endpoint = Endpoint("a", NAMES, board.block("a"), level="process", outbox_limit=100, memory_limit=1000)
    ring = PyRing(memory)
    endpoint.connect("b", producing=ring, consuming=None, bell=board.block("b").doorbell, inside=False)
    outbound = endpoint.links[2].outbound
    outbound.restore(assigned=10, acked=0, resume=5, from_position=0, size=500)
    endpoint._behind = [endpoint.links[2]]
    endpoint._weigh()
    assert endpoint.cells[Field.OVER_LIMIT]
    ring.set(Cell.ACK, 10)  # the last incarnation had published all of it
    endpoint.progress()
    assert outbound.backlog_bytes == 0
    assert not endpoint.cells[Field.OVER_LIMIT]
    assert not endpoint.paused


def test_without_a_journal_what_stands_in_the_ring_was_published_whether_or_not_its_cell_says_so() -> None:
    """Whoever dies between the tail and the cell, and then gives the same numbers to other messages, loses these."""
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    memory = bytearray(ring_size(4096))
    format_ring(memory, 4096, 1)
    before, reader = PyRing(memory), PyRing(memory)
    for first, count in ((1, 3), (4, 1), (5, 2)):
        assert before.push(pack_header(first, count, 0, 0), bytes(8))
    before.set(Cell.PUBLISHED, 3)
    reader.take_many(1, 1)
    reader.release()  # the others wait for it

    def resumed() -> Outbound:
        endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=100, memory_limit=1000)
        ring = PyRing(memory)
        endpoint.connect("b", producing=ring, consuming=None, bell=board.block("b").doorbell, inside=False)
        endpoint.resume(None, None)
        return endpoint.links[2].outbound

    assert (resumed().assigned, resumed().published, resumed().acked) == (6, 6, 6)
    assert [len(record) for record in reader.take_many(9, 4096)] == [24, 24]
    reader.release()
    reader.set(Cell.ACK, 6)
    assert resumed().assigned == 6  # it has been consumed meanwhile
