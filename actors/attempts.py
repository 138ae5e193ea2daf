"""What next with a message that failed: try it, wait for its time, or give it up. Pure.

A message for several handlers of one worker is handled by all of them or by none, so it is dealt with as the strictest
of them says:

    max_attempts  the smallest among those who give up at all
    on_error      `crash` before `dead-letter` before `retry`
    ordered       if one of them is
    retry delay   the longest

`retry` never gives up, neither on exceptions nor on deaths: max_attempts then means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actors.handler_policy import HandlerPolicy

DOUBLINGS = 64  # of a delay; more would not fit a float


class Tolerance(msgspec.Struct, frozen=True):
    """What a message's handlers agree on. `max_attempts` is None where they never give up; `delays`: (first, longest)
    of each."""

    max_attempts: int | None
    crash: bool = False
    ordered: bool = True
    delays: tuple[tuple[float, float], ...] = ()

    def delay(self, attempts: int) -> float:
        """Seconds between an attempt that failed, the `attempts`-th, and the next one."""
        if attempts < 1:
            return 0.0
        factor = 2.0 ** min(attempts - 1, DOUBLINGS)
        return max((min(first * factor, longest) for first, longest in self.delays), default=0.0)


class Try(msgspec.Struct, frozen=True):
    """Now."""


class Wait(msgspec.Struct, frozen=True):
    """Not before `until`, in seconds of the clock that was given."""

    until: float


class GiveUp(msgspec.Struct, frozen=True):
    """It becomes a dead letter."""


Step = Try | Wait | GiveUp
TRY, GIVE_UP = Try(), GiveUp()


def strictest(policies: Sequence[HandlerPolicy], max_attempts: int) -> Tolerance:
    """How a message for all of these is dealt with; `max_attempts` is the topology's."""
    finite = [one for one in policies if one.on_error != "retry"]
    limits = [max_attempts if one.max_attempts is None else one.max_attempts for one in finite]
    return Tolerance(
        max_attempts=min(limits) if limits else None if policies else max_attempts,
        crash=any(one.on_error == "crash" for one in policies),
        ordered=any(one.ordered for one in policies) or not policies,
        delays=tuple((one.retry_first, one.retry_max) for one in policies if one.retry_first),
    )


def next_step(tolerance: Tolerance, attempts: int, failed_at: float, now: float) -> Step:
    """`attempts`: how often it was tried in vain; `failed_at`: when the last of them failed, or was learned of."""
    if tolerance.max_attempts is not None and attempts >= tolerance.max_attempts:
        return GIVE_UP
    due = failed_at + tolerance.delay(attempts)
    return Wait(due) if due > now else TRY


def source_attempts(policy: HandlerPolicy, max_attempts: int) -> int | None:
    """How often in a row an `on_loop` may fail before its worker ends; None: for ever."""
    if policy.on_error == "retry":
        return None
    if policy.on_error == "crash":
        return 1
    return max_attempts if policy.max_attempts is None else policy.max_attempts
