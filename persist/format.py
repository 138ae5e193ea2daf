"""The bytes of a journal: segment headers, frames, and the records within them. Pure; FORMAT.md is the prose.

    segment header (32 bytes)                          frame (16 bytes, body, padding to a multiple of 8)
     0        8        12     16       24      32       0     4        8     9     12      16
    +--------+---------+-----+--------+-------+        +-----+--------+------+-----+-------+------+---------+
    | magic  | version | crc | number | first |        | crc | length | type |loose| epoch | body | padding |
    +--------+---------+-----+--------+-------+        +-----+--------+------+-----+-------+------+---------+

A frame's checksum covers everything from its length to the end of its body and begins with the frame's position, so
that a frame is good only where it was written: neither a copy of a frame inside a payload nor what an earlier use of
the file left behind can be taken for one. `loose` says how much before the frame power loss may have taken.
"""

import struct
from typing import Any, Final
from zlib import crc32

import msgspec

from persist.errors import FrameTooLarge

MAGIC: Final = b"\x89RGLJ\r\n\x1a"  # a byte that is not ASCII, both line ends, end of file: transfers that mangle show
VERSION: Final = 3
READABLE: Final = (1, 2, 3)
# Version 1 has no time and no checksum of the segment before in its snapshots; before version 3, transactions end with
# the dead letters.
SUFFIX: Final = ".journal"
SEGMENT_HEADER: Final = 32
FRAME_HEADER: Final = 16
ALIGNMENT: Final = 8
MAX_LOOSE: Final = 0xFFFFFF  # times ALIGNMENT bytes, or more
MAX_BODY: Final = 1 << 30  # one write() carries a whole frame, and Linux writes less than 2 GiB at a time

SNAPSHOT: Final = 1
TRANSACTION: Final = 2
FRAME_TYPES: Final = (SNAPSHOT, TRANSACTION)

_IDENTITY = struct.Struct("<8sI")  # magic, version
_PLACE = struct.Struct("<QQ")  # segment number, first position
_CRC = struct.Struct("<I")
_AFTER_CRC = struct.Struct("<III")  # length, type and loose, epoch
_FRAME = struct.Struct("<IIB3xI")
_ZEROS = "zeros where a frame should be"
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT))


