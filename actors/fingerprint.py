"""The fingerprint of a topology: equal exactly if names, message classes, their fields, states and routes are.

Numbers and levels are left out: changing them changes nothing about what is in the journals. Pure.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import fields

from actors.message import type_name


def fingerprint(names: object, structs: Iterable[type[msgspec.Struct]]) -> str:
    """A hash over names (whatever JSON carries) and over the fields of struct classes, and of those inside them."""
    import hashlib  # here, as workers have no use for them
    import json

    pending = list(structs)
    shapes: dict[str, list[list[Any]]] = {}
    while pending:
        cls = pending.pop()
        if type_name(cls) not in shapes:
            found: list[type] = []
            shapes[type_name(cls)] = [
                [one.encode_name, type_text(one.type, found), one.required] for one in fields(cls)
            ]
            pending.extend(found)
    text = json.dumps([names, sorted(shapes.items())], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def type_text(type_: Any, structs: list[type] | None = None) -> str:
    """A type as text, the same in every process; struct classes met on the way are added to `structs`."""
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if type_ is None or type_ is type(None):
        return "None"
    if origin is typing.Union or origin is types.UnionType:
        return " | ".join(sorted(type_text(arg, structs) for arg in args))
    if origin is typing.Literal or origin is typing.Annotated:
        rest = args if origin is typing.Literal else args[1:]
        head = "Literal" if origin is typing.Literal else type_text(args[0], structs)
        return f"{head}[{', '.join(map(repr, rest))}]"
    if origin is not None:
        inner = ["..." if arg is ... else type_text(arg, structs) for arg in args]
        return f"{type_text(origin, structs)}[{', '.join(inner)}]"
    if not isinstance(type_, type):
        return repr(type_)
    if issubclass(type_, msgspec.Struct):
        if structs is not None:
            structs.append(type_)
        return type_name(type_)
    members = f"({', '.join(f'{one.name}={one.value!r}' for one in type_)})" if issubclass(type_, enum.Enum) else ""
    # Without its module: a script's classes are those of `__main__` there, and of a module under `ringleader run`.
    return f"{type_.__qualname__}{members}"
