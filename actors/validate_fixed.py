"""The mistakes in a topology's fixed messages. Pure, except that it looks whether NumPy can be imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from actors.declaration import Declaration
from actors.errors import MissingNumPy, Problem
from actors.fixed import is_fixed, layout_of, layout_problems, numpy
from actors.message import check_encodable


def fixed_problems(declaration: Declaration, used: Iterable[type]) -> Iterator[Problem]:
    """`used`: the message classes that are routed, handled, sent."""
    fixed = [type_ for type_ in dict.fromkeys(used) if is_fixed(type_) and not check_encodable(type_)]
    for type_ in fixed:
        name = type_.__name__
        if type_ in declaration.coded:
            text = f"{name} is a FixedMessage and has a codec"
            yield Problem(
                "bad-layout", name, text, "its layout is how it is encoded: make it a Message, or drop the codec"
            )
        texts = layout_problems(type_)
        for text in texts:
            yield Problem("bad-layout", name, f"fixed message {name}: field {text}")
        limit = declaration.numbers["max_message_bytes"]
        if not texts and isinstance(limit, int) and layout_of(type_).size > limit:
            text = f"fixed message {name} has rows of {layout_of(type_).size} bytes, over max_message_bytes={limit}"
            yield Problem("bad-layout", name, text, "raise max_message_bytes")
    if fixed:
        try:
            numpy()
        except MissingNumPy as error:
            names = ", ".join(type_.__name__ for type_ in fixed)
            yield Problem("no-numpy", fixed[0].__name__, f"{names}: {error}")
