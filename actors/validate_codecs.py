"""The mistakes in what a topology says about codecs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.codecs import BUILT_IN, RESERVED, Codec
from actors.declaration import Declaration, DeclaredCodec
from actors.errors import Problem
from actors.message import Message
from actors.sealed import NAME

_METHODS = ("accepts", "encode", "decode")


def codec_problems(declaration: Declaration) -> Iterator[Problem]:
    first: dict[Any, DeclaredCodec] = {}
    named: dict[str, Codec] = {}
    for one in declaration.codecs:
        if not isinstance(one.type, type) or one.type is Message:
            text = f"codec for {one.type!r:.80}, which is no class of messages"
            yield Problem("bad-codec", str(one.type), text, "give a class: topology.codec(Order, JSON)", one.where)
            continue
        name = one.type.__name__
        if one.type in first:
            text = f"{name} has two codecs (the first at {first[one.type].where})"
            yield Problem("bad-codec", name, text, "a class has one: keep the one it is to be sent by", one.where)
            continue
        first[one.type] = one
        problem = _codec_problem(one.codec, named)
        if problem is not None:
            yield Problem(
                "bad-codec", name, f"the codec of {name}, {one.codec!r:.80}, {problem[0]}", problem[1], one.where
            )
            continue
        try:
            reason = one.codec.accepts(one.type)
        except Exception as error:  # whatever a user's codec raises
            reason = f"its accepts raises {type(error).__name__}: {error}"
        if reason is not None:
            text = f"codec {one.codec.name!r} cannot carry {name}: {reason}"
            yield Problem("bad-codec", name, text, "take another codec, or change the class", one.where)


def _codec_problem(codec: Any, named: dict[str, Codec]) -> tuple[str, str] | None:
    """(what is wrong, what to do)"""
    if isinstance(codec, type):
        return "is a class", f"give an instance: {codec.__name__}()"
    missing = [name for name in _METHODS if not callable(getattr(codec, name, None))]
    name = getattr(codec, "name", None)
    if missing or name is None:
        return f"has no {', '.join(['name'] * (name is None) + missing)}", "see actors.Codec for what a codec has"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        hint = "names are 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit"
        return f"has the name {name!r:.80}, which cannot be used", hint
    if name in RESERVED and codec not in BUILT_IN:
        return f"has the name {name!r}, which is that of a codec of the runtime", "give it another name"
    if type(named.setdefault(name, codec)) is not type(codec):
        return f"has the name {name!r}, which another codec has too", "a name stands for one way to encode"
    return None
