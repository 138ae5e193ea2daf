"""Attaches an endpoint to the shared memory of its system: the board and one ring per edge."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from actors.claims import Claims
from actors.claims_in_memory import MemoryClaims
from actors.claims_on_disk import DiskClaims
from actors.endpoint import Endpoint
from actors.identity import segment_name, segment_prefix
from actors.plan import GATEWAY, Edge, Plan
from bus import Board, Ring, Segment, board_size, format_ring, ring_size


def board_name(run_id: str) -> str:
    return segment_name(run_id, 0)


def ring_name(run_id: str, edge: Edge) -> str:
    return segment_name(run_id, edge.index + 1)


class Wires(msgspec.Struct):
    """What has to be given back, last taken first. `close` may be called twice.

    `held`: segments that were attached already, by a worker that could not do it any more; each is taken once.
    """

    undo: list[Callable[[], None]] = msgspec.field(default_factory=list)
    held: dict[str, Segment] = msgspec.field(default_factory=dict)

    def attach(self, name: str) -> Segment:
        segment = self.held.pop(name, None) or Segment.attach(name)
        self.undo.append(segment.close)
        return segment

    def close(self) -> None:
        while self.undo:
            self.undo.pop()()


def create_segments(plan: Plan, run_id: str) -> list[Segment]:
    """Board and rings of a new system, their space really reserved. Raises SharedMemoryFull and leaves none behind."""
    segments: list[Segment] = []
    try:
        segments.append(Segment.create(board_name(run_id), board_size(plan.peers)))
        Board.format(segments[0].buf, plan.peers).close()
        for edge in plan.edges:
            segments.append(Segment.create(ring_name(run_id, edge), ring_size(edge.ring_bytes)))
            format_ring(segments[-1].buf, edge.ring_bytes, 1)
    except BaseException:
        for segment in segments:
            segment.close()
            segment.unlink()
        raise
    return segments


def attach_board(run_id: str, wires: Wires) -> Board:
    segment = wires.attach(board_name(run_id))
    board = Board(segment.buf)
    wires.undo.append(board.close)
    return board


def connect(endpoint: Endpoint, plan: Plan, me: str, run_id: str, board: Board, wires: Wires) -> None:
    """Every edge that begins or ends at `me`."""
    for peer in plan.peers:
        inbound, outbound = plan.edge(peer, me), plan.edge(me, peer)
        either = inbound or outbound
        if either is None:
            continue
        endpoint.connect(
            peer,
            producing=attach_ring(run_id, outbound, wires) if outbound is not None else None,
            consuming=attach_ring(run_id, inbound, wires) if inbound is not None else None,
            bell=board.block(peer).doorbell,
            # The gateway takes answers however long its own outbox is: they cause no sends, and who cannot get rid of
            # his answers takes nothing any more from the gateway.
            inside=either.inside or me == GATEWAY,
        )
    if me != GATEWAY:
        endpoint.overload.watch(board.block(name) for name in sorted(plan.component_of(me)) if name != me)


def open_claims(plan: Plan, me: str, run_id: str, journal: str | os.PathLike[str], epoch: int) -> Claims:
    """Where the large messages of one peer lie: in shared memory, or beside its journal."""
    if not plan.one_user:
        return Claims(me)  # who runs as another user may not read what the others write
    if plan.level == "memory":
        return MemoryClaims(me, segment_prefix(run_id), plan.peers)
    return DiskClaims(me, journal, epoch, plan.level == "power")


def attach_ring(run_id: str, edge: Edge, wires: Wires) -> Ring:
    segment = wires.attach(ring_name(run_id, edge))
    ring = Ring(segment.buf)
    wires.undo.append(ring.close)
    return ring
