"""Codecs: how messages are encoded that are not MessagePack.

    topology.codec(Order, JSON)               # Order(Message), as JSON
    topology.codec(Invoice, ProtobufCodec())  # any class, by a codec of your own
    topology.codec(bytes, RAW)                # bytes as they are
    topology.codec(Plot, PICKLE)              # what can be pickled: its receiver executes what its sender says

A class that the topology gives a codec is routed, sent and handled like a subclass of Message, which it need not be.
Its messages are encoded when they are sent, and decoded for each handler that gets them: what a handler changes in a
message changes nothing elsewhere. The codec's name travels with every message; see `actors.sealed`.

Pure. Nothing that came from outside is executed, but by PICKLE, for the classes that the topology gives it.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec
from msgspec.structs import fields

from actors.annotations import alternatives
from actors.message import check_encodable, type_name


@runtime_checkable
class Codec(Protocol):
    """What a codec has to have. Workers get it by pickle, and each uses it in one thread.

    `name` tells in rings, journals and dead letters what a message was encoded by: 1 to 64 of a-z, 0-9, `.`, `_` and
    `-`, beginning with a letter or a digit. It is for ever: a codec that encodes in another way needs another name.
    """

    @property
    def name(self) -> str: ...

    def accepts(self, type_: type, /) -> str | None:
        """None, or why messages of this class cannot be carried, as a sentence without its subject: "it has no ..."."""

    def encode(self, message: Any, /) -> bytes | bytearray | memoryview:
        """What it raises, `send` raises as BadMessage: the sender is at fault."""

    def decode(self, data: memoryview, type_: type, /) -> Any:
        """The message again: of class `type_`, and equal to what was encoded. `data` is read-only, and may be kept.

        What it raises counts like an exception of the handler: after its attempts the message is a dead letter.
        """


class _Json(msgspec.Struct, frozen=True):
    """Messages as JSON: an array of the fields in their order, checked against their types at both ends."""

    name: str = "json"

    def accepts(self, type_: type, /) -> str | None:
        if not issubclass(type_, msgspec.Struct):
            return "JSON is for subclasses of Message"
        problems = check_encodable(type_)
        return f"field {problems[0]}" if problems else None

    def encode(self, message: Any, /) -> bytes:
        encoded = msgspec.json.encode(message)
        msgspec.json.decode(encoded, type=type(message))  # what the receiver would not accept is the sender's fault
        return encoded

    def decode(self, data: memoryview, type_: type, /) -> Any:
        return msgspec.json.decode(data, type=type_)


class _Raw(msgspec.Struct, frozen=True):
    """Bytes as they are: `bytes`, `memoryview`, or a Message whose one field is one of these.

    A view is one of the message itself, read-only: nothing is copied for it.
    """

    name: str = "raw"

    def accepts(self, type_: type, /) -> str | None:
        if type_ in _BUFFERS or _only_buffer(type_) is not None:
            return None
        return "raw is for bytes, memoryview, or a Message with one field, of one of these types"

    def encode(self, message: Any, /) -> bytes | bytearray | memoryview:
        type_: type = type(message)
        only = _only_buffer(type_)
        data = message if only is None else getattr(message, only[0])
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected bytes, got {type(data).__name__}")
        return data

    def decode(self, data: memoryview, type_: type, /) -> Any:
        only = _only_buffer(type_)
        if only is None:
            return data if type_ is memoryview else bytes(data)
        return type_(data if only[1] is memoryview else bytes(data))


class _Pickle(msgspec.Struct, frozen=True):
    """Whatever cloudpickle can pickle. The class itself is never in it: it is the one that the topology names.

    Large buffers inside the message (NumPy arrays, Arrow tables, pickle.PickleBuffer) stand beside the pickle, and what
    the receiver gets are read-only views of the message.

        payload  :=  pickle
                  |  zero u32, count u32, sizes u64 (of the pickle and of each buffer), pickle, buffers: each aligned
    """

    name: str = "pickle"

    def accepts(self, type_: type, /) -> str | None:
        return None

    def encode(self, message: Any, /) -> bytes:
        return b"".join(self.parts(message))

    def parts(self, message: Any, /) -> list[bytes | memoryview]:
        """The payload, in parts that stand one behind the other: its buffers are those of the message."""
        from actors.message_pickler import MessagePickler  # cloudpickle takes long to import

        file = io.BytesIO()
        pickler = MessagePickler(file, type(message))
        pickler.dump(message)
        if not pickler.buffers:
            return [file.getvalue()]
        parts = [file.getbuffer(), *(buffer.raw() for buffer in pickler.buffers)]
        sizes = [part.nbytes for part in parts]
        laid: list[bytes | memoryview] = [_BESIDE.pack(0, len(pickler.buffers)), struct.pack(f"<{len(sizes)}Q", *sizes)]
        at = sum(map(len, laid))
        for part in parts:
            laid += [bytes(-at % _ALIGNED), part]
            at += -at % _ALIGNED + part.nbytes
        return laid

    def decode(self, data: memoryview, type_: type, /) -> Any:
        if not data or data[0]:
            return _MessageUnpickler(io.BytesIO(data), type_, ()).load()
        _, count = _BESIDE.unpack_from(data)
        sizes = struct.unpack_from(f"<{count + 1}Q", data, _BESIDE.size)
        at, parts = _BESIDE.size + 8 * len(sizes), []
        for size in sizes:
            at += -at % _ALIGNED
            parts.append(data[at : at + size])
            at += size
        return _MessageUnpickler(io.BytesIO(parts[0]), type_, parts[1:]).load()


JSON: Codec = _Json()
RAW: Codec = _Raw()
PICKLE: Codec = _Pickle()
BUILT_IN = (JSON, RAW, PICKLE)
RESERVED = frozenset({"msgpack", *(codec.name for codec in BUILT_IN)})
"""Names that only the codecs here may have; `msgpack` is that of messages without a codec."""


def encode_parts(codec: Codec, message: Any) -> Sequence[bytes | bytearray | memoryview]:
    """What the codec makes of a message, copied as little as it can be."""
    return codec.parts(message) if isinstance(codec, _Pickle) else (codec.encode(message),)


_BUFFERS = (bytes, memoryview)
THE_CLASS = "class"  # what stands in a pickle for the class of the message
_BESIDE = struct.Struct("<II")
_ALIGNED = 64


class _MessageUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, type_: type, buffers: Sequence[memoryview]) -> None:
        super().__init__(file, buffers=buffers)
        self._type = type_

    def persistent_load(self, pid: Any) -> type:
        if pid != THE_CLASS:
            raise pickle.UnpicklingError(f"unknown reference {pid!r} in a {type_name(self._type)}")
        return self._type


@functools.lru_cache(maxsize=256)
def _only_buffer(type_: type) -> tuple[str, type] | None:
    """The name and the type of the one field that a struct class has, if it is bytes or a view of some."""
    if not issubclass(type_, msgspec.Struct) or len(type_.__struct_fields__) != 1:
        return None
    (field,) = fields(type_)
    leaves = alternatives(field.type)
    return (field.name, leaves[0]) if len(leaves) == 1 and leaves[0] in _BUFFERS else None
