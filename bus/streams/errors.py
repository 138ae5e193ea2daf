"""Errors of the stream transports. Pure.

Three families. `TransportError`: the caller must do something. `StreamFault`: why one connection was given up, while
the transport and all other connections live on; it is logged and counted by the name of its class, never raised to who
sends or receives. `HandshakeFailed`: the faults of before a connection was one; those with a `refusal` are told to
the other end. As in bus/errors.py, `args` are the constructor's arguments.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from bus.errors import BusError

PeerId = int | str


class Refusal(IntEnum):
    """What the end that refuses tells the other one. Only a hint: it is not authenticated."""

    MALFORMED = 1
    VERSION = 2
    SECURITY = 3
    WRONG_KEY = 4
    WRONG_PEER = 5
    SAME_ID = 6
    FRAME_LIMIT = 7
    ALREADY_CONNECTED = 8
    TOO_MANY_PEERS = 9


# ------------------------------------------------------------------------------------------- what the caller sees
class TransportError(BusError):
    """A transport cannot do what it was asked for."""


class TransportClosed(TransportError, ConnectionError):
    """The transport was closed by its user."""

    def __str__(self) -> str:
        return "this transport was closed"


class AddressInUse(TransportError):
    """Another socket listens there; it is left alone."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address

    def __str__(self) -> str:
        return f"{self.address} is in use: somebody listens there"


class InsecureAddress(TransportError, ValueError):
    """Frames would leave this machine with nothing that says who sends them."""

    def __init__(self, address: str, purpose: str) -> None:
        super().__init__(address, purpose)
        self.address = address
        self.purpose = purpose

    def __str__(self) -> str:
        return (
            f"refusing to {self.purpose} {self.address}: it is beyond loopback. Give key= (the same secret to all"
            " peers), or tls= with contexts whose verify_mode is CERT_REQUIRED, or use 127.0.0.1, ::1, or a UnixAddress"
        )


class UnusableSocketFile(TransportError):
    """There cannot be a socket file at this path; nothing was changed."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen at {self.path}: {self.reason}"


class FrameTooLarge(TransportError, ValueError):
    """The caller's frame is longer than any that this transport carries, or empty."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a frame has 1 to {self.limit} bytes, not {self.size}"


# ------------------------------------------------------------------------------------------- why a connection ended
class StreamFault(BusError):
    """Why one connection was given up."""


class FrameTooLong(StreamFault):
    """The other end announced a frame longer than agreed, or does not speak this protocol at all."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(length, limit)
        self.length = length
        self.limit = limit

    def __str__(self) -> str:
        return f"a frame of {self.length} bytes was announced, the limit is {self.limit}"


class FrameForged(StreamFault):
    """A sealed frame was not made by who has the key, or is not the next one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"the seal of frame {self.number} does not fit: it was changed, left out, or sent by somebody else"


class PeerSilent(StreamFault):
    """Not even a heartbeat came for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"nothing was heard for {self.seconds:.1f} s"


class ConnectionLost(StreamFault):
    """The connection ended or broke, or the machine between did."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return self.cause


class CannotAccept(StreamFault):
    """This end has no descriptor, or no memory, for one more connection. Who waits for it goes on waiting."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return self.cause


class Replaced(StreamFault):
    """A newer connection with the same peer took the place of this one."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(peer)
        self.peer = peer

    def __str__(self) -> str:
        return f"a newer connection with {self.peer!r} took its place"


# ------------------------------------------------------------------------------------------- why there is none
class HandshakeFailed(StreamFault):
    """The two ends did not come to be connected."""

    refusal: ClassVar[Refusal | None] = None
    lasting: bool = False  # somebody has to change something first: trying again soon is of no use


class MalformedHandshake(HandshakeFailed):
    """The other end does not follow the protocol."""

    refusal = Refusal.MALFORMED
    lasting = True

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"malformed handshake: {self.reason}"