class Send(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One run of one route. `edges`: (outbound peer, first sequence number) of each receiver."""

    route: int
    count: int
    flags: int
    edges: list[tuple[int, int]]
    body: bytes


class DeadLetter(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A message that was given up on. `peer` is inbound; `time_ns` is wall-clock time."""

    peer: int
    seq: int
    route: int
    handler: str
    type: str
    reason: str
    detail: str
    attempts: int
    time_ns: int
    body: bytes


class Transaction(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One commit. `consumed`: (inbound peer, watermark); `states`: (handler, whole value); `keys`: (handler, key, value
    or None if the key was removed); `removed`: (peer, sequence number) of dead letters that were there before and are
    no longer kept; `attempts`: (inbound peer, sequence number, how often it was tried in vain)."""

    consumed: list[tuple[int, int]] = []
    sends: list[Send] = []
    states: list[tuple[int, bytes]] = []
    keys: list[tuple[int, bytes, bytes | None]] = []
    dead: list[DeadLetter] = []
    removed: list[tuple[int, int]] = []
    attempts: list[tuple[int, int, int]] = []


class Snapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Everything recovery needs but for the unacknowledged sends, and the name tables of its segment.

    The last `retired_*` names of a table are no longer part of the topology; they are kept because something durable
    still carries their index. `assigned` and `acked` are by outbound peer, `watermarks` and `attempts` by inbound peer
    (attempts: (peer, sequence number, count)); `tables`: (handler, key, value). `time_ns`: wall-clock time at which the
    segment was begun; `previous_crc`: CRC-32 of the whole segment before it; 0 where that is not known.
    """

    level: str
    fingerprint: str
    peers: list[str]
    handlers: list[str]
    routes: list[tuple[str, str]]
    watermarks: list[tuple[int, int]] = []
    assigned: list[tuple[int, int]] = []
    acked: list[tuple[int, int]] = []
    states: list[tuple[int, bytes]] = []
    tables: list[tuple[int, bytes, bytes]] = []
    attempts: list[tuple[int, int, int]] = []
    dead: list[DeadLetter] = []
    retired_peers: int = 0
    retired_handlers: int = 0
    retired_routes: int = 0
    time_ns: int = 0
    previous_crc: int = 0


class SegmentHeader(msgspec.Struct, frozen=True):
    """What the first 32 bytes say. Their layout is the same in every format version."""

    version: int
    number: int
    first_position: int


class Frame(msgspec.Struct, frozen=True):
    """One good frame; `end` is the position behind its padding."""

    position: int
    end: int
    type: int
    epoch: int
    body: memoryview


class TornTail(msgspec.Struct, frozen=True):
    """What a crash left behind the last whole frame."""

    file: str
    offset: int
    bytes_dropped: int
    reason: str


class BadFrame(Exception):
    """There is no good frame here. Internal: the reader decides whether it is a torn tail or damage."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Outbox(msgspec.Struct, array_like=True):
    """A transaction without what only recovery of the state needs."""

    consumed: msgspec.Raw
    sends: list[Send]


_encode_into = msgspec.msgpack.Encoder().encode_into
_transactions = msgspec.msgpack.Decoder(Transaction)
_outboxes = msgspec.msgpack.Decoder(_Outbox)
_snapshots = msgspec.msgpack.Decoder(Snapshot)


def decode_transaction(body: bytes | memoryview) -> Transaction:
    """Raises msgspec.DecodeError (which ValidationError is)."""
    return _transactions.decode(body)


def decode_sends(body: bytes | memoryview) -> list[Send]:
    """Only the sends of a transaction. Raises msgspec.DecodeError."""
    return _outboxes.decode(body).sends


def decode_snapshot(body: bytes | memoryview) -> Snapshot:
    """Raises msgspec.DecodeError."""
    return _snapshots.decode(body)


def segment_name(number: int) -> str:
    return f"{number:020d}{SUFFIX}"


def segment_number(name: str) -> int | None:
    """None if this is not the name of a segment."""
    stem = name.removesuffix(SUFFIX)
    if stem == name or len(stem) != 20 or not (stem.isascii() and stem.isdigit()):
        return None
    number = int(stem)
    return number if number < 2**64 else None


REPAIRING: Final[str] = segment_name(2**64 - 1)
"""As the name of a segment: while this file is there, a repair is not finished, and nobody may use the journal. It
holds where the copy of the original is."""


def encode_segment_header(number: int, first_position: int, version: int = VERSION) -> bytes:
    identity, place = _IDENTITY.pack(MAGIC, version), _PLACE.pack(number, first_position)
    return identity + _CRC.pack(crc32(identity + place)) + place


def decode_segment_header(data: bytes) -> SegmentHeader | None:
    """None if these are not the 32 intact bytes of a segment header, of whatever version."""
    if len(data) < SEGMENT_HEADER or data[:8] != MAGIC:
        return None
    if crc32(data[16:32], crc32(data[:12])) != _CRC.unpack_from(data, 12)[0]:
        return None
    _, version = _IDENTITY.unpack_from(data)
    number, first_position = _PLACE.unpack_from(data, 16)
    return SegmentHeader(version, number, first_position)


def seed(position: int) -> int:
    """What the checksum of the frame at `position` begins with: the two halves of the position, one over the other."""
    return (position ^ position >> 32) & 0xFFFFFFFF


def frame_size(length: int) -> int:
    """Bytes on disk of a frame with a body of `length` bytes."""
    return FRAME_HEADER + length + (-length & 7)


def encode_frame(buffer: bytearray, frame_type: int, epoch: int, position: int, record: Any, loose: int = 0) -> None:
    """Make `buffer` hold exactly the frame of `record`, which says that the `loose` bytes before it were not synced
    when it was written: power loss may take them and leave it. FrameTooLarge, or msgspec's errors for what cannot be
    encoded, leave the buffer in an unspecified but reusable state."""
    _encode_into(record, buffer, FRAME_HEADER)
    end = len(buffer)
    length = end - FRAME_HEADER
    if length > MAX_BODY:
        raise FrameTooLarge(length, MAX_BODY)
    _AFTER_CRC.pack_into(buffer, 4, length, frame_type | min(loose // ALIGNMENT, MAX_LOOSE) << 8, epoch)
    view = memoryview(buffer)[4:]
    checksum = crc32(view, (position ^ position >> 32) & 0xFFFFFFFF)
    view.release()
    _CRC.pack_into(buffer, 0, checksum)
    if length & 7:
        buffer += _PADDING[-length & 7]


def decode_frame(data: memoryview, offset: int, position: int) -> Frame:
    """The frame at `offset` of `data`, which stands at `position` of the journal. BadFrame says why it is none; the
    body is a view of `data`."""
    available = len(data) - offset
    if available < FRAME_HEADER:
        raise BadFrame("the frame's header is cut short")
    checksum, length, frame_type, epoch = _FRAME.unpack_from(data, offset)
    if length > MAX_BODY:
        raise BadFrame(f"the frame claims {length} bytes")
    if frame_size(length) > available:
        raise BadFrame("the frame's body is cut short")
    end = offset + FRAME_HEADER + length
    if crc32(data[offset + 4 : end], seed(position)) != checksum:
        raise BadFrame(_ZEROS if not any(data[offset:end]) else "the frame's checksum does not match")
    if frame_type == 0 and not any(data[offset:end]):
        raise BadFrame(_ZEROS)  # at one position in 2^32, zeros have the right checksum
    return Frame(position, position + frame_size(length), frame_type, epoch, data[offset + FRAME_HEADER : end])
