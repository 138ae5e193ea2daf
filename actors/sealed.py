"""The element: one message that a codec other than MessagePack has encoded, as it stands in a run, alone or in a dead
letter.

    element  :=  MessagePack ext of type 67, whose data is:  length of the name u8 | name, ASCII | payload

No message that is encoded as MessagePack begins like this (they are arrays), so an element says by itself which codec
has made it, wherever and whenever it is read: in a ring, in a journal, in a dead letter. A run of them is a run like
any other, an array, and is split into its messages without their codec.

Pure. What another process wrote is checked before it is believed.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from actors.errors import BadRecord

EXT = 67  # "C"
LONGEST_NAME = 64
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_HEADS = {0xC7: struct.Struct(">BB"), 0xC8: struct.Struct(">BH"), 0xC9: struct.Struct(">BI")}
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_TYPE_BYTES = 1


class Opened(NamedTuple):
    """`codec`: its name; `payload` is a view of the element."""

    codec: str
    payload: memoryview


def head(codec: bytes, size: int) -> bytes:
    """How an element begins whose payload, of `size` bytes, is by the codec of this name."""
    length = 1 + len(codec) + size
    if length < 1 << 8:
        return b"\xc7%c%c%c%b" % (length, EXT, len(codec), codec)
    if length < 1 << 16:
        return b"\xc8%b%c%c%b" % (length.to_bytes(2, "big"), EXT, len(codec), codec)
    return b"\xc9%b%c%c%b" % (length.to_bytes(4, "big"), EXT, len(codec), codec)


def is_sealed(encoded: bytes | memoryview) -> bool:
    """Whether this message is an element; otherwise it is MessagePack."""
    return len(encoded) > 0 and (encoded[0] in _HEADS or encoded[0] in _FIXED)


def extension(element: bytes | memoryview) -> tuple[int, memoryview]:
    """Type and data of a MessagePack ext. Raises BadRecord for what is none."""
    view = memoryview(element)
    if view and view[0] in _FIXED:
        at, length = 1, _FIXED[view[0]]
    elif view and view[0] in _HEADS and len(view) >= _HEADS[view[0]].size:
        at = _HEADS[view[0]].size
        _, length = _HEADS[view[0]].unpack_from(view)
    else:
        raise BadRecord("not a message of a codec", len(view))
    begin = at + _TYPE_BYTES
    if len(view) != begin + length or length < 1:
        raise BadRecord("not a message of a codec", len(view))
    return view[at], view[begin:]


def unseal(element: bytes | memoryview) -> Opened:
    """Raises BadRecord for what is none."""
    kind, data = extension(element)
    if kind != EXT:
        raise BadRecord("not a message of a codec", len(data))
    end = 1 + data[0]
    name = bytes(data[1:end]).decode("latin-1")
    if end > len(data) or not NAME.fullmatch(name):
        raise BadRecord("the name of its codec cannot be read", len(data))
    return Opened(name, data[end:])
