"""Which messages a handler class surely sends, as far as its source tells: `self.send(Trade(...))`.

Best effort, and no more than certain: a class is found only where a method constructs it in the call itself, and under
a name that means the same class there. Where there is no source, nothing is found. Pure, except that source is read.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container, Iterator
from types import CodeType, FunctionType
from typing import Any

from actors.message import Message

_MISSING = object()


def constructed(cls: type, action: str, coded: Container[type] = ()) -> tuple[type, ...]:
    """The message classes constructed in `self.<action>(...)` by the methods of `cls`, inherited ones too. `coded`:
    classes that are messages beside the subclasses of Message."""
    found: dict[type, None] = {}
    names = dict.fromkeys(name for one in reversed(cls.__mro__) for name in vars(one))
    for name in names:
        owner = next(one for one in cls.__mro__ if name in vars(one))
        method = vars(owner)[name]
        if isinstance(method, FunctionType):
            found.update(dict.fromkeys(_constructed_in(inspect.unwrap(method), action, coded)))
    return tuple(found)


def reserved(cls: type) -> tuple[type, ...]:
    """The same for `self.reserve(Tick, ...)`."""
    found: dict[type, None] = {}
    for name in dict.fromkeys(name for one in reversed(cls.__mro__) for name in vars(one)):
        method = inspect.getattr_static(cls, name)
        if isinstance(method, FunctionType):
            found.update(dict.fromkeys(_constructed_in(inspect.unwrap(method), "reserve", ())))
    return tuple(found)


def _constructed_in(function: Any, action: str, coded: Container[type]) -> Iterator[type]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        nonlocals = inspect.getclosurevars(function).nonlocals
    except (OSError, TypeError, SyntaxError, ValueError):
        return  # typed at a prompt, generated, or a fragment that does not stand alone
    if not tree.body or not isinstance(tree.body[0], ast.FunctionDef) or not function.__code__.co_argcount:
        return
    this = function.__code__.co_varnames[0]
    inner = {name for code in _nested(function.__code__) for name in code.co_varnames}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    if this in inner or this in stored:
        return
    bound = inner.union(stored, function.__code__.co_varnames, function.__code__.co_cellvars)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == action
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == this
            and len(node.args) == (2 if action == "reserve" else 1)
        ):
            for made in node.args[:1] if action == "reserve" else _outcomes(node.args[0]):
                value = _meaning(made, bound, {**function.__globals__, **nonlocals})
                if isinstance(value, type) and (
                    (issubclass(value, Message) and value is not Message) or value in coded
                ):
                    yield value


def _nested(code: CodeType) -> Iterator[CodeType]:
    """The code of the functions, lambdas and comprehensions inside a function."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _outcomes(node: ast.expr) -> list[ast.expr]:
    """The expressions called to make the value, all branches."""
    if isinstance(node, ast.IfExp):
        return [*_outcomes(node.body), *_outcomes(node.orelse)]
    return [node.func] if isinstance(node, ast.Call) else []


def _meaning(node: ast.expr, bound: set[str], names: dict[str, Any]) -> Any:
    """What a name or a dotted name stands for in a function, if nothing in it can have given it another meaning."""
    if isinstance(node, ast.Name):
        return _MISSING if node.id in bound else names.get(node.id, _MISSING)
    if isinstance(node, ast.Attribute):
        owner = _meaning(node.value, bound, names)
        return inspect.getattr_static(owner, node.attr, _MISSING) if owner is not _MISSING else _MISSING
    return _MISSING
