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
    """A message that waits for its claim: what `codec` has made of it."""

    codec: str
    data: bytes | memoryview

    @property
    def size(self) -> int:
        return self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)


class Ticket(NamedTuple):
    owner: str
    number: int
    generation: int
    size: int
    checksum: int
    codec: str

    def element(self) -> bytes:
        return msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT, msgspec.msgpack.encode(tuple(self))))


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
