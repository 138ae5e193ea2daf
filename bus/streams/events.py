"""What happens to the connections of a stream transport: each is one frozen record, which feeds the log, the statistics
and whoever listens. Pure. Ids, addresses and reasons only, never contents."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from bus.streams.addresses import PeerId
from bus.streams.errors import AlreadyConnected, ConnectionLost, HandshakeFailed, StreamFault

QUIET_FOR = 1.0  # seconds in which the same is not logged again


@dataclass(frozen=True, slots=True)
class Connected:
    level: ClassVar[int] = logging.INFO
    peer: PeerId
    address: str
    outgoing: bool

    def text(self) -> str:
        return f"connected with {self.peer!r} {'at' if self.outgoing else 'from'} {self.address}"


@dataclass(frozen=True, slots=True)
class Disconnected:
    level: ClassVar[int] = logging.INFO
    peer: PeerId
    address: str
    fault: StreamFault

    def text(self) -> str:
        return f"connection with {self.peer!r} ended: {self.fault}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Somebody connected to us, and did not become a peer."""

    level: ClassVar[int] = logging.WARNING
    address: str  # where we listen
    source: str  # of TCP only
    fault: StreamFault  # ConnectionLost: it went away itself, before it was one

    def text(self) -> str:
        return f"rejected a connection to {self.address}{' from ' * bool(self.source)}{self.source}: {self.fault}"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Not there yet, or gone for the moment: nothing unusual, unless somebody has to mend it."""

    level: ClassVar[int] = logging.INFO
    peer: PeerId
    address: str
    fault: StreamFault
    retry_in: float

    def text(self) -> str:
        return f"cannot connect with {self.peer!r} at {self.address}: {self.fault}; again in {self.retry_in:.2f} s"


StreamEvent: TypeAlias = Connected | Disconnected | Rejected | Unreachable


class Noise:
    """Keeps a log readable while somebody knocks without end: what repeats itself is for the debug level."""

    def __init__(self) -> None:
        self._unreachable: dict[PeerId, str] = {}
        self._last: dict[str, float] = {}

    def level(self, event: StreamEvent, now: float) -> int:
        match event:
            case Unreachable(peer=peer, fault=fault):
                again = self._unreachable.get(peer) == str(fault)
                self._unreachable[peer] = str(fault)
                if again or isinstance(fault, AlreadyConnected):
                    return logging.DEBUG
                lasting = isinstance(fault, HandshakeFailed) and fault.lasting
                return logging.WARNING if lasting else event.level
            case Rejected(fault=AlreadyConnected()):
                return logging.DEBUG
            case Rejected(fault=fault):
                name = type(fault).__name__
                last = self._last.get(name, float("-inf"))
                if now - last < QUIET_FOR:
                    return logging.DEBUG
                self._last[name] = now
                # It went away, or was killed: as usual as the end of a connection.
                return logging.INFO if isinstance(fault, ConnectionLost) else event.level
            case Connected(peer=peer):
                self._unreachable.pop(peer, None)
        return event.level


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """Counted since the opening. `faults`: by the names of their classes, of connections that stood or did not."""

    peers: int  # connected now
    handshakes: int  # under way now, of those who connected to us
    connections: int  # that stood
    sent: int
    received: int
    dropped: int  # frames for peers that were away
    faults: Mapping[str, int]


@dataclass(slots=True)
class Counts:
    connections: int = 0
    sent: int = 0
    received: int = 0
    dropped: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def fault(self, fault: StreamFault) -> None:
        self.faults[type(fault).__name__] += 1

    def statistics(self, peers: int, handshakes: int) -> StreamStatistics:
        return StreamStatistics(
            peers, handshakes, self.connections, self.sent, self.received, self.dropped, dict(self.faults)
        )
