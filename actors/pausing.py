"""Whether a worker handles messages at all: as the supervisor wants it, on behalf of its user (cell PAUSE).

Requests have numbers: each is acted upon, also one that asks for the same as the one before, and whatever came and went
between two looks. What has come about stands in PAUSED; a new incarnation begins with 0 there, and takes up PAUSE.

A paused worker beats, publishes and keeps house; what is sent to it waits in rings and outboxes. To drain is to handle
what was sent until now, without calling sources, and to be paused then.
"""

from __future__ import annotations

from actors.endpoint import Endpoint
from actors.links import Link
from bus import Cell, Field, Pause, pause_asked


class Pausing:
    """Of one worker, over its endpoint. To be looked at between transactions."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._request = 0  # the cell, as it was last seen
        self._asked = Pause.RUN
        self.sources = True  # may be called
        self._until: list[tuple[Link, int]] = []  # a drain ends when these were consumed

    def look(self) -> bool:
        """Whether nothing is to be handled now."""
        cells = self._endpoint.cells
        request = cells[Field.PAUSE]
        if request == self._request and not self._until:
            return not self.sources
        if request != self._request:
            self._request, (_, self._asked) = request, pause_asked(request)
            self.sources = self._asked is Pause.RUN
            self._until = self._sent() if self._asked is Pause.DRAIN else []
        if self._until:
            self._until = [(link, seq) for link, seq in self._until if link.inbound.watermark < seq]
        reached = 0 if self._until else request
        if cells[Field.PAUSED] != reached:
            cells[Field.PAUSED] = reached
        return not self.sources and not self._until

    @property
    def settled(self) -> bool:
        """What was asked for has come about, and is told."""
        return not self._until and self.heard

    @property
    def heard(self) -> bool:
        """Nothing was asked for since the last look."""
        return self._endpoint.cells[Field.PAUSE] == self._request

    def _sent(self) -> list[tuple[Link, int]]:
        """What was committed towards this worker until now."""
        links = self._endpoint.links
        found = [(link, link.consuming.get(Cell.COMMITTED)) for link in links if link.consuming is not None]
        me = self._endpoint.me
        return [*found, (me, me.outbound.assigned)]
