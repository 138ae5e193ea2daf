"""Names in a topology: which are allowed, and what somebody may have meant. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from actors.errors import Problem

RESERVED = ("gateway",)
NAME = re.compile(r"[a-z0-9_-]{1,64}")


def closest(name: object, options: Iterable[str], what: str) -> str:
    """A suggestion for a name that is not among the options."""
    import difflib  # nobody needs it where all is well

    names = list(options)
    match = difflib.get_close_matches(str(name).lower(), names, 1)
    if match:
        return f"did you mean {match[0]!r}?"
    if not names:
        return f"there are no {what} yet"
    return f"the {what} are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def name_problems(name: Any, what: str, where: str) -> Iterator[Problem]:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        tame = re.sub(r"[^a-z0-9_-]+", "-", str(name).lower()).strip("-")[:64]
        hint = "names are 1 to 64 of a-z, 0-9, _ and -" + (f": how about {tame!r}?" if tame else "")
        yield Problem("bad-name", str(name), f"{what} name {name!r} cannot be used", hint, where)
    elif name in RESERVED:
        hint = "it is the name of the world outside; take another one"
        yield Problem("reserved-name", name, f"{what} name {name!r} is reserved", hint, where)
