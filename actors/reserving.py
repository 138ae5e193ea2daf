"""`Handler.reserve`: rows that a handler fills in, sent as one run when the block ends.

    with self.reserve(Tick, n) as rows: ...

The rows are zeros in the beginning, unless that is not wanted. They leave with the transaction, in order with all else
that it sends; a block that is left by an exception sends nothing. They are written

- in the ring itself, where nothing has to be written before (level memory), one worker is to get them, and the ring has
  room for them behind all that was sent to it before. They become visible by the commit, which moves the tail. What is
  reserved next, of the same transaction, follows right behind them;
- in a buffer otherwise, which is the body of the run. Rows for which one record has no room are cut into several runs.

Rows are lent (`actors.views`): one that outlives the transaction is an error before anything of it is committed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import cache
from types import TracebackType
from typing import Any, Protocol

from actors.errors import TooManyRows, UnroutedMessage
from actors.fixed import FixedMessage, dtype_of, is_fixed, numpy
from actors.fixed_runs import FixedRuns, elements
from actors.layout import FINGERPRINT
from actors.outgoing import EncodedRun, Lane, LocalSend, Outgoing
from actors.views import Views

MOST_BYTES = 1 << 28  # of rows in one transaction: it is one record of the journal


@cache
def rows_in(cls: type[FixedMessage]) -> Callable[[memoryview], Any]:
    """What makes rows of the body of a run."""
    module, dtype = numpy(), dtype_of(cls)
    none = module.zeros(0, dtype)
    frombuffer = module.frombuffer
    return lambda body: frombuffer(body, dtype, -1, FINGERPRINT) if len(body) > FINGERPRINT else none[:]


class InPlace(Protocol):
    """Room in a ring behind all that was sent, for the body of one run."""

    view: memoryview
    sent: bool

    @property
    def is_enough(self) -> bool:
        """For one transaction."""

    def lent(self, rows: weakref.ref[Any], type_name: str, handler: str) -> None:
        """These rows are over it."""

    def __len__(self) -> int: ...


class Reserver:
    """Of one worker. `in_place(peer, size)`: room in the ring to this peer, if there is some; `records`: the longest
    body of a run, by peer."""

    def __init__(
        self,
        outgoing: Outgoing,
        views: Views,
        in_place: Callable[[int, int], InPlace | None],
        records: Mapping[int, int],
    ) -> None:
        self.outgoing, self.views, self.in_place, self.records = outgoing, views, in_place, records

    def of(self, handler: str, lanes: Mapping[type, Lane]) -> Callable[..., Reservation]:
        """The `reserve` of one handler."""

        def reserve(message: type, count: int, *, zeroed: bool = True) -> Reservation:
            lane = lanes.get(message) if isinstance(message, type) else None
            if lane is None or type(count) is not int or count < 0:
                refuse(message, count)
            assert lane is not None
            codec = lane.codec
            assert isinstance(codec, FixedRuns)
            if self.outgoing.row_bytes + count * codec.layout.size > MOST_BYTES:
                largest = max(0, MOST_BYTES - self.outgoing.row_bytes) // codec.layout.size
                raise TooManyRows(codec.type_name, count, largest, handler)
            return Reservation(self, lane, codec, count, zeroed)

        def refuse(message: type, count: int) -> None:
            if not is_fixed(message):
                text = getattr(message, "__name__", None) or repr(message)
                raise TypeError(f"reserve({text}, ...): rows are of subclasses of FixedMessage; use send()")
            if not isinstance(count, int) or isinstance(count, bool):
                raise TypeError(f"reserve({message.__name__}, {count!r}): the number of rows is an int")
            if count < 0:
                raise ValueError(f"reserve({message.__name__}, {count}): the number of rows is 0 or more")
            if message not in lanes:
                raise UnroutedMessage(handler, message.__name__, tuple(known.__name__ for known in lanes))

        return reserve


class Reservation:
    """The context manager; good for one `with`."""

    __slots__ = ("_buffer", "_codec", "_count", "_entered", "_lane", "_place", "_reserver", "_rows", "_zeroed")

    def __init__(self, reserver: Reserver, lane: Lane, codec: FixedRuns, count: int, zeroed: bool) -> None:
        self._reserver = reserver
        self._lane = lane
        self._codec = codec
        self._count = count
        self._zeroed = zeroed
        self._entered = False
        self._place: InPlace | None = None
        self._rows: Any = None  # inside the block
        self._buffer: bytearray  # where there is no place in the ring

    def __enter__(self) -> Any:
        if self._entered:
            raise RuntimeError("these rows were reserved before: call reserve() again for others")
        self._entered = True
        lane, codec, outgoing = self._lane, self._codec, self._reserver.outgoing
        size = FINGERPRINT + self._count * codec.layout.size
        place = None
        if self._count and len(lane.peers) == 1 and not lane.local and outgoing.is_unused(lane.peers[0]):
            place = self._place = self._reserver.in_place(lane.peers[0], size)
        outgoing.row_bytes += size
        if place is None:
            self._buffer = bytearray(size)
            body = memoryview(self._buffer)
            outgoing.rows_wait(size)
        else:
            body = place.view
            outgoing.rows_full |= place.is_enough
        body[:FINGERPRINT] = codec.fingerprint
        rows = rows_in(codec.type)(body)
        if place is not None:
            place.lent(weakref.ref(rows), codec.type_name, lane.source)
            if self._zeroed:
                rows.view("u1").fill(0)
        self._rows = self._reserver.views.lend(rows, codec.type_name, shared=False)
        # failpoint: rows-reserved
        return rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        place, self._place, self._rows = self._place, None, None
        if kind is not None or not self._count:
            return
        outgoing, lane, count = self._reserver.outgoing, self._lane, self._count
        # failpoint: rows-written
        if place is not None:
            if outgoing.is_unused(lane.peers[0]):
                place.sent = True
                outgoing.add(EncodedRun(lane.route, count, 0, lane.peers, place))  # type: ignore[arg-type]
                # failpoint: rows-sent
                return
            self._buffer = bytearray(place.view)  # what was sent inside the block goes first
        if lane.peers:
            outgoing.add_rows(lane, [EncodedRun(lane.route, *run) for run in self._runs()])
        if lane.local:
            outgoing.local.extend(LocalSend(lane, one) for one in elements(memoryview(self._buffer), count))
        # failpoint: rows-sent

    def _runs(self) -> list[Any]:
        codec, peers, body = self._codec, self._lane.peers, self._buffer
        record = min(self._reserver.records[peer] for peer in peers)
        if len(body) <= record:
            return [(self._count, 0, peers, body)]
        size = codec.layout.size
        most = max(1, (record // 2 - FINGERPRINT) // size)
        rows = memoryview(body)[FINGERPRINT:]
        return [
            (min(most, self._count - at), 0, peers, b"".join((codec.fingerprint, rows[at * size : (at + most) * size])))
            for at in range(0, self._count, most)
        ]
