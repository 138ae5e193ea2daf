"""How a plan travels to a worker: classes that the worker cannot import go by value.

cloudpickle does that for ordinary classes and functions of `__main__`, notebooks and functions; it knows nothing of
msgspec's structs, whose fields must be there when the class is made. Here a struct is made again with its fields, their
defaults and its options, then gets its methods and its field types, resolved, so that they need no names of the module
they came from. The same class shipped twice to one process is one class there.

Never used for anything but the user's own declaration, from a supervisor to its workers.
"""

from __future__ import annotations

import io
import pickle
import types
import uuid
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import cloudpickle
import msgspec
from msgspec.structs import fields

_ids: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_made: WeakValueDictionary[str, type] = WeakValueDictionary()
_unfinished: WeakSet[type] = WeakSet()
_OPTIONS = (
    "frozen",
    "eq",
    "order",
    "array_like",
    "gc",
    "repr_omit_defaults",
    "omit_defaults",
    "forbid_unknown_fields",
    "weakref",
    "dict",
    "cache_hash",
    "tag",
    "tag_field",
)


def pack(value: object) -> bytes:
    """Pickle, with classes and functions by value where the other side could not import them."""
    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Classes and functions by value where the other side could not import them, structs with their fields."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and "__msgspec_cache__" in vars(obj):
            # What msgspec remembers of an enum or a dataclass cannot be pickled; it finds it out again.
            delattr(obj, "__msgspec_cache__")
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and issubclass(obj, msgspec.Struct):
            return _reduce(obj)  # cloudpickle would ship it by value, but without its fields
        return reduced


def _reduce(cls: type[msgspec.Struct]) -> tuple[Any, ...]:
    key = _ids.setdefault(cls, uuid.uuid4().hex)
    _made[key] = cls
    attributes = dict(vars(cls))
    annotations = dict(attributes.pop("__annotations__", {}))
    own: dict[str, Any] = {}
    try:
        declared = {field.name: field for field in fields(cls) if field.name in annotations}
    except NameError:
        raise pickle.PicklingError(f"a field type of {cls.__qualname__} cannot be resolved") from None
    parameters = cls.__signature__.parameters
    for field in declared.values():
        own[field.name] = (field.encode_name, field.default, field.default_factory)
        annotations[field.name] = field.type
    config = cls.__struct_config__
    options = {name: getattr(config, name) for name in _OPTIONS}
    options["kw_only"] = any(parameters[name].kind.name == "KEYWORD_ONLY" for name in own)
    for name in ("__slots__", "__dict__", "__weakref__", "__match_args__", *own):
        attributes.pop(name, None)
    bases = getattr(cls, "__orig_bases__", cls.__bases__)
    header = (key, type(cls), cls.__name__, bases, cls.__module__, cls.__qualname__, own, options)
    return _make, header, (annotations, attributes), None, None, _complete


def _make(
    key: str,
    metaclass: type,
    name: str,
    bases: tuple[Any, ...],
    module: str,
    qualname: str,
    own: dict[str, tuple[str, Any, Any]],
    options: dict[str, Any],
) -> type:
    """The class without its methods and field types, which may refer to it."""
    made = _made.get(key)
    if made is not None:
        return made
    namespace: dict[str, Any] = {
        "__module__": module,
        "__qualname__": qualname,
        "__annotations__": dict.fromkeys(own, Any),
    }
    for field, (encoded, default, factory) in own.items():
        if default is not msgspec.NODEFAULT:
            namespace[field] = msgspec.field(default=default, name=encoded)
        elif factory is not msgspec.NODEFAULT:
            namespace[field] = msgspec.field(default_factory=factory, name=encoded)
        else:
            namespace[field] = msgspec.field(name=encoded)
    made = types.new_class(name, bases, {"metaclass": metaclass, **options}, lambda body: body.update(namespace))
    _made[key] = made
    _ids[made] = key
    _unfinished.add(made)
    return made


def _complete(cls: type, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    if cls not in _unfinished:
        return
    _unfinished.discard(cls)
    annotations, attributes = state
    for name, value in attributes.items():
        if name not in {"__module__", "__qualname__"}:
            setattr(cls, name, value)
    cls.__annotations__ = annotations
