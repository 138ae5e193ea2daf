"""The layout of fixed messages: where each field stands in a row, as text, as a fingerprint, as bytes.

    layout       :=  { field, field, ...; N bytes }            {symbol S16 @0, price f8 @16, size u4 @24; 32 bytes}
    field        :=  name kind @offset                             kind: bool u1..u8 i1..i8 f4 f8, Sn for n bytes; f8[4]
    fingerprint  :=  0xC1 | 7 bytes of BLAKE2b of the text

Fields stand in the order of their declaration, little endian, each at a multiple of its size as in C, and a row is a
multiple of 8 bytes. Two classes have the same layout exactly if the texts are equal. 0xC1 begins nothing in
MessagePack, so what a fingerprint begins is told apart from an encoded array by its first byte.

Pure, and needs no NumPy.
"""

from __future__ import annotations

import re
import struct
import typing
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any

import msgspec

ALIGNMENT = 8
TAG = 0xC1
FINGERPRINT = 8  # bytes
MOST_BYTES = 1 << 16  # of a row: it is a small record, not a document

_CODES: Mapping[str, str] = {
    "bool": "?", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "f4": "f", "f8": "d",
}  # fmt: skip
_PYTHON: Mapping[str, type] = {"b": bool, "u": int, "i": int, "f": float}
_TEXT = re.compile(r"\{(.*); (\d+) bytes\}")
_FIELD = re.compile(r"(\w+) (\w+?)(?:\[(\d+)\])? @(\d+)")


class Scalar(msgspec.Struct, frozen=True):
    """In the Annotated of a number: how it is stored."""

    kind: str


class Size(msgspec.Struct, frozen=True):
    """In the Annotated of bytes, or of a tuple: how many there are."""

    count: int


class BadField(Exception):
    """Why a type cannot be a field of a fixed message. Internal: `problems` tells it."""


class Field(msgspec.Struct, frozen=True):
    name: str
    kind: str  # of one item
    count: int | None  # items of an array; None: it is none
    offset: int

    @property
    def item(self) -> int:
        return item_size(self.kind)

    @property
    def end(self) -> int:
        return self.offset + self.item * (1 if self.count is None else self.count)

    @property
    def format(self) -> str:
        """As NumPy names it."""
        kind = "?" if self.kind == "bool" else self.kind if self.kind[0] == "S" else f"<{self.kind}"
        return kind if self.count is None else f"{self.count}{kind}" if self.count != 1 else f"(1,){kind}"

    def __str__(self) -> str:
        return f"{self.name} {self.kind}{'' if self.count is None else f'[{self.count}]'} @{self.offset}"


class Layout(msgspec.Struct, frozen=True, dict=True):
    fields: tuple[Field, ...]
    size: int  # bytes of a row

    @cached_property
    def text(self) -> str:
        return f"{{{', '.join(map(str, self.fields))}; {self.size} bytes}}"

    @cached_property
    def fingerprint(self) -> bytes:
        from hashlib import blake2b

        return bytes((TAG,)) + blake2b(self.text.encode(), digest_size=FINGERPRINT - 1).digest()

    @cached_property
    def _struct(self) -> struct.Struct:
        parts, at = ["<"], 0
        for field in self.fields:
            code = f"{field.kind[1:]}s" if field.kind[0] == "S" else _CODES[field.kind]
            parts.append(f"{field.offset - at}x" + code * (1 if field.count is None else field.count))
            at = field.end
        return struct.Struct("".join([*parts, f"{self.size - at}x"]))

    def pack(self, values: Iterable[Any]) -> bytes:
        """One row; padding is zeros. Misfit names the field whose value is not of its kind."""
        flat: list[Any] = []
        checked = []
        for field, value in zip(self.fields, values, strict=True):
            items = (value,) if field.count is None else value
            if field.count is not None and (not isinstance(value, (tuple, list)) or len(value) != field.count):
                raise Misfit(field.name, value, f"expected a tuple of {field.count} items")
            for item in items:
                _check(field, item)
            flat.extend(items)
            checked.append((field, items))
        try:
            return self._struct.pack(*flat)
        except (struct.error, OverflowError):
            for field, items in checked:
                for item in items:
                    try:
                        struct.pack(f"<{_CODES.get(field.kind, '0s')}", item)
                    except (struct.error, OverflowError) as error:
                        raise Misfit(field.name, item, f"it does not fit {field.kind}: {error}") from None
            raise

    def unpack(self, row: bytes | memoryview) -> dict[str, Any]:
        """The values of a row by name; bytes without the zeros at their end. ValueError for another number of bytes."""
        if len(row) != self.size:
            raise ValueError(f"{len(row)} bytes are no row of {self.size}")
        values = iter(self._struct.unpack(row))
        found: dict[str, Any] = {}
        for field in self.fields:
            items = [
                value.rstrip(b"\0") if isinstance(value := next(values), bytes) else value
                for _ in range(1 if field.count is None else field.count)
            ]
            found[field.name] = items[0] if field.count is None else tuple(items)
        return found


