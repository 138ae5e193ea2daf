"""What handlers send, and what they keep: typed values that are encoded as MessagePack.

`Message` is the base of messages: frozen, encoded as an array of its fields in order, so that a field with a default
may be added at the end later. `State` is the base of durable state: mutable, encoded as a map of its fields by name, so
that fields may be added, removed and reordered.

Field types are those msgspec encodes: None, bool, int, float, str, bytes, datetime and its family, Decimal, UUID, Enum,
Literal, list, tuple, set, frozenset, dict, dataclasses, typed dicts, named tuples, other structs, unions of these.
`Any` is allowed and means what MessagePack itself carries: inside it a tuple or a set arrives as a list, a struct as a
list or a dict. A field with no other type than its class, such as `object` or a class of your own, is a mistake that
`check_encodable` tells.

Apart from the definitions, which look at the frame they stand in, everything here is a pure function of a class.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import sys
import typing
import uuid
from pathlib import PurePath
from typing import Any, ClassVar, Literal, dataclass_transform

import msgspec
import msgspec.inspect
from msgspec.structs import FieldInfo, fields

from actors.annotations import Unresolved, alternatives, evaluate, local_names, module_names, own, settle

SCALARS = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        str,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    }
)


def _module_name(cls: type) -> str:
    """The module a class is known by: a script's `__main__` goes by the name it would be imported by."""
    if cls.__module__ != "__main__":
        return cls.__module__
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return PurePath(getattr(main, "__file__", None) or "__main__").stem


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of messages: declare the fields with their types.

    class Trade(Message):
        symbol: str
        price: float
    """

    __message_name__: ClassVar[str] = "actors.Message"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__message_name__ = f"{_module_name(cls)}.{cls.__qualname__}"
        settle(cls, local_names(1))


class State(msgspec.Struct):
    """Base of durable state: mutable fields, each with a default, which is the state at the first start.

    class Totals(State):
        count: dict[str, int] = {}

    The default is per instance, as usual with msgspec. The whole value is written when its encoding changed; for state
    that grows large, use a Table.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        settle(cls, local_names(1))


def type_name(cls: type) -> str:
    """The name under which messages of this class are known, in journals too: `module.Class`.

    It was fixed when the class was defined. A class of a script is named after the script's file, not `__main__`, so
    that it is the same class whether the file is run or imported.
    """
    name = cls.__dict__.get("__message_name__")
    return name if isinstance(name, str) else f"{_module_name(cls)}.{cls.__qualname__}"


def is_immutable(type_: Any) -> bool:
    """Whether values of this type can never change, as far as the type tells; what it does not tell is taken as no."""
    return _is_immutable(type_, frozenset())


def _is_immutable(type_: Any, open_: frozenset[Any]) -> bool:
    options = alternatives(type_)
    if len(options) > 1:
        return all(_is_immutable(option, open_) for option in options)
    (leaf,) = options
    if is_scalar(leaf) or leaf is bytes or leaf is None:
        return True
    origin, args = typing.get_origin(leaf), typing.get_args(leaf)
    if origin is tuple or origin is frozenset:
        return all(_is_immutable(arg, open_) for arg in args if arg is not ...)
    if not isinstance(leaf, type):
        return False
    if leaf in open_:
        return True  # a recursive type: decided by the rest of it
    inner = open_ | {leaf}
    if issubclass(leaf, msgspec.Struct):
        try:
            return leaf.__struct_config__.frozen and all(_is_immutable(field.type, inner) for field in fields(leaf))
        except NameError:
            return False
    parameters = getattr(leaf, "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    if frozen or (issubclass(leaf, tuple) and hasattr(leaf, "_fields")):
        try:
            hints = typing.get_type_hints(leaf)
        except Exception:  # whatever a user's annotation raises: then it is not known to be immutable
            return False
        return bool(hints) and all(_is_immutable(hint, inner) for hint in hints.values())
    return False


def is_scalar(type_: Any) -> bool:
    """Whether the encoding of a value of this type is a plain number, text, boolean or nothing."""
    if typing.get_origin(type_) is Literal:
        return True
    return isinstance(type_, type) and (type_ in SCALARS or issubclass(type_, enum.Enum))


def can_encode_late(cls: type) -> bool:
    """Whether a message of this class, encoded at the commit, is surely what it was when it was sent.

    Narrower than `is_immutable`: a declared type does not keep a list out of a tuple's place, or a bytearray out of
    the place of bytes, and the encoding does not show the difference. Where only scalars encode as declared, nothing
    mutable can hide.
    """
    if not issubclass(cls, msgspec.Struct) or not cls.__struct_config__.frozen:
        return False
    try:
        return all(is_scalar(leaf) for field in fields(cls) for leaf in alternatives(field.type))
    except NameError:
        return False


def check_encodable(cls: type) -> list[str]:
    """What keeps this struct class from being encoded and read back, one text per field, starting with its name."""
    try:
        declared = fields(cls)
    except (NameError, SyntaxError, TypeError, AttributeError):
        return _unresolved(cls)
    return [f"{field.name}: {reason}" for field in declared if (reason := _field_problem(field)) is not None]


def check_type(type_: Any) -> str | None:
    """What keeps values of this type from being encoded and read back; None if nothing does."""
    try:
        msgspec.msgpack.Decoder(type_)
        unknown = _unknown_class(msgspec.inspect.type_info(type_))
    except NameError as error:
        return f"a type inside it cannot be resolved ({error})"
    except (TypeError, ValueError) as error:
        return str(error)
    if unknown is not None:
        return f"`{unknown}` cannot be encoded: use a Struct, a dataclass or a builtin type, or Any for plain data"
    return None


def _field_problem(field: FieldInfo) -> str | None:
    return check_type(field.type)


def _unresolved(cls: type) -> list[str]:
    """Which annotations of a class and its bases do not evaluate."""
    problems: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names = module_names(base.__module__)
        for name, annotation in own(base).items():
            problems.pop(name, None)
            try:
                evaluate(annotation, names, dict(vars(base)))
            except Unresolved as error:
                problems[name] = f"{name}: annotation {error.annotation!r} cannot be resolved ({error.reason})"
    return list(problems.values()) or ["annotations cannot be resolved"]


def _unknown_class(info: Any) -> str | None:
    """The name of a class, anywhere in a described type, that msgspec knows nothing about."""
    pending = [info]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, msgspec.inspect.CustomType):
            return part.cls.__name__
        if isinstance(part, (list, tuple)):
            pending.extend(part)
        elif isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)):
            pending.extend(getattr(part, name) for name in part.__struct_fields__ if name not in {"default", "cls"})
    return None
