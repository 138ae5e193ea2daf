"""Room for one run in a ring, behind all that was sent: what `Handler.reserve` writes to at level memory.

It is invisible to the receiver until it is published, as nothing of a transaction is before its commit; a worker that
dies before leaves nothing. Given up, the ring uses it again for something else, so nobody may be able to write there
any more: ViewEscaped, which ends the worker, if somebody is.
"""

from __future__ import annotations

import weakref
from typing import Any

from actors.codec import RUN
from actors.errors import ViewEscaped
from actors.views import lives
from bus import Ring


class RingPlace:
    """While there is one, nothing else can be put into its ring."""

    def __init__(self, ring: Ring, whole: memoryview) -> None:
        self.view = whole[RUN.size :]  # of the body
        self.sent = False  # by the transaction at hand
        self._ring = ring
        self._whole = whole
        self._size = len(self.view)
        self._rows: weakref.ref[Any] | None = None
        self._lent_to = ("", "")

    def lent(self, rows: weakref.ref[Any], type_name: str, handler: str) -> None:
        self._rows, self._lent_to = rows, (type_name, handler)

    @property
    def lives(self) -> bool:
        """Somebody can write to it."""
        return self._rows is not None and lives(self._rows)

    def publish(self, header: bytes) -> None:
        self.view.release()
        self._whole[: RUN.size] = header
        self._ring.commit()

    def give_up(self) -> None:
        if self.lives:
            raise ViewEscaped(self._lent_to[:1], self._lent_to[1:])
        self.view.release()
        self._ring.abandon()

    def __len__(self) -> int:
        return self._size
