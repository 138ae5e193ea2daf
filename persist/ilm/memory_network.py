"""A network within one event loop whose faults can be chosen: loss, doubling, delay, reordering, partition.

Contract
- Each end is a `Transport`. Without faults a frame is with its receiver when `send_message` returns,
  in the order of sending.
- What a fault does to the n-th frame from one end to another depends on the seed, the two ids, n, and the faults in
  force when it is sent; not on what others send.
- A frame that is on its way (delayed) arrives if the two ends are connected at its time, even if either of them was
  away meanwhile: late frames of an earlier connection are among the faults.
- An end sends no more than `capacity` bytes ahead of what its receiver has taken; then `send_message` waits.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass
from random import Random

from persist.ilm.errors import TransportClosed
from persist.ilm.message import PeerId, check_peer

CAPACITY = 1 << 20  # bytes on the way from one end to another
FRAME_COST = 64  # what a frame counts beside its bytes
MAX_FRAME = 1 << 20
SMALLEST_MAX_FRAME = 1024
HELD_BACK = 0.005  # seconds, at most, that a frame is held back for others to overtake it


@dataclass(slots=True)
class NetworkStatistics:
    """In frames. `sent` counts calls; each frame, and each copy of one, is then delivered, lost (by chance or because
    it was cut off while on its way), dropped (its receiver was not connected at all), or still on its way."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    doubled: int = 0
    delayed: int = 0
    reordered: int = 0
    dropped: int = 0


class _Way:
    """From one end to another."""

    __slots__ = ("bytes", "due", "late", "random", "waiting")

    def __init__(self, seed: object, source: PeerId, destination: PeerId) -> None:
        self.bytes = 0  # sent, and not taken
        self.late = 0  # delayed frames that keep their order
        self.due = 0.0  # when the last of them arrives
        self.random = Random(f"{seed!r} {source!r} {destination!r}")
        self.waiting: list[asyncio.Future[None]] = []

    def release(self, size: int) -> None:
        self.bytes -= size
        if self.waiting:
            _wake(self.waiting)


class MemoryTransport:
    """One end. Made by `MemoryNetwork.join`."""

    def __init__(self, network: MemoryNetwork, local_id: PeerId, max_frame_bytes: int) -> None:
        self._network = network
        self._local_id = local_id
        self._max_frame_bytes = max_frame_bytes
        self._inbox: deque[tuple[PeerId, bytes, _Way | None]] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._closed = False

    @property
    def local_id(self) -> PeerId:
        return self._local_id

    @property
    def max_frame_bytes(self) -> int:
        return self._max_frame_bytes

    def connected_peers(self) -> tuple[PeerId, ...]:
        return self._network._reachable(self)

    async def send_message(self, peer: PeerId, frame: bytes) -> None:
        if self._closed:
            raise TransportClosed
        if not 0 < len(frame) <= self._max_frame_bytes:
            raise ValueError(f"a frame has 1 to {self._max_frame_bytes} bytes, not {len(frame)}")
        network = self._network
        way = network._way(self._local_id, peer)
        while way.bytes >= network.capacity and network.connected(self._local_id, peer):
            await _wait_in(way.waiting)
            if self._closed:
                raise TransportClosed
        network._send(way, self._local_id, peer, bytes(frame))

    async def next_message(self) -> tuple[PeerId, bytes]:
        while True:
            if self._closed:
                raise TransportClosed
            if self._inbox:
                source, frame, way = self._inbox.popleft()
                if way is not None:
                    way.release(len(frame) + FRAME_COST)
                return source, frame
            await _wait_in(self._waiting)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._network._leave(self)
            for _, frame, way in self._inbox:
                if way is not None:
                    way.release(len(frame) + FRAME_COST)
            self._inbox.clear()
            _wake(self._waiting)

    def _put(self, source: PeerId, frame: bytes, way: _Way | None) -> None:
        self._inbox.append((source, frame, way))
        if self._waiting:
            _wake(self._waiting)


async def _wait_in(queue: list[asyncio.Future[None]]) -> None:
    waiting = asyncio.get_running_loop().create_future()
    queue.append(waiting)
    try:
        await waiting
    finally:
        if waiting in queue:  # cancelled
            queue.remove(waiting)


def _wake(queue: list[asyncio.Future[None]]) -> None:
    """All who wait; each looks again for itself."""
    woken = queue.copy()
    queue.clear()
    for waiting in woken:
        if not waiting.done():
            waiting.set_result(None)