class VersionMismatch(HandshakeFailed):
    """The other end speaks another version of the protocol."""

    refusal = Refusal.VERSION
    lasting = True

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(ours, theirs)
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        newer = "this end" if self.theirs > self.ours else "the other end"
        return f"the other end speaks version {self.theirs}, this one {self.ours}; {newer} must be updated"


class SecurityMismatch(HandshakeFailed):
    """One end has a key and the other has none, or they do not see the same kind of socket."""

    refusal = Refusal.SECURITY
    lasting = True

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(ours, theirs)
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return f"the other end works {self.theirs}, this one {self.ours}"


class WrongKey(HandshakeFailed):
    """The other end does not have our key."""

    refusal = Refusal.WRONG_KEY
    lasting = True

    def __str__(self) -> str:
        return "the other end does not have our key"


class WrongPeer(HandshakeFailed):
    """Somebody else than the wanted peer answered at its address."""

    refusal = Refusal.WRONG_PEER
    lasting = True

    def __init__(self, wanted: PeerId, found: PeerId) -> None:
        super().__init__(wanted, found)
        self.wanted = wanted
        self.found = found

    def __str__(self) -> str:
        return f"{self.found!r} answered where {self.wanted!r} was expected"


class SameId(HandshakeFailed):
    """The other end has our own id: it is this very transport, or another one that was given the same id."""

    refusal = Refusal.SAME_ID
    lasting = True

    def __init__(self, peer: PeerId, itself: bool) -> None:
        super().__init__(peer, itself)
        self.peer = peer
        self.itself = itself

    def __str__(self) -> str:
        return f"{self.peer!r} met {'itself' if self.itself else 'another transport with its own id'}"


class FrameLimitMismatch(HandshakeFailed):
    """The ends were opened with different max_frame_bytes: what one sends the other would refuse."""

    refusal = Refusal.FRAME_LIMIT
    lasting = True

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(ours, theirs)
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return f"max_frame_bytes is {self.theirs} at the other end and {self.ours} here"


class AlreadyConnected(HandshakeFailed):
    """Both ends connected to each other at once, and the other connection stays."""

    refusal = Refusal.ALREADY_CONNECTED

    def __init__(self, peer: PeerId) -> None:
        super().__init__(peer)
        self.peer = peer

    def __str__(self) -> str:
        return f"{self.peer!r} is already connected"


class TooManyPeers(HandshakeFailed):
    """This end has as many connections as it may have."""

    refusal = Refusal.TOO_MANY_PEERS

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"there are {self.limit} peers already"


class RefusedByPeer(HandshakeFailed):
    """The other end refused, and said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        self.lasting = code not in {Refusal.ALREADY_CONNECTED, Refusal.TOO_MANY_PEERS}

    def __str__(self) -> str:
        known = {one.value: one.name.lower().replace("_", " ") for one in Refusal}
        return f"the other end refused: {known.get(self.code, f'reason {self.code}')}"


class ForeignUser(HandshakeFailed):
    """Without a key, only processes of the same user may be at the other end of a Unix socket."""

    lasting = True

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return f"the other end belongs to user {self.found}, not {self.expected}, and there is no key"


class BeyondLoopback(HandshakeFailed):
    """A name of this machine led to another one, and there is neither key nor TLS."""

    lasting = True

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address

    def __str__(self) -> str:
        return f"{self.address} is beyond loopback, and there is neither key nor TLS"


class HandshakeTimedOut(HandshakeFailed):
    """The other end did not finish in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"not connected after {self.seconds:g} s"


class PushedOut(HandshakeFailed):
    """More connections than allowed had not finished their handshakes, and this was the oldest of them."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"more than {self.limit} connections were in their handshakes, this one for longest"


class TlsFailed(HandshakeFailed):
    """The TLS contexts of the two ends do not accept each other."""

    lasting = True

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"TLS: {self.cause}"
