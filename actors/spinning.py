"""How long a worker looks at its rings before it sleeps on its doorbell. Decides only; `polling` looks.

Who is woken by the system runs some 15 us later than one who looks, so where an answer comes at once, looking makes
the way there and back a third shorter. Where it does not come at once, or the processor that looks is the one that
is needed, it is waste; in a stream of messages it takes from the sender's rate what the receiver has no use for. So
a worker looks only when it had few messages since its last wait, and that wait was short, and every time in vain
makes it twice as slow to try that again. A worker whose messages are far apart, or who has none, never does.
"""

from __future__ import annotations

LONGEST = 2.5e-4  # seconds; a worker that nobody rings for so long sleeps
FEW = 8  # messages handled and sent between two waits; more are a stream
PATIENCE = 256  # short waits in a row before it is tried again, at most
SETTLED = 8  # successes in a row after which a failure is the first one again


class Spinning:
    """Of one worker. `possible`: there is another processor that whoever rings may run on."""

    def __init__(self, possible: bool) -> None:
        self.seconds = 0.0  # to look before the next sleep
        self._possible = possible
        self._needed = 1  # short waits in a row before it looks
        self._short = 0  # short waits in a row

    def waited(self, seconds: float, rung: bool, messages: int) -> None:
        """A wait took so long, and ended by a ring or not. `messages` were handled and sent right before it."""
        short = rung and seconds < LONGEST and messages <= FEW
        self._short = self._short + 1 if short else 0
        if self.seconds:
            if short:
                if self._short >= SETTLED:
                    self._needed = 1
                return
            self.seconds = 0.0
            self._needed = min(2 * self._needed, PATIENCE)
        elif self._possible and self._short >= self._needed:
            self.seconds, self._short = LONGEST, 0
