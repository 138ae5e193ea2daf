"""Room for one run in a ring, behind all that was sent: what `Handler.reserve` writes to at level memory.

It is invisible to the receiver until it is published, as nothing of a transaction is before its commit; a worker that
dies before leaves nothing. Given up, the ring uses it again for something else, so nobody may be able to write there
any more: ViewEscaped, which ends the worker, if somebody is.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from actors.codec import RUN
from actors.errors import ViewEscaped
from actors.views import lives
from bus import Ring

if TYPE_CHECKING:
    from actors.links import Link


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
        # failpoint: place-headed
        self._ring.commit()
        # failpoint: place-published

    def give_up(self) -> None:
        if self.lives:
            raise ViewEscaped(self._lent_to[:1], self._lent_to[1:])
        self.view.release()
        self._ring.abandon()
        # failpoint: place-given-up

    def __len__(self) -> int:
        return self._size


class Places:
    """Those of one worker."""

    def __init__(self) -> None:
        self._links: list[Link] = []  # links with a place, which was not published or given up

    def reserve(self, link: Link, size: int) -> RingPlace | None:
        """Room for a body of this size, where it comes next on the link; else None."""
        ring, outbound = link.producing, link.outbound
        if ring is None or outbound.published != outbound.assigned or RUN.size + size > ring.max_record:
            return None
        if link.place is not None and not _given_up(link):
            return None
        whole = ring.reserve(RUN.size + size)
        if whole is None:
            return None
        try:
            # failpoint: place-claimed
            link.place = RingPlace(ring, whole)
        except BaseException:
            ring.abandon()  # otherwise nothing could be put into it any more, and nobody would know why
            raise
        self._links.append(link)
        # failpoint: place-reserved
        return link.place

    def drop(self) -> None:
        """What is reserved will not be sent."""
        if not self._links:
            return
        for link in self._links:
            if link.place is not None:
                link.place.sent = False
        self._links = [link for link in self._links if link.place is not None and not _given_up(link)]


def _given_up(link: Link) -> bool:
    """The ring has its place again, if that is not sent and nobody can write to it any more."""
    assert link.place is not None
    if link.place.sent or link.place.lives:
        return False
    place, link.place = link.place, None
    place.give_up()
    return True
