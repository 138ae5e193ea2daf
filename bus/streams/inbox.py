"""What came and was not asked for yet, of all peers together.

A peer that has more than its share in here is not read from, and is again when half of that was taken out: who floods
fills its own share and nobody else's. The share is the peer's, however often it connects anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from bus.streams.addresses import PeerId

OVERHEAD: Final = 128  # bytes that a frame takes beside its contents, about


class Source(Protocol):
    """The connection that a peer has now."""

    deaf: bool  # paused

    def pause(self) -> None: ...

    def resume(self) -> None:
        """May put more at once."""


class _Share:
    __slots__ = ("announced", "held", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.held = 0
        self.announced = False  # the empty frame is in the inbox


class Inbox:
    """`limit`: bytes per peer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[PeerId, bytes]] = deque()
        self._shares: dict[PeerId, _Share] = {}
        self._filled = asyncio.Event()
        self._end: BaseException | None = None

    def announce(self, source: Source, peer: PeerId) -> None:
        """An empty frame: the peer has a new connection. Once is enough while nobody has taken it."""
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = _Share(source)
        share.source = source
        if share.announced:
            self._mind(share)
        else:
            share.announced = True
            self._add(share, peer, b"")

    def put(self, source: Source, peer: PeerId, frame: bytes) -> None:
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = _Share(source)
        self._add(share, peer, frame)

    def _add(self, share: _Share, peer: PeerId, frame: bytes) -> None:
        if self._end is not None:
            return
        self._items.append((peer, frame))
        share.held += len(frame) + OVERHEAD
        self._mind(share)
        self._filled.set()

    def _mind(self, share: _Share) -> None:
        if share.held > self._limit and not share.source.deaf:
            share.source.pause()

    async def get(self) -> tuple[PeerId, bytes]:
        """The oldest. Raises what `close` was given."""
        while True:
            if self._end is not None:
                raise self._end.with_traceback(None)
            if self._items:
                break
            self._filled.clear()
            await self._filled.wait()
        peer, frame = item = self._items.popleft()
        share = self._shares[peer]
        share.held -= len(frame) + OVERHEAD
        if not frame:
            share.announced = False
        if share.source.deaf and share.held <= self._limit // 2:
            share.source.resume()
        if not share.held:
            del self._shares[peer]
        return item

    def close(self, end: BaseException) -> None:
        """Whoever waits, or ever asks, gets this; the first one counts."""
        if self._end is None:
            self._end = end
            self._items.clear()
            self._shares.clear()
        self._filled.set()
