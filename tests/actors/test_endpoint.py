"""What an endpoint knows of its outbox when others know more."""

from __future__ import annotations

import pytest

from actors.codec import RUN, pack_header
from actors.endpoint import Endpoint
from actors.errors import MessageTooLarge
from actors.outgoing import EncodedRun
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


def test_what_was_taken_and_not_handled_is_not_let_go_when_what_was_held_up_goes_on() -> None:
    """Level memory: until then its place in the ring is all that remembers it."""
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    rings = []
    for _ in range(2):
        memory = bytearray(ring_size(4096))
        format_ring(memory, 4096, 1)
        rings.append((PyRing(memory), PyRing(memory)))
    (peer_out, mine_in), (mine_out, peer_in) = rings
    endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=10**6, memory_limit=10**6)
    endpoint.connect("b", producing=mine_out, consuming=mine_in, bell=board.block("b").doorbell, inside=False)
    endpoint.resume(None, None)
    peer_out.push(pack_header(1, 1, 0, 0), b"first")
    peer_out.push(pack_header(2, 1, 0, 0), b"second")
    first, second = endpoint.take()
    assert endpoint.admit(first) == 0
    first.link.inbound.stage(1)
    endpoint.commit([EncodedRun(0, 1, 0, (2,), bytes(2000)) for _ in range(4)])  # more than there is room for
    endpoint.release({second.link})
    assert mine_in.get(Cell.ACK) == 0
    while len(peer_in.take_many(9, 10**6)):
        peer_in.release()
        endpoint.progress()
    assert mine_in.get(Cell.ACK) == 1
    assert mine_in.get(Cell.HEAD) == 0  # the next incarnation takes both, and passes over the first
    second.link.inbound.stage(2)
    endpoint.commit()
    endpoint.release()
    assert mine_in.get(Cell.HEAD) == peer_out.get(Cell.TAIL)


def test_what_no_ring_can_carry_is_refused_before_it_has_a_number() -> None:
    """In a journal it would be found again at each start, and published in vain."""
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    memory = bytearray(ring_size(4096))
    format_ring(memory, 4096, 1)
    endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=10**6, memory_limit=10**6)
    ring = PyRing(memory)
    endpoint.connect("b", producing=ring, consuming=None, bell=board.block("b").doorbell, inside=False)
    endpoint.resume(None, None)
    most = ring.max_record - RUN.size
    with pytest.raises(MessageTooLarge, match=f"of {most + 1} bytes, over the limit of {most}"):
        endpoint.commit([EncodedRun(0, 1, 0, (2,), bytes(10)), EncodedRun(0, 1, 0, (2,), bytes(most + 1))])
    assert endpoint.links[2].outbound.assigned == 0
    assert ring.used() == 0
    endpoint.commit([EncodedRun(0, 1, 0, (2,), bytes(most))])
    assert endpoint.links[2].outbound.published == 1


def test_what_a_source_has_sent_to_its_own_worker_is_no_risk_any_more_once_all_of_it_is_handled() -> None:
    """Otherwise a later death of the worker would be taken for a loss. Level memory; the last part was taken before."""
    board = Board.format(bytearray(board_size(NAMES)), NAMES)
    endpoint = Endpoint("a", NAMES, board.block("a"), level="memory", outbox_limit=10**6, memory_limit=10**6)
    endpoint.resume(None, None)
    endpoint.commit([EncodedRun(0, 1, 0, (1,), b"first"), EncodedRun(0, 1, 0, (1,), b"second")])
    assert endpoint.cells[Field.AT_RISK] == 1
    first, second = endpoint.take()
    for arrival, left, at_risk in ((first, {second.link}, 1), (second, set(), 0)):
        arrival.link.inbound.stage(arrival.first)
        endpoint.commit()
        endpoint.release(left)
        endpoint.progress()
        assert endpoint.cells[Field.AT_RISK] == at_risk
