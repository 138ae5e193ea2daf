"""Backpressure: whether a worker, or another one of its component, has more waiting for its receivers than it may.

What lies in claims has a limit of its own: it is large, and none of it is in the worker's own memory.

An edge inside a component is never paused; what enters a component from outside, and sources, are while the outbox of
any worker of the component is over its limit. The workers of a component tell each other by their cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bus import Block, Field

# An outbox in a cycle feeds itself if, while nothing enters, it is so many times as long as its limit; and by more than
# so many messages, for a few that are large go round and are not more for it.
MULTIPLYING = 16


class Overload:
    """Of one worker, whose status block is `block`. Limits in bytes; that of claims is the same where there is none."""

    def __init__(self, block: Block, limit: int, claims_limit: int | None = None) -> None:
        self.paused = False  # it, or another worker of its component, is over its limit
        self._cells = block.cells
        self._limit = limit
        self._claims_limit = limit if claims_limit is None else claims_limit
        self._over = False
        self._others: list[memoryview] = []  # cells of the other workers of the component

    def watch(self, component: Iterable[Block]) -> None:
        """The status blocks of the other workers of this worker's component."""
        self._others = [block.cells for block in component]

    def reset(self) -> None:
        """Cells are written when they change only; the last incarnation may have died over its limit, and all others
        would wait."""
        self._cells[Field.OVER_LIMIT] = self._cells[Field.MULTIPLYING] = 0

    def weigh(self, backlog: int, held: int, messages: Callable[[], int], claims: Callable[[], int]) -> None:
        """Tell the component whether so many bytes, or so many in claims, are over their limit; under again only when
        half of it is gone. `messages` and `claims` count them, where that matters."""
        cells, limit, most = self._cells, self._limit, self._claims_limit
        if self._over:
            if backlog <= limit // 2 and held <= most // 2:
                self._over = False
                cells[Field.OVER_LIMIT] = cells[Field.MULTIPLYING] = 0
            elif self._others and (
                (backlog > limit * MULTIPLYING and messages() > MULTIPLYING)
                or (held > most * MULTIPLYING and claims() > MULTIPLYING)
            ):
                # In a cycle, nothing enters from outside, and still it grows: the cycle multiplies its own messages.
                cells[Field.MULTIPLYING] = 1
        elif backlog > limit or held > most:
            self._over = True
            cells[Field.OVER_LIMIT] = 1

    def look(self) -> None:
        """At the others."""
        self.paused = self._over
        for cells in self._others:
            if cells[Field.OVER_LIMIT]:
                self.paused = True
