"""The ticket: what travels instead of a message that is too large for a ring.

    element  :=  MessagePack ext of type 84, whose data is MessagePack
                 [owner, number, generation, size, checksum, codec]

The message itself, encoded, lies in a *claim*: a file of the owner, which is the worker (or the gateway) that sent it.
`size` and `checksum` (CRC-32; 0 where the level needs none) are those of the message; `codec` is the name of the one
that encoded it, empty for MessagePack. `generation` tells uses of the same file apart.

A ticket stands in a run of its own. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from actors.errors import BadRecord
from actors.sealed import extension, is_sealed

EXT = 84  # "T"
ALONE = b"\x91"  # how the run of one message begins


class Large(NamedTuple):
    """A message that waits for its claim: what `codec` has made of it, in `parts` that stand one behind the other.

    Each is contiguous, of bytes. `claim`: the number of the one that it has been written to already.
    """

    codec: str
    parts: tuple[bytes | memoryview, ...]
    claim: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def whole(self) -> bytes | memoryview:
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def copied(self) -> Large:
        """The same, but for what can change: that is copied."""
        if all(map(_is_fixed, self.parts)):
            return self
        return self._replace(parts=(b"".join(self.parts),))


class Ticket(NamedTuple):
    owner: str
    number: int
    generation: int
    size: int
    checksum: int
    codec: str

    def element(self) -> bytes:
        return msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT, msgspec.msgpack.encode(tuple(self))))


def _is_fixed(part: bytes | memoryview) -> bool:
    return isinstance(part, bytes) or (part.readonly and isinstance(part.obj, bytes))


def ticket_in(encoded: bytes | memoryview) -> Ticket | None:
    """The ticket that this message, as it stands in a run, is; None if it is there itself. BadRecord for a bad one."""
    if not is_sealed(encoded):
        return None
    kind, data = extension(encoded)
    if kind != EXT:
        return None
    try:
        return Ticket(*msgspec.msgpack.decode(data, type=tuple[str, int, int, int, int, str]))
    except msgspec.MsgspecError as error:
        raise BadRecord(f"not a ticket: {error}", len(data)) from error


def ticket_of(body: bytes | memoryview) -> Ticket:
    """The one in a run that is flagged as a claim."""
    ticket = ticket_in(memoryview(body)[len(ALONE) :])
    if ticket is None:
        raise BadRecord("not the run of a ticket", len(body))
    return ticket
