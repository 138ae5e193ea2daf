"""Rows lent to handlers: how it is noticed that one, or a view of one, outlives the call that it was lent to.

A view of a NumPy array, however it was made (a slice, a column, a record, a memoryview), keeps that array alive.
The runtime keeps none of what it lends, only weak references; so when the handlers have returned, whatever still lives
was kept by them. Then:

- The transaction is rolled back: ViewEscaped. Its handlers are made anew, and with the old ones goes what they kept.
- Memory of a ring is not used again while a view of it lives. If one still lives when it has to be, kept where a
  rollback does not reach (a global, another thread), the worker ends, and with it the view: ViewEscaped once more.

Cycles of garbage, and the frames of an exception that was raised inside a handler, are no such keeping: before anybody
is blamed, they are cleared.
"""

from __future__ import annotations

import gc
import sys
import traceback
import weakref
from typing import Any, NamedTuple


class Lent(NamedTuple):
    rows: weakref.ref[Any]
    type_name: str
    shared: bool  # it shows memory of a ring

    @property
    def lives(self) -> bool:
        return self.rows() is not None


class Views:
    """What one worker has lent."""

    def __init__(self) -> None:
        self.lent: list[Lent] = []  # by the transaction at hand
        self.escaped: list[Lent] = []  # by those before; views of rings only

    def lend(self, rows: Any, type_name: str, *, shared: bool) -> Any:
        self.lent.append(Lent(weakref.ref(rows), type_name, shared))
        # failpoint: rows-lent
        return rows

    def take_back(self) -> tuple[str, ...]:
        """All that is lent; returns the names of the classes whose rows somebody has kept."""
        alive, self.lent = _alive(self.lent), []
        # failpoint: views-given-back
        self.escaped += [one for one in alive if one.shared]
        return tuple(dict.fromkeys(one.type_name for one in alive))

    def gone(self) -> tuple[str, ...]:
        """Whether memory of rings may be used again: the names of the classes for which it may not."""
        self.escaped = _alive(self.escaped)
        return tuple(dict.fromkeys(one.type_name for one in self.escaped))


def lives(rows: weakref.ref[Any]) -> bool:
    return bool(_alive([Lent(rows, "", True)]))


def _alive(lent: list[Lent]) -> list[Lent]:
    found = [one for one in lent if one.lives]
    if found:
        _clear_frames(sys.exc_info()[1])
        found = [one for one in found if one.lives]
    if found:
        gc.collect()
        found = [one for one in found if one.lives]
    return found


def _clear_frames(error: BaseException | None) -> None:
    """Of functions that an exception has left: their variables keep what was lent to them."""
    pending, seen = [error], set[int]()
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += [one.__cause__, one.__context__]
