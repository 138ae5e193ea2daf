"""What carries frames between peers, as ILM needs it. It may lose, double, delay and reorder: ILM mends all of that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from persist.ilm.message import PeerId


class Transport(Protocol):
    """Contract
    - A frame arrives whole and unchanged, or not at all, and `next_message` says truly who sent it.
    - Nothing else is promised: frames may be lost, doubled, late and out of order.
    - One ILM uses a transport, from one event loop.
    """

    @property
    def local_id(self) -> PeerId:
        """Who this end is."""

    @property
    def max_frame_bytes(self) -> int:
        """The longest frame that `send_message` takes; at least 1024."""

    def connected_peers(self) -> Collection[PeerId]:
        """Who can be sent to now, as far as known."""

    async def send_message(self, peer: PeerId, frame: bytes) -> None:
        """Hand over one frame; waits while the way to this peer is full. A frame for a peer that is not connected, or
        whose connection breaks, is dropped without an error. Raises TransportClosed after `close`."""

    async def next_message(self) -> tuple[PeerId, bytes]:
        """The next frame and who sent it. An empty frame says that this peer has just (re)connected; a transport that
        does not tell is asked for `connected_peers` now and then. Raises TransportClosed after `close`."""

    async def close(self) -> None:
        """Idempotent; wakes whoever waits in the calls above."""
