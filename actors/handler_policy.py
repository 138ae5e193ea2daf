"""What a handler tolerates: how its failures are dealt with, how long one message may take. Declared with the class:

    class Averager(Handler, max_attempts=5, retry_first=0.1, ordered=False, busy_limit=10.0): ...

A subclass inherits what it does not say itself.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

ON_ERROR = ("dead-letter", "retry", "crash")
ATTRIBUTE = "__ringleader_policy__"  # on a class: what it said itself


class HandlerPolicy(msgspec.Struct, frozen=True):
    """
    max_attempts  how often a message is tried before it becomes a dead letter; None: as the topology says. Also how
                  often in a row an `on_loop` may fail before its worker ends, and, if it is said here, an `on_start`
    on_error      what an exception does: `dead-letter` tries again until the attempts are used up, `retry` tries again
                  for ever, also what has killed its worker (max_attempts then is for an `on_start` only), `crash` ends
                  the worker, which is a death like any other and counts as an attempt
    retry_first   seconds before the second attempt; doubled for each one after it, up to retry_max
    retry_max     seconds, at least retry_first
    ordered       True: while a message waits for its next attempt, the worker handles nothing else. False: what came
                  from the same sender waits, others go on
    busy_limit    seconds that the handling of one message, one on_loop or on_start may take, after which the worker is
                  taken for hung and killed; None: any time

    Where a message is for several handlers of one worker, the strictest hold: see `actors.attempts`.
    """

    max_attempts: int | None = None
    on_error: str = "dead-letter"
    retry_first: float = 0.0
    retry_max: float = 60.0
    ordered: bool = True
    busy_limit: float | None = None


def policy_of(cls: type) -> HandlerPolicy:
    """What a handler class and its bases say. Values are not checked: see `problems`."""
    said: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        said |= vars(base).get(ATTRIBUTE, {})
    names = set(HandlerPolicy.__struct_fields__)
    return HandlerPolicy(**{name: value for name, value in said.items() if name in names})


def problems(cls: type, has_on_start: bool = False) -> list[str]:
    """What is wrong with what a class says, as sentences."""
    said: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        said |= vars(base).get(ATTRIBUTE, {})
    found = []
    for name, value in said.items():
        if (wrong := _wrong(name, value)) is not None:
            found.append(f"{name}={value!r}: {wrong}")
    return found or _contradictions(policy_of(cls), has_on_start)


def _contradictions(policy: HandlerPolicy, has_on_start: bool) -> list[str]:
    """Values that are fine, but not together."""
    found = []
    if policy.retry_first > policy.retry_max:
        found.append(
            f"retry_first={policy.retry_first!r} and retry_max={policy.retry_max!r}: the first delay is longer than "
            "the longest; say a retry_max of at least retry_first, or a smaller retry_first"
        )
    if policy.on_error == "retry" and policy.max_attempts is not None and not has_on_start:
        found.append(
            f"on_error='retry' and max_attempts={policy.max_attempts!r}: `retry` never gives up, so there is no limit; "
            "leave max_attempts out (or say None, where it is inherited), or take on_error='dead-letter'"
        )
    return found


def _wrong(name: str, value: Any) -> str | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    match name:
        case "max_attempts":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return None if value is None or (whole and value >= 1) else "it is a whole number, 1 or more, or None"
        case "on_error":
            return None if value in ON_ERROR else f"it is one of {', '.join(ON_ERROR)}"
        case "retry_first" | "retry_max":
            return None if number and value >= 0 else "it is a number of seconds, 0 or more"
        case "busy_limit":
            return None if value is None or (number and value > 0) else "it is a number of seconds above 0, or None"
        case "ordered":
            return None if isinstance(value, bool) else "it is True or False"
    return f"there is no such option; there are {', '.join(HandlerPolicy.__struct_fields__)}"
