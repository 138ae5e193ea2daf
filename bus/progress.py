"""What is in progress in a run of messages, told in the cells of a status block while the run is iterated over.

The readable specification of `_progress.c`, and the fallback for it: this loop runs once per message.

Before a message is yielded, its sequence number is stored: after a death, whoever looks knows which one it was. The
clock is not read for every message, but after strides that double as long as the last one was quick, up to LONGEST:
what takes long is at most that many messages older than it looks, and a run ends at most that many too late.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Self

QUICK_NS: Final = 50_000
LONGEST: Final = 16


class Progress:
    """Writes into two of `cells` (64-bit unsigned): the sequence number, and since when, in monotonic ns."""

    __slots__ = ("_cells", "_due", "_exact", "_first", "_messages", "_seq", "_since", "_until", "done", "seq")

    def __init__(self, cells: memoryview, seq: int, since: int) -> None:
        self._cells, self._seq, self._since = cells, seq, since
        self.seq = 0  # the message that was told last; the cell is there for others
        self.begin([], 0, 0, False)

    def tell(self, seq: int, /) -> None:
        """This message is in progress from now on."""
        self._cells[self._since] = time.monotonic_ns()
        self._cells[self._seq] = self.seq = seq

    def begin(self, messages: list[Any], first: int, until: int, exact: bool, /) -> Self:
        """Itself, to iterate over `messages`, the first of which has the sequence number `first`; ends before one that
        begins after `until`, monotonic ns, but not before the first; sys.maxsize: before none. `exact`: the clock is
        read for every message."""
        self._messages, self._first, self._until, self._exact = messages, first, until, exact
        self._due = 0
        self.done = 0  # messages that were handled, once the iteration has ended by itself
        return self

    def finish(self) -> None:
        """The iteration under way ends before its next message, as if time were up; not one that has all the time."""
        if self._until != sys.maxsize:
            self._until = self._due = 0

    def __iter__(self) -> Iterator[Any]:
        stride = 1
        cells, seq, first = self._cells, self._seq, self._first
        last = 0
        for index, message in enumerate(self._messages):
            self.done = index
            if index >= self._due:
                now = time.monotonic_ns()
                if now > self._until and index:
                    return
                quick = index > 0 and now - last < QUICK_NS and not self._exact
                stride = min(2 * stride, LONGEST) if quick else 1
                self._due, last = index + stride, now
                cells[self._since] = now
            cells[seq] = self.seq = first + index
            yield message
        self.done = len(self._messages)

    def close(self) -> None:
        """Lets go of the cells."""
        self._cells = memoryview(b"").cast("Q")
