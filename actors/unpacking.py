"""Runs of messages of plain classes, at their receiver: a `bus.Unpacker` makes each message when its turn comes.

It is for the classes that a packer is for (`actors.packing`), but for those with an Enum, and for what their packers
and msgspec make of them. A run with anything else in it, be it right or wrong, is decoded as any other; so is a short
one, for which nothing has to be made ready.

Pure.
"""

from __future__ import annotations

from functools import cached_property
from types import MemberDescriptorType
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import fields

from actors.codec import RunCodec
from actors.packing import packing, plain_types
from bus import RING_IMPLEMENTATION, Unpacker
from bus.send import Kind

LEAST = 1 << 10  # bytes of a run: what comes alone comes sooner without

KINDS = {
    type(None): Kind.NONE,
    bool: Kind.BOOL,
    int: Kind.INT,
    float: Kind.FLOAT,
    str: Kind.TEXT,
    bytes: Kind.BYTES,
}


class Unpacking(NamedTuple):
    """What an Unpacker is made with: see there."""

    prefix: bytes
    fields: tuple[tuple[MemberDescriptorType, int], ...]


def unpacking(type_: type[msgspec.Struct]) -> Unpacking | None:
    """None for a class that an unpacker is not for."""
    packed = packing(type_)
    if packed is None or type_.__struct_config__.gc is not False:
        return None
    made = []
    for field, (descriptor, _, _) in zip(fields(type_), packed.fields, strict=True):
        kinds = Kind(0)
        for leaf in plain_types(field.type) or ():
            if leaf not in KINDS:
                return None
            kinds |= KINDS[leaf]
        made.append((descriptor, int(kinds)))
    return Unpacking(packed.prefix, tuple(made))


class PlainInlet(RunCodec):
    """The side that receives. What `decode_run` returns has a length and slices, and `bus.Progress` takes it."""

    @cached_property
    def _unpacker(self) -> Unpacker | None:
        made = unpacking(self.type) if RING_IMPLEMENTATION == "c" else None
        return None if made is None else Unpacker(self.type, *made)

    def decode_run(self, body: bytes | memoryview) -> Any:
        if len(body) >= LEAST and self._unpacker is not None:
            run = self._unpacker.unpack(body)
            if run is not None:
                return run
        return super().decode_run(body)
