"""Room for runs in a ring, behind all that was sent: what `Handler.reserve` writes to at level memory.

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

SHARE = 2  # a transaction that has written half of a ring has enough: its receiver is to be at work meanwhile
MOST = 32  # and so has one with so many runs in a ring


class RingPlace:
    """Of one run. While there is one, nothing else than what is written in such places can be put into its ring."""

    def __init__(self, ring: Ring, whole: memoryview, number: int = 0, before: int = 0) -> None:
        self.view = whole[RUN.size :]  # of the body
        self.sent = False  # by the transaction at hand
        self.number = number + 1  # of those in its ring
        self.together = before + len(whole)  # bytes, with those before it
        self._ring = ring
        self._whole = whole
        self._size = len(self.view)
        self._rows: weakref.ref[Any] | None = None
        self._lent_to = ("", "")

    def lent(self, rows: weakref.ref[Any], type_name: str, handler: str) -> None:
        self._rows, self._lent_to = rows, (type_name, handler)

    @property
    def is_enough(self) -> bool:
        """With it, the transaction has its share of the ring."""
        if self.together >= self._ring.capacity // SHARE or self.number >= MOST:
            return True
        return self._ring.used() + self.together + len(self._whole) > self._ring.capacity  # one more finds no room

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
    """Those of one worker. On each link those that were sent come first, in order, and then at most one that was not; a
    rollback makes it all of them."""

    def __init__(self) -> None:
        self._links: list[Link] = []  # links with places, which were not published or given up

    def reserve(self, link: Link, size: int) -> RingPlace | None:
        """Room for a body of this size, where it comes next on the link; else None."""
        ring, outbound = link.producing, link.outbound
        if ring is None or outbound.published != outbound.assigned or RUN.size + size > ring.max_record:
            return None
        if not _all_sent(link):
            return None
        whole = ring.reserve(RUN.size + size)
        if whole is None:
            return None
        places = link.places
        try:
            # failpoint: place-claimed
            places.append(RingPlace(ring, whole, len(places), places[-1].together if places else 0))
        except BaseException:
            ring.abandon()  # otherwise nothing could be put into it any more, and nobody would know why
            raise
        if len(places) == 1:
            self._links.append(link)
        # failpoint: place-reserved
        return places[-1]

    def drop(self) -> None:
        """What is reserved will not be sent."""
        if not self._links:
            return
        for link in self._links:
            for place in link.places:
                place.sent = False
        self._links = [link for link in self._links if not _all_sent(link)]


def _all_sent(link: Link) -> bool:
    """The ring has its places again that are not sent, if nobody can write to them any more."""
    places = link.places
    while places and not places[-1].sent:
        if places[-1].lives:
            return False
        places.pop().give_up()
    return True