class MemoryNetwork:
    """Faults, as attributes that may be changed at any time:

    loss          probability that a frame is lost
    duplication   probability that a frame arrives twice
    delay         (least, most) seconds that a frame is on its way; what is not reordered keeps its order
    reordering    probability that a frame is held back a little, so that later ones may overtake it
    capacity      bytes that may be on the way from one end to another
    """

    def __init__(
        self,
        *,
        seed: object = 0,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        reordering: float = 0.0,
        capacity: int = CAPACITY,
    ) -> None:
        self.seed = seed
        self.loss = loss
        self.duplication = duplication
        self.delay = delay
        self.reordering = reordering
        self.capacity = capacity
        self.statistics = NetworkStatistics()
        self._ends: dict[PeerId, MemoryTransport] = {}
        self._away: set[PeerId] = set()
        self._partitioned: set[frozenset[PeerId]] = set()
        self._ways: dict[tuple[PeerId, PeerId], _Way] = {}
        # (time of arrival, order of sending, whether it keeps that order, source, destination, frame)
        self._late: list[tuple[float, int, bool, PeerId, PeerId, bytes]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------------------------------------------ who is there
    def join(self, peer: PeerId, *, max_frame_bytes: int = MAX_FRAME) -> MemoryTransport:
        """A new end, connected to all that are there. Its id is free again once it has been closed."""
        peer = check_peer(peer)
        if peer in self._ends:
            raise ValueError(f"{peer!r} is on this network already")
        if max_frame_bytes < SMALLEST_MAX_FRAME:
            raise ValueError(f"frames of {max_frame_bytes} bytes are too short; give at least {SMALLEST_MAX_FRAME}")
        end = self._ends[peer] = MemoryTransport(self, peer, max_frame_bytes)
        self._away.discard(peer)
        self._greet(peer)
        return end

    def disconnect(self, peer: PeerId) -> None:
        """The end stays open and is cut off from all others."""
        self._away.add(peer)
        self._wake_senders(peer)

    def reconnect(self, peer: PeerId) -> None:
        if peer in self._away:
            self._away.discard(peer)
            self._greet(peer)

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Nothing passes between the two, in either direction."""
        if one == other:
            raise ValueError(f"{one!r} cannot be apart from itself")
        self._partitioned.add(frozenset((one, other)))
        self._wake_senders(one)
        self._wake_senders(other)

    def heal(self, one: PeerId | None = None, other: PeerId | None = None) -> None:
        """Ends one partition, or all of them."""
        healed = list(self._partitioned) if one is None or other is None else [frozenset((one, other))]
        for pair in healed:
            if pair in self._partitioned:
                self._partitioned.discard(pair)
                first, second = sorted(pair, key=repr)
                if self.connected(first, second):
                    self._ends[first]._put(second, b"", None)
                    self._ends[second]._put(first, b"", None)

    def connected(self, one: PeerId, other: PeerId) -> bool:
        ends, away = self._ends, self._away
        if one not in ends or other not in ends or one == other:
            return False
        return not (away and (one in away or other in away)) and not (
            self._partitioned and frozenset((one, other)) in self._partitioned
        )

    def _reachable(self, end: MemoryTransport) -> tuple[PeerId, ...]:
        local = end.local_id
        if self._ends.get(local) is not end:
            return ()
        return tuple(peer for peer in self._ends if self.connected(local, peer))

    def _greet(self, peer: PeerId) -> None:
        end = self._ends.get(peer)
        if end is None:
            return
        for other in self._reachable(end):
            end._put(other, b"", None)
            self._ends[other]._put(peer, b"", None)

    def _leave(self, end: MemoryTransport) -> None:
        del self._ends[end.local_id]
        self._wake_senders(end.local_id)

    def _wake_senders(self, peer: PeerId) -> None:
        """Whoever waits for room on a way to or from `peer` looks again."""
        for ends, way in self._ways.items():
            if peer in ends:
                _wake(way.waiting)

    # ------------------------------------------------------------------------------------------------ frames
    def _way(self, source: PeerId, destination: PeerId) -> _Way:
        way = self._ways.get((source, destination))
        if way is None:
            way = self._ways[source, destination] = _Way(self.seed, source, destination)
        return way

    def _send(self, way: _Way, source: PeerId, destination: PeerId, frame: bytes) -> None:
        statistics = self.statistics
        statistics.sent += 1
        if not self.connected(source, destination):
            statistics.dropped += 1
            return
        random = way.random.random
        if self.loss and random() < self.loss:
            statistics.lost += 1
            return
        copies = 1
        if self.duplication and random() < self.duplication:
            statistics.doubled += 1
            copies = 2
        for _ in range(copies):
            way.bytes += len(frame) + FRAME_COST
            least, most = self.delay
            if most or self.reordering or way.late:
                self._send_late(way, source, destination, frame, least + (most - least) * random())
            else:
                self._deliver(way, source, destination, frame)

    def _send_late(self, way: _Way, source: PeerId, destination: PeerId, frame: bytes, delay: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = now + delay
        ordered = not (self.reordering and way.random.random() < self.reordering)
        if not ordered:
            due += way.random.random() * HELD_BACK
            self.statistics.reordered += 1
        elif way.late:
            due = max(due, way.due)
        elif due <= now:
            self._deliver(way, source, destination, frame)
            return
        if ordered:
            way.late += 1
            way.due = due
        self.statistics.delayed += 1
        self._order += 1
        heapq.heappush(self._late, (due, self._order, ordered, source, destination, frame))
        if self._timer_loop is not loop or self._timer is None or self._timer.when() > due:
            self._set_timer(loop)

    def _deliver(self, way: _Way, source: PeerId, destination: PeerId, frame: bytes) -> None:
        self.statistics.delivered += 1
        self._ends[destination]._put(source, frame, way)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None and self._timer_loop is loop:
            self._timer.cancel()
        self._timer = loop.call_at(self._late[0][0], self._arrive) if self._late else None
        self._timer_loop = loop

    def _arrive(self) -> None:
        """Everything that is due arrives, in the order in which it is due."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._late and self._late[0][0] <= now:
            _, _, ordered, source, destination, frame = heapq.heappop(self._late)
            way = self._way(source, destination)
            way.late -= ordered
            if self.connected(source, destination):
                self._deliver(way, source, destination, frame)
            else:
                self.statistics.lost += 1
                way.release(len(frame) + FRAME_COST)
        self._timer = None
        self._set_timer(loop)
