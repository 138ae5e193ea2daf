"""A link as an incarnation finds it: by its journal or, where there is none, by the rings that outlive a worker."""

from __future__ import annotations

from actors.links import Link
from actors.publishing import published_before
from bus import Cell
from persist.journal import Journal
from persist.link import UNKNOWN, Inbound
from persist.recovery import Recovered


def restore(link: Link, own: bool, journal: Journal | None, recovered: Recovered | None) -> None:
    """Where both directions of the link will go on, told to the peer. `own`: the peer is the worker itself."""
    ring_out, ring_in = link.producing, link.consuming
    if recovered is not None and journal is not None:
        link.inbound = Inbound(recovered.watermarks.get(link.name, 0))
        # What may be trimmed is what was acknowledged; the resume cell is only a hint where to begin.
        acked, resume = (link.inbound.watermark, 0) if own else (0, UNKNOWN)
        if ring_out is not None:
            acked, resume = ring_out.get(Cell.ACK), ring_out.get(Cell.RESUME)
        link.outbound.restore(
            assigned=recovered.assigned.get(link.name, 0),
            acked=max(recovered.acked.get(link.name, 0), acked),
            resume=resume,
            from_position=recovered.unacked_from.get(link.name),
            size=recovered.unacked_bytes.get(link.name, 0),
        )
    else:
        # No journal: the rings, which outlive a worker, are all there is to remember.
        published = 0 if ring_out is None else published_before(ring_out)
        link.outbound.restore(assigned=published, acked=published, resume=published, from_position=None)
        link.inbound = Inbound(0 if ring_in is None else ring_in.get(Cell.ACK))
    if ring_in is not None:
        link.resends = ring_in.get(Cell.RESEND_ASKED)
        ring_in.set(Cell.RESUME, link.inbound.watermark)
        # failpoint: watermark-told
        ring_in.set(Cell.ACK, link.inbound.watermark)
        # failpoint: resume-acknowledged
        ring_in.rewind()
    if ring_out is not None:
        link.resends_seen = ring_out.get(Cell.RESEND_SERVED)
        ring_out.set(Cell.COMMITTED, link.outbound.assigned)
