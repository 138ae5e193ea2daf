"""The mistakes in what a topology has imported before its workers are made. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from actors.declaration import Declaration
from actors.errors import Problem


def preload_problems(declaration: Declaration, find: Callable[[str], Any]) -> Iterator[Problem]:
    """`find` returns None, or raises, for a module that is not there; it imports the packages around it."""
    given, where = declaration.preload, str(declaration.name)
    if isinstance(given, str) or not isinstance(given, (tuple, list)):
        text = f"preload={given!r:.80} is no list of modules"
        yield Problem("bad-preload", where, text, 'name modules, as in preload=["numpy", "my.handlers"]')
        return
    for name in given:
        try:
            found = isinstance(name, str) and bool(name) and not name.startswith(".") and find(name) is not None
            reason = "no such module is found"
        except Exception as error:  # whatever a package raises that is imported on the way
            found, reason = False, f"{type(error).__name__}: {error}"
        if not found:
            text = f"preload of {name!r:.80}: {reason}"
            yield Problem("bad-preload", where, text, "it is a module's full name; a script's own classes need none")
    other = [said.worker for said in declaration.processes if said.options.get("user") is not None]
    if given and other:
        text = f"preload would import with the rights of the supervisor what worker {other[0]!r} must not have them for"
        yield Problem("bad-preload", where, text, "leave out preload, or the user of that worker")
