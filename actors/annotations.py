"""Annotations as types, also when they are strings and when the names in them are local to a function.

Pure, except that it looks at the frame in which a class or function is being defined: only there the local names of an
enclosing function are known. What cannot be resolved is left as it is, for a later look or a clear problem.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Union

_OPTIMIZED = 1  # CO_OPTIMIZED, the flag of the code of functions


class Unresolved(Exception):
    """A name in an annotation is not known, or the annotation is not an expression."""

    def __init__(self, annotation: str, reason: str) -> None:
        super().__init__(annotation, reason)
        self.annotation = annotation
        self.reason = reason


def local_names(depth: int) -> dict[str, Any]:
    """The names a definition may use beyond its module's globals, `depth` frames above the caller.

    These are the names of the class bodies around it and of the function around those; empty at module level.
    """
    frame: types.FrameType | None = sys._getframe(depth + 1)
    names: dict[str, Any] = {}
    while frame is not None and frame.f_locals is not frame.f_globals:
        names = {**frame.f_locals, **names}
        if frame.f_code.co_flags & _OPTIMIZED:  # a function: further out are its callers
            break
        frame = frame.f_back
    return names


def module_names(module: str) -> dict[str, Any]:
    return getattr(sys.modules.get(module), "__dict__", {})


def own(cls: type) -> dict[str, Any]:
    """The annotations of a class, without those of its bases, as they stand: strings are not resolved."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return dict(vars(cls).get("__annotations__", {}))


def evaluate(annotation: object, names: Mapping[str, Any], local: Mapping[str, Any]) -> Any:
    """The type an annotation stands for. Strings inside it are resolved too. Raises Unresolved."""
    if annotation is None:
        return type(None)
    probe = type("Probe", (), {"__annotations__": {"it": annotation}})
    try:
        return typing.get_type_hints(probe, dict(names), dict(local), include_extras=True)["it"]
    except Exception as error:  # whatever evaluating a user's expression raises
        text = annotation if isinstance(annotation, str) else repr(annotation)
        raise Unresolved(text, f"{type(error).__name__}: {error}") from error


def settle(cls: type, local: Mapping[str, Any]) -> None:
    """Replace the string annotations of a class that `local` resolves, while the local names are at hand."""
    if not local:
        return
    names = module_names(cls.__module__)
    for field, annotation in own(cls).items():
        if isinstance(annotation, str):
            try:
                cls.__annotations__[field] = evaluate(annotation, names, {**local, cls.__name__: cls})
            except Unresolved:
                continue


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, flat; anything else is its only alternative. Aliases and Annotated are looked through."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # type X = ..., Python 3.12
            annotation = annotation.__value__
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            break
    if origin is Union or origin is types.UnionType:
        return tuple(leaf for part in typing.get_args(annotation) for leaf in alternatives(part))
    return (annotation,)
