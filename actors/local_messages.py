"""Messages between handlers of one worker: handled in the transaction that sends them, as far as its bounds go.

What is left then is carried over: committed as sent to the worker itself, and handled by later transactions, before
anything newer of its kind. While that is so, nothing is handled inline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from actors.hosted import Context, Hosted
from actors.inlets import Inlet
from actors.links import Link
from actors.outgoing import Lane, Outgoing

# In one transaction: messages, their bytes, and how long they may go on when the time of the batch is up.
INLINE_LIMIT = 10_000
INLINE_BYTES = 8 << 20
INLINE_NS = 80_000_000
STRIDE = 16  # messages from one look at the clock to the next


class LocalMessages:
    """Of one worker, whose own link is `me`. `enter` is called before the code of a handler runs."""

    def __init__(
        self,
        outgoing: Outgoing,
        me: Link,
        inlets: dict[int, Inlet],
        context: Context,
        enter: Callable[[Hosted], None],
    ) -> None:
        self._outgoing = outgoing
        self._me = me
        self._inlets = inlets
        self._context = context
        self._enter = enter
        self._limit = INLINE_LIMIT
        self.budget = INLINE_LIMIT  # messages that the transaction at hand may still handle
        outgoing.full = self._full

    def renew(self) -> None:
        """For the next transaction."""
        self.budget = self._limit

    @contextmanager
    def carried_over(self) -> Iterator[None]:
        """All of them are, meanwhile."""
        self._limit = self.budget = 0
        try:
            yield
        finally:
            self._limit = self.budget = INLINE_LIMIT

    def drain(self, until: int) -> int:
        """Handles what waits, unless older ones are still carried over; returns how many. `until`: of the batch,
        monotonic ns."""
        local = self._outgoing.local
        if self._me.outbound.assigned != self._me.inbound.seen:
            return 0
        handled, turns, context = 0, 0, self._context
        before, context.local = context.local, True
        while local and self.budget > 0:
            turns += 1
            if turns % STRIDE == 0 and time.monotonic_ns() > until + INLINE_NS:
                self.budget = 0
                break
            self.budget -= 1
            lane, message = local.popleft()
            inlet = self._inlets[lane.route]
            if inlet.batched:
                handled += self._batch(inlet, lane, message)
            else:
                for hosted, call in inlet.calls:
                    self._enter(hosted)
                    call(message if lane.codec.late else inlet.codec.decode_one(message))
                handled += 1
            # failpoint: local-handled
        context.local = before
        return handled

    def _full(self) -> None:
        """So much was sent that the rest of the run at hand is for the next transaction. What was sent within the
        worker is handled with it all the same, unless it becomes ever more."""
        self._context.progress.finish()
        if self._outgoing.between >= INLINE_BYTES:
            self.budget = 0

    def _batch(self, inlet: Inlet, lane: Lane, message: Any) -> int:
        """This one, and those of the same route right behind it."""
        local = self._outgoing.local
        messages = [message]
        while self.budget > 0 and local and local[0].lane is lane:
            messages.append(local.popleft().message)
            self.budget -= 1
        for hosted, call, batch in inlet.together:
            fresh = messages[:] if lane.codec.late else [inlet.codec.decode_one(one) for one in messages]
            self._enter(hosted)
            if batch:
                call(fresh)
            else:
                for one in fresh:
                    call(one)
        return len(messages)
