"""What an endpoint knows of its outbox when others know more."""

from __future__ import annotations

from actors.endpoint import Endpoint
from bus import Board, Cell, Field, PyRing, board_size, format_ring, ring_size

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
