"""MessagePack around large buffers: a message is encoded in parts, some of which are its own buffers, uncopied.

    parts  :=  array header, fields, bin header | buffer | fields, bin header | buffer | ... | fields

One behind the other they are what the encoder makes of the message. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import fields

from actors.annotations import alternatives

BUFFERS = frozenset({bytes, bytearray, memoryview})
LEAST = 1 << 14  # bytes of a buffer that is worth it

Part = bytes | memoryview

_BIN16, _BIN32 = struct.Struct(">BH"), struct.Struct(">BI")
_MOST = (1 << 32) - 1

_encode = msgspec.msgpack.Encoder().encode


def parts_of(type_: type[msgspec.Struct]) -> Callable[[Any], tuple[Part, ...] | None] | None:
    """What makes parts of messages of this class: None for one that has no large buffer. None if no field is one."""
    config = type_.__struct_config__
    names = [one.name for one in fields(type_) if not BUFFERS.isdisjoint(alternatives(one.type))]
    every = type_.__struct_fields__
    if not names or not config.array_like or config.tag is not None or len(every) > 15:
        return None

    def parts(message: Any) -> tuple[Part, ...] | None:
        for name in names:
            value = getattr(message, name)
            if type(value) in BUFFERS and len(value) >= LEAST:
                return _parts(message, every)
        return None

    return parts


def _parts(message: Any, names: tuple[str, ...]) -> tuple[Part, ...] | None:
    done: list[Part] = []
    small = [bytes((0x90 | len(names),))]
    for name in names:
        value = getattr(message, name)
        if type(value) in BUFFERS and len(value) >= LEAST:
            view = memoryview(value)
            if not view.c_contiguous or view.nbytes > _MOST:
                return None
            done += [b"".join((*small, _bin(view.nbytes))), value if type(value) is bytes else view.cast("B")]
            small = []
        else:
            small.append(_encode(value))
    return (*done, b"".join(small)) if small else tuple(done)


def _bin(size: int) -> bytes:
    return _BIN16.pack(0xC5, size) if size < 1 << 16 else _BIN32.pack(0xC6, size)
