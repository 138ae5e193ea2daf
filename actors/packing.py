"""How messages of a class are encoded by a `bus.Packer`: one that encodes a message at once, and knows by the types of
its values that the receiver will accept it.

That is so for classes all fields of which are declared as None, bool, int, float, str, bytes, an Enum or a union of
these. A value of one of these types, exactly, encodes to what its declared type decodes from, and cannot change; an int
is welcome where a float is. Values of other types, subclasses too, a packer refuses.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MemberDescriptorType
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect
from msgspec.structs import fields

from bus.send import Kind

PLAIN = {
    inspect.NoneType: type(None),
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.ByteArrayType: bytearray,
    inspect.MemoryViewType: memoryview,
}
CHANGING = {bytearray, memoryview}  # or what they show can
KINDS = {
    type(None): Kind.NONE,
    bool: Kind.BOOL,
    int: Kind.INT,
    float: Kind.FLOAT | Kind.INT,
    str: Kind.TEXT,
    bytes: Kind.BYTES,
}

_encode = msgspec.msgpack.Encoder().encode


class Packing(NamedTuple):
    """What a Packer is made with: see there."""

    prefix: bytes
    fields: tuple[tuple[MemberDescriptorType, int, dict[int, bytes] | None], ...]


def packing(type_: type[msgspec.Struct]) -> Packing | None:
    """None for a class that a packer is not for."""
    config = type_.__struct_config__
    if not config.array_like or not config.frozen or hasattr(type_, "__post_init__"):
        return None
    packed = []
    for field in fields(type_):
        descriptor, types = getattr(type_, field.name, None), plain_types(field.type)
        if types is None or not CHANGING.isdisjoint(types) or not isinstance(descriptor, MemberDescriptorType):
            return None
        packed.append((descriptor, *_values(types)))
    tag = [] if config.tag is None else [config.tag]
    head = _encode([*tag, *[None] * len(packed)])
    return Packing(head[: len(head) - len(packed)], tuple(packed))


def length_of(packing: Packing | None) -> Callable[[Any], int] | None:
    """What counts the characters and bytes of the values of a message; None where no field may be long."""
    long = [field for field, kinds, _ in packing.fields if kinds & (Kind.TEXT | Kind.BYTES)] if packing else []
    if not long:
        return None

    def length(message: Any) -> int:
        values = (field.__get__(message) for field in long)
        return sum(len(value) for value in values if isinstance(value, str | bytes))

    return length


def plain_types(type_: Any) -> tuple[type, ...] | None:
    """The classes that values of a declared type may have exactly, if it asks for nothing else: a value that is of one
    of them, and can be encoded, is accepted by the decoder of the type."""
    info = inspect.type_info(type_)
    leaves = info.types if isinstance(info, inspect.UnionType) else (info,)
    types = []
    for leaf in leaves:
        if isinstance(leaf, inspect.EnumType):
            types.append(leaf.cls)
        elif type(leaf) in PLAIN and leaf == type(leaf)():  # no bounds
            types.append(PLAIN[type(leaf)])
        else:
            return None
    return tuple(types)


def _values(types: tuple[type, ...]) -> tuple[int, dict[int, bytes] | None]:
    """Their kinds, and the members of Enums, as they are encoded."""
    kinds, members = Kind(0), dict[int, bytes]()
    for type_ in types:
        if type_ in KINDS:
            kinds |= KINDS[type_]
        else:
            members |= {id(member): _encode(member) for member in type_.__members__.values()}  # type: ignore[attr-defined]
    return int(kinds), members or None
