"""Frames of the intersession protocol: bytes to records and back. Pure. WIRE.md is the specification.

Contract
- `decode` takes any bytes whatever and returns a record, or raises WireError; nothing is sliced before its length has
  been checked, and nothing is allocated that the frame itself does not pay for.
- Every record can be encoded, and decodes to an equal one. One record has one encoding only.
- The body of a message frame is that of a stored run: the id of the first message, then each message's length and
  contents. Runs whose numbers and ids follow each other are joined without being taken apart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct

from persist.ilm.errors import WireError
from persist.ilm.message import MAX_ID, MAX_NAME_BYTES, PeerId, check_peer

MAGIC = 0x4C
VERSION = 1
MESSAGE, ACKNOWLEDGEMENT, POLL = 1, 2, 3
ASK, LOST, REFUSES = 1, 2, 4  # flags of a poll
MAX_NUMBER = 2**64 - 2  # the last one is link.UNKNOWN

HEADER = struct.Struct("<BBBBIQQQQ")  # magic, version, kind, flags, count, sender, receiver, number, known
HEADER_BYTES = HEADER.size
RUN_HEAD = struct.Struct("<Q")  # id of the first message
ONE_HEAD = struct.Struct("<QI")  # the same with the length of the first message
LENGTH = struct.Struct("<I")
GREETING = struct.Struct("<QQ")  # nonce, echo
RUN_HEAD_BYTES = RUN_HEAD.size
ENTRY_BYTES = LENGTH.size  # what a message takes besides its contents
MESSAGE_OVERHEAD = HEADER_BYTES + RUN_HEAD_BYTES + ENTRY_BYTES  # what a frame of one message takes besides its contents
BODY_AT = HEADER_BYTES + RUN_HEAD_BYTES  # where the first message of a frame begins
INT_TAG, STR_TAG = 0, 1


class Message(Struct, frozen=True):
    """A run: messages `number` to `number + count - 1`, whose ids begin with `first_id`. `frame` is the whole frame."""

    sender: int
    receiver: int
    number: int
    known: int
    count: int
    first_id: int
    frame: bytes

    def contents(self, skip: int = 0) -> list[bytes]:
        """Of each message but for the first `skip`."""
        return contents(self.frame, BODY_AT, self.count)[skip:]


class Acknowledgement(Struct, frozen=True):
    """Everything up to `number` has been delivered, durably."""

    sender: int
    receiver: int
    number: int
    known: int


class Poll(Struct, frozen=True):
    """Everything up to `number` has arrived; what lies behind is asked for. The greeting of a connection, too."""

    sender: int
    receiver: int
    number: int
    known: int
    nonce: int
    echo: int
    source: PeerId
    destination: PeerId
    ask: bool = False
    lost: bool = False
    refuses: bool = False


Frame: TypeAlias = Message | Acknowledgement | Poll


def encode_peer(peer: PeerId) -> bytes:
    """Tag, length, bytes."""
    check_peer(peer)
    if isinstance(peer, int):
        return bytes((INT_TAG, 8)) + peer.to_bytes(8, "little")
    name = peer.encode()
    return bytes((STR_TAG, len(name))) + name


def decode_peer(buffer: bytes, at: int = 0) -> tuple[PeerId, int]:
    """The id, and where it ends."""
    if len(buffer) < at + 2:
        raise WireError("the head of a peer's id is cut off", len(buffer), at + 2)
    tag, size = buffer[at], buffer[at + 1]
    begin, end = at + 2, at + 2 + size
    if len(buffer) < end:
        raise WireError("a peer's id is cut off", len(buffer), end)
    if tag == INT_TAG:
        if size != 8:
            raise WireError("length of a peer's number", size, 8)
        return int.from_bytes(buffer[begin:end], "little"), end
    if tag != STR_TAG:
        raise WireError("kind of a peer's id", tag, STR_TAG)
    if size == 0:
        raise WireError("length of a peer's name", size, MAX_NAME_BYTES)
    try:
        return buffer[begin:end].decode(), end
    except UnicodeDecodeError as error:
        raise WireError("a peer's name is not UTF-8", error.start, size) from None


def run_body(first_id: int, messages: Sequence[bytes]) -> bytes:
    """What is stored of a run, and travels behind the header of a frame."""
    parts = [RUN_HEAD.pack(first_id)]
    for one in messages:
        parts.append(LENGTH.pack(len(one)))
        parts.append(one)
    return b"".join(parts)


def contents(buffer: bytes, at: int, count: int) -> list[bytes]:
    """The `count` messages from `at` on, which has been checked before."""
    found = []
    unpack = LENGTH.unpack_from
    for _ in range(count):
        begin = at + ENTRY_BYTES
        at = begin + unpack(buffer, at)[0]
        found.append(buffer[begin:at])
    return found


def split(first: int, count: int, body: bytes, room: int) -> list[tuple[int, int, bytes]]:
    """(first, count, body) of runs that are together the given one, and whose bodies have up to `room` bytes; one
    message alone may have more."""
    (first_id,) = RUN_HEAD.unpack_from(body)
    parts: list[tuple[int, int, bytes]] = []
    done, begin, at = 0, RUN_HEAD_BYTES, RUN_HEAD_BYTES
    for index in range(count):
        end = at + ENTRY_BYTES + LENGTH.unpack_from(body, at)[0]
        if index > done and RUN_HEAD_BYTES + end - begin > room:
            parts.append((first + done, index - done, RUN_HEAD.pack(first_id + done) + body[begin:at]))
            done, begin = index, at
        at = end
    parts.append((first + done, count - done, RUN_HEAD.pack(first_id + done) + body[begin:at]))
    return parts


def message_frame(sender: int, receiver: int, number: int, known: int, count: int, parts: Sequence[bytes]) -> bytes:
    """`parts` are the body of a run, then those of the runs that follow it, without the id that each begins with."""
    return b"".join([HEADER.pack(MAGIC, VERSION, MESSAGE, 0, count, sender, receiver, number, known), *parts])


def encode(frame: Acknowledgement | Poll) -> bytes:
    """The bytes of a frame that carries no messages."""
    numbers = (frame.sender, frame.receiver, frame.number, frame.known)
    if isinstance(frame, Acknowledgement):
        return HEADER.pack(MAGIC, VERSION, ACKNOWLEDGEMENT, 0, 0, *numbers)
    flags = (ASK if frame.ask else 0) | (LOST if frame.lost else 0) | (REFUSES if frame.refuses else 0)
    return b"".join(
        [
            HEADER.pack(MAGIC, VERSION, POLL, flags, 0, *numbers),
            GREETING.pack(frame.nonce, frame.echo),
            encode_peer(frame.source),
            encode_peer(frame.destination),
        ]
    )


def decode(frame: bytes) -> Frame:
    """The record of a frame. WireError says what is wrong with it."""
    size = len(frame)
    if size < 2:
        raise WireError("shorter than magic and version", size, 2)
    if frame[0] != MAGIC:
        raise WireError("magic", frame[0], MAGIC)
    if frame[1] != VERSION:
        raise WireError("version", frame[1], VERSION)
    if size < HEADER_BYTES:
        raise WireError("shorter than a header", size, HEADER_BYTES)
    _, _, kind, flags, count, sender, receiver, number, known = HEADER.unpack_from(frame)
    if sender == 0:
        raise WireError("the sender names no store", 0, 1)
    if number > MAX_NUMBER or known > MAX_NUMBER:
        raise WireError("number", max(number, known), MAX_NUMBER)
    if kind == MESSAGE:
        return _message(frame, flags, count, sender, receiver, number, known)
    if count:
        raise WireError("count of a frame without messages", count, 0)
    if kind == POLL:
        return _poll(frame, flags, sender, receiver, number, known)
    if kind != ACKNOWLEDGEMENT:
        raise WireError("kind", kind, POLL)
    if flags:
        raise WireError("flags", flags, 0)
    if receiver == 0:
        raise WireError("the frame names no receiver's store", 0, 1)
    if size != HEADER_BYTES:
        raise WireError("length of an acknowledgement", size, HEADER_BYTES)
    return Acknowledgement(sender, receiver, number, known)


def _message(frame: bytes, flags: int, count: int, sender: int, receiver: int, number: int, known: int) -> Message:
    size = len(frame)
    if flags:
        raise WireError("flags", flags, 0)
    if receiver == 0:
        raise WireError("the frame names no receiver's store", 0, 1)
    if number == 0 or count == 0 or number + count - 1 > MAX_NUMBER:
        raise WireError("numbers of a run", number + count, MAX_NUMBER)
    if size < BODY_AT + ENTRY_BYTES * count:
        raise WireError("shorter than its messages' lengths", size, BODY_AT + ENTRY_BYTES * count)
    (first_id,) = RUN_HEAD.unpack_from(frame, HEADER_BYTES)
    if first_id < number or first_id + count - 1 > MAX_ID:
        raise WireError("ids of a run", first_id, number)
    at = BODY_AT
    unpack = LENGTH.unpack_from
    try:
        for _ in range(count):
            at += ENTRY_BYTES + unpack(frame, at)[0]
    except struct.error:
        raise WireError("a message is cut off", size, at + ENTRY_BYTES) from None
    if at != size:
        raise WireError("length", size, at)
    return Message(sender, receiver, number, known, count, first_id, frame)


def _poll(frame: bytes, flags: int, sender: int, receiver: int, number: int, known: int) -> Poll:
    size = len(frame)
    if flags & ~(ASK | LOST | REFUSES):
        raise WireError("flags", flags, ASK | LOST | REFUSES)
    at = HEADER_BYTES + GREETING.size
    if size < at:
        raise WireError("shorter than a greeting", size, at)
    nonce, echo = GREETING.unpack_from(frame, HEADER_BYTES)
    if nonce == 0:
        raise WireError("nonce", nonce, 1)
    source, at = decode_peer(frame, at)
    destination, at = decode_peer(frame, at)
    if at != size:
        raise WireError("length", size, at)
    said = bool(flags & ASK), bool(flags & LOST), bool(flags & REFUSES)
    return Poll(sender, receiver, number, known, nonce, echo, source, destination, *said)