class Misfit(Exception):
    """A value that is not of its field's kind."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        self.field, self.value, self.reason = field, value, reason


def item_size(kind: str) -> int:
    return 1 if kind == "bool" else int(kind[1:])


def place(declared: Iterable[tuple[str, str, int | None]]) -> Layout:
    """The layout of these fields: name, kind, and how many items if it is an array."""
    fields: list[Field] = []
    at = 0
    for name, kind, count in declared:
        alignment = 1 if kind[0] == "S" else item_size(kind)
        field = Field(name, kind, count, at + (-at % alignment))
        fields.append(field)
        at = field.end
    return Layout(tuple(fields), at + (-at % ALIGNMENT))


def parse(text: str) -> Layout | None:
    """The layout that this is the text of; None if it is of none."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    fields = []
    for part in match[1].split(", "):
        found = _FIELD.fullmatch(part)
        if found is None or not (found[2] in _CODES or re.fullmatch(r"S[1-9]\d*", found[2])):
            return None
        fields.append(Field(found[1], found[2], None if found[3] is None else int(found[3]), int(found[4])))
    layout = place((field.name, field.kind, field.count) for field in fields)
    return layout if layout.text == text else None


def kind_of(type_: Any) -> tuple[str, int | None]:
    """(kind, count) of a declared type. Raises BadField."""
    plain = type_
    marks: tuple[Scalar | Size, ...] = ()
    if typing.get_origin(type_) is Annotated:
        plain, *rest = typing.get_args(type_)
        marks = tuple(mark for mark in rest if isinstance(mark, (Scalar, Size)))
    if plain is bool and not marks:
        return "bool", None
    if plain is bytes:
        return f"S{_count(marks, 'bytes', 'Annotated[bytes, Size(16)]')}", None
    if typing.get_origin(plain) is tuple:
        items = [item for item in typing.get_args(plain) if item is not ...]
        kinds = {kind_of(item) for item in items}
        if len(kinds) != 1 or next(iter(kinds))[1] is not None:
            raise BadField("an array has one dimension, and items of one kind")
        kind = kinds.pop()[0]
        if ... not in typing.get_args(plain):
            if marks and _count(marks, "a tuple", "tuple[f8, f8]") != len(items):
                raise BadField(
                    f"{marks[0]!r} of a tuple with {len(items)} items: drop it, or declare it as tuple[f8, ...]"
                )
            return kind, len(items)
        return kind, _count(marks, "a tuple", "Annotated[tuple[f8, ...], Size(4)]")
    if len(marks) == 1 and isinstance(marks[0], Scalar):
        return marks[0].kind, None
    if plain is int:
        raise BadField("an int has no size: declare one of u1 u2 u4 u8 i1 i2 i4 i8")
    if plain is float:
        raise BadField("a float has no size: declare f4 or f8")
    text = getattr(plain, "__name__", None) or repr(plain)
    raise BadField(f"{text} has no fixed layout: use bool, a number as f8, Annotated[bytes, Size(16)], tuple[f8, f8]")


def _count(marks: tuple[Scalar | Size, ...], what: str, example: str) -> int:
    if len(marks) != 1 or not isinstance(marks[0], Size):
        raise BadField(f"{what} has no size: declare it as in {example}")
    count: object = marks[0].count
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadField(f"Size({count!r}) is not a number of at least 1")
    return count


def _check(field: Field, value: Any) -> None:
    """What `struct` would accept, and cut off or convert."""
    if field.kind[0] == "S":
        if not isinstance(value, bytes):
            raise Misfit(field.name, value, f"expected bytes, got {type(value).__name__}")
        if len(value) > field.item:
            raise Misfit(field.name, value, f"it has {len(value)} bytes, and there is room for {field.item}")
        if value.endswith(b"\0"):
            raise Misfit(field.name, value, "it ends with a zero byte, which its receiver would not see")
        return
    expected = _PYTHON[field.kind[0]]
    wide = (int, float) if expected is float else expected
    if not isinstance(value, wide) or (isinstance(value, bool) and expected is not bool):
        raise Misfit(field.name, value, f"expected {expected.__name__}, got {type(value).__name__}")
