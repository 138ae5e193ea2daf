"""Moves what is committed towards one peer from the outbox to the ring, as far as there is room.

A full ring delays this and nothing else: the peer is asked to ring the doorbell once it has made room.
"""

from __future__ import annotations

import sys
from typing import Any

from actors.codec import pack_header, unpack_header
from actors.links import Link
from bus import Cell, Ring
from persist.format import Send
from persist.journal import Journal
from persist.link import Entry


def publish(link: Link, journal: Journal | None) -> bool:
    """True if anything moved."""
    ring, outbound = link.producing, link.outbound
    assert ring is not None
    moved = starved = False
    while link.places and not link.places[-1].sent:
        link.places.pop().give_up()
    while True:
        if outbound.needs_refill:
            refill(link, journal)
        entry = outbound.peek()
        if entry is None:
            break
        if not _push(link, ring, entry):
            if starved:
                break
            # Asks for a ring of the doorbell, then looks again: room may have come before the peer saw it.
            ring.set(Cell.STARVED, 1)
            starved = True
            continue
        # failpoint: record-pushed
        outbound.pop()
        moved = True
    if entry is None and ring.get(Cell.STARVED):
        ring.set(Cell.STARVED, 0)
    if moved:
        ring.set(Cell.PUBLISHED, outbound.published)
        assert link.bell is not None
        # failpoint: doorbell-before
        link.bell.ring()
        # failpoint: doorbell-after
    ring.set(Cell.OUTBOX_BYTES, outbound.backlog_bytes)
    if link.oldest_ns:
        ring.set(Cell.OLDEST_NS, link.oldest_ns)
    return moved


def publish_straight(link: Link, first: int, send: Send, position: int) -> bool:
    """The same for a run that is committed and not in the outbox, because nothing was before it. False: no room."""
    ring, bell = link.producing, link.bell
    assert ring is not None
    assert bell is not None
    if not ring.push(pack_header(first, send.count, send.route, send.flags), send.body):
        return False
    # failpoint: record-pushed
    link.outbound.passed(first, send.count, position)
    if ring.get(Cell.STARVED):
        ring.set(Cell.STARVED, 0)
    ring.set(Cell.PUBLISHED, link.outbound.published)
    # failpoint: doorbell-before
    bell.ring()
    # failpoint: doorbell-after
    if len(link.marks) == 1:  # it may be a new one
        ring.set(Cell.OLDEST_NS, link.oldest_ns)
    return True


def published_before(ring: Ring) -> int:
    """The last message that earlier incarnations have put into this ring, without a journal to say so. One that died
    between the tail and the cell that tells of it has published what stands in the ring, or is acknowledged by now."""
    last = max(ring.get(Cell.PUBLISHED), ring.get(Cell.ACK))
    while views := ring.take_views(sys.maxsize, ring.capacity):  # nobody writes there meanwhile; the head stays
        for view in views:
            first, count, _, _ = unpack_header(view)
            last = max(last, first + count - 1)
    return last


def refill(link: Link, journal: Journal | None) -> None:
    """The backlog is on disk: the next part of it comes back from the journal."""
    assert journal is not None
    link.outbound.refill(link.entries(journal))
    # failpoint: backlog-refilled


def _push(link: Link, ring: Ring, entry: Entry) -> bool:
    send: Send = entry.payload
    header = pack_header(entry.first, entry.count, send.route, send.flags)
    body: Any = send.body
    if link.places:  # their runs are the first behind what was published
        assert body is link.places[0]
        link.places[0].publish(header)
        link.places.popleft()
        return True
    return ring.push(header, body)
