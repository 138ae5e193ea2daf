"""Runs of messages that a codec has encoded: what RunCodec is for MessagePack.

Each message is encoded at `send`, as an element (`actors.sealed`), and a run is the array of its elements. At the
receiver a run is only split; its messages are decoded one at a time, in the call of each handler, so that what a codec
raises, or dies of, is blamed on the message at hand and on no other.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from actors.codec import RunCodec, summary
from actors.codecs import Codec, encode_parts
from actors.errors import BadMessage, BadRecord, CodecRefused, MessageTooLarge
from actors.fixed import is_fixed
from actors.fixed_runs import FixedInlet, FixedRuns
from actors.message import Message, type_name
from actors.plan import Plan
from actors.sealed import head
from actors.tickets import Large
from actors.unpacking import PlainInlet
from actors.views import Views

_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def run_codec(plan: Plan, type_: type) -> RunCodec:
    """For sending messages of this class, and for reading a single one."""
    if is_fixed(type_):
        return FixedRuns(type_)
    codec = plan.codec(type_)
    return RunCodec(type_) if codec is None else CodecRuns(type_, codec)


def inlet_codec(plan: Plan, type_: type, views: Views) -> RunCodec:
    """For handing messages of this class to handlers. What it lends them is noted in `views`."""
    if is_fixed(type_):
        return FixedInlet(type_, views)
    codec = plan.codec(type_)
    return PlainInlet(type_) if codec is None else CodecInlet(type_, codec)


class CodecRuns(RunCodec):
    """The side that sends."""

    def __init__(self, type_: type, codec: Codec) -> None:
        self.type = type_
        self.type_name = type_name(type_)
        self.late, self.packing = False, None
        self.codec = codec
        self._name = codec.name.encode()

    def encode_run(self, messages: Sequence[Any]) -> bytes:
        return self.join([self.encode_one(message) for message in messages])

    def check_run(self, body: bytes, messages: Sequence[Any] | None = None) -> None:
        """Whoever encodes it vouches for it: what cannot be decoded again is found out by the receiver."""

    def encode_one(self, message: Any) -> bytes:
        large = self._encode(message)
        return b"".join((head(self._name, large.size), *large.parts))

    def encode_alone(self, message: Any, in_ring: int, largest: int) -> bytes | Large:
        large = self._encode(message)
        size = large.size
        if size > max(in_ring, largest):
            raise MessageTooLarge(self.type_name, size, max(in_ring, largest))
        start = head(self._name, size)
        if len(start) + size <= in_ring:
            return b"".join((start, *large.parts))
        return large

    def _encode(self, message: Any) -> Large:
        try:
            return Large(self.codec.name, tuple(map(_part, encode_parts(self.codec, message))))
        except Exception as error:
            told = str(error) if isinstance(error, (msgspec.MsgspecError, TypeError)) else _named(error)
            raise BadMessage(0, self.type_name, summary(message), f"codec {self.codec.name!r}: {told}") from error

    def decode_run(self, body: bytes | memoryview) -> list[Any]:
        return [self.decode_one(element) for element in _elements(body, self.type_name)]

    def decode_one(self, encoded: bytes | memoryview | Large) -> Any:
        """The message. CodecRefused if another codec made it; BadRecord, with its cause, if this one cannot read it.

        A Message that was sent before its class had a codec is read as the MessagePack that it is.
        """
        name, data = self.payload(encoded)
        if not name and issubclass(self.type, Message):
            return RunCodec(self.type).decode_one(data)
        if name != self.codec.name:
            raise CodecRefused(self.type_name, name or "msgpack", self.codec.name)
        payload = memoryview(data)
        try:
            message = self.codec.decode(payload.toreadonly(), self.type)
        except Exception as error:
            raise BadRecord(
                f"codec {name!r} cannot decode this {self.type_name}: {_named(error)}", len(payload)
            ) from error
        if not isinstance(message, self.type):
            made = type_name(type(message))
            raise BadRecord(f"codec {name!r} has made a {made} of a {self.type_name}", len(payload))
        return message


class CodecInlet(CodecRuns):
    """The side that receives: what its runs consist of are elements, until they come to a handler."""

    def __init__(self, type_: type, codec: Codec) -> None:
        super().__init__(type_, codec)
        self.late = True  # an element cannot change, so every handler may be given the same one

    def decode_run(self, body: bytes | memoryview) -> list[Any]:
        return _elements(body, self.type_name)

    def decode_one(self, encoded: bytes | memoryview | Large) -> Any:
        return encoded

    def calling(self, method: Callable[[Any], object], batch: bool) -> Callable[[Any], object]:
        decode = super().decode_one
        if batch:
            return lambda elements: method([decode(element) for element in elements])
        return lambda element: method(decode(element))


def _elements(body: bytes | memoryview, type_name: str) -> list[Any]:
    try:
        return [memoryview(one) for one in _split(body)]
    except msgspec.MsgspecError as error:
        raise BadRecord(f"not a run of {type_name}: {error}", len(body)) from error


def _part(data: Any) -> bytes | memoryview:
    if isinstance(data, bytes):
        return data
    if not isinstance(data, (bytearray, memoryview)):
        raise TypeError(f"encode returned {type(data).__name__}, not bytes")
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous and view.nbytes else bytes(view)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
