"""What has been published and not acknowledged: how much more may be, and how long to wait for an answer. Pure.

Contract
- At most `window` bytes are in flight, or one run.
- While an answer is awaited there is a `deadline`: `retry_first` seconds, or several times what answers took of late if
  that is longer, after the last progress; each time it passes the wait doubles, up to `retry_last`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FRAME_BYTES = 1 << 16  # runs are joined up to this size
SPARE = 4  # times the response time of late is no reason to ask


@dataclass(frozen=True, slots=True)
class Limits:
    """window        bytes published and not acknowledged; one run always may be
    inbox         bytes that arrived and are not delivered; None is twice the window
    frame         the longest frame that the transport takes
    retry_first   seconds without progress after which the peer is asked what it has; doubles up to
    retry_last
    """

    window: int = 1 << 20
    inbox: int | None = None
    frame: int = FRAME_BYTES
    retry_first: float = 0.05
    retry_last: float = 5.0

    @property
    def inbox_bytes(self) -> int:
        return 2 * self.window if self.inbox is None else self.inbox


class Flight:
    """Towards one peer."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadline: float | None = None
        self._frames: deque[tuple[int, int]] = deque()  # (last number, bytes) of each
        self._bytes = 0
        self._interval = limits.retry_first
        self._timed: tuple[int, float] | None = None  # a number, and when it was published
        self._response = 0.0  # smoothed seconds from publishing to acknowledgement

    def has_room(self, size: int = 1) -> bool:
        return not self._frames or self._bytes + size <= self.limits.window

    @property
    def room(self) -> int:
        return self.limits.window - self._bytes

    def launch(self, last: int, size: int, now: float) -> None:
        """A frame that ends with number `last` is published."""
        self._frames.append((last, size))
        self._bytes += size
        if self._timed is None:
            self._timed = (last, now)
        if self.deadline is None:
            self.await_answer(now)

    def land(self, through: int, now: float) -> None:
        """Everything up to `through` is acknowledged."""
        frames = self._frames
        while frames and frames[0][0] <= through:
            self._bytes -= frames.popleft()[1]
        if self._timed is not None and self._timed[0] <= through:
            took = now - self._timed[1]
            self._response = took if not self._response else 0.875 * self._response + 0.125 * took
            self._timed = None

    def turn_back(self, published: int) -> None:
        """What is above `published` will be published again."""
        frames = self._frames
        self._timed = None
        while frames and frames[-1][0] > published:
            self._bytes -= frames.pop()[1]

    def await_answer(self, now: float) -> None:
        """From now on, as if nothing had been waited for before."""
        self._interval = min(max(self.limits.retry_first, SPARE * self._response), self.limits.retry_last)
        self.deadline = now + self._interval

    def answered(self, now: float, *, is_behind: bool) -> None:
        """The peer lives, so the waits begin anew; there is no progress yet, if it `is_behind`."""
        self.await_answer(now)
        if not is_behind:
            self.deadline = None

    def tick(self, now: float) -> bool:
        """Whether the deadline has passed; then there is another."""
        if self.deadline is None or now < self.deadline:
            return False
        self._interval = min(2 * self._interval, self.limits.retry_last)
        self.deadline = now + self._interval
        self._timed = None
        return True
