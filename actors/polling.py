"""Busy polling: a worker that has reason to expect its next message soon looks at its rings instead of sleeping.

While it does, messages are handled and committed as ever. What the worker else does in each turn of its loop waits
until it stops: what was acknowledged, housekeeping, what others want of it. It stops after `LONGEST` seconds, and when
more than a few messages come, or none. `spinning` decides when it is worth while.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from actors.links import Arrival
from actors.spinning import Spinning
from bus import Field

LONGEST = 0.001  # seconds; the heartbeat and all else wait for so long


class Polling:
    """Of one worker, between two of its transactions."""

    def __init__(self, endpoint: Endpoint, dispatcher: Dispatcher, spinning: Spinning) -> None:
        self._endpoint = endpoint
        self._dispatcher = dispatcher
        self._spinning = spinning

    def poll(self, until: float) -> tuple[bool, Sequence[Arrival]]:
        """Whether any message came, and what of them is left to be handled. `until`: monotonic seconds."""
        endpoint, dispatcher, spinning, cells = self._endpoint, self._dispatcher, self._spinning, self._endpoint.cells
        control, pause = cells[Field.CONTROL], cells[Field.PAUSE]
        until = min(until, time.monotonic() + LONGEST)
        came = False
        while arrivals := endpoint.take((), spinning.seconds):
            came = True
            before = cells[Field.HANDLED] + cells[Field.SENT]
            left = dispatcher.run(arrivals)
            spinning.waited(0.0, True, cells[Field.HANDLED] + cells[Field.SENT] - before)
            if left or not (dispatcher.settled and endpoint.settled and spinning.seconds):
                return True, left
            if cells[Field.CONTROL] != control or cells[Field.PAUSE] != pause or time.monotonic() > until:
                return True, ()
        spinning.waited(spinning.seconds, False, 0)
        return came, ()
