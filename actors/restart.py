"""Restart decisions: whether, when and with whom a dead worker is started again.

Pure: time and randomness come in as arguments, nothing is started here. The words are those of Erlang/OTP's supervisor:

    permanent    always restarted
    transient    restarted after an abnormal end (an exception, a signal), not after a normal or a requested one
    temporary    never restarted

    intensity    more than `max_restarts` restarts within `period` seconds, all children counted together: the
                 supervisor gives up. A restart exactly `period` seconds old still counts, as in OTP.

OTP restarts at once. Here the first restart of a child within the period is at once as well; from the second one on it
backs off, because what dies again at once mostly dies of something that is still there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import msgspec

from actors.exits import ExitStatus, WorkerExit


class Restart(Enum):
    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Strategy(Enum):
    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class Ending(Enum):
    """How a process came to its end."""

    NORMAL = "normal"  # exit code 0, by itself
    SHUTDOWN = "shutdown"  # on request of the supervisor or the user, whatever the code
    EXCEPTION = "exception"  # any other exit code, or it could not even be started
    SIGNAL = "signal"


class ChildSpec(msgspec.Struct, frozen=True):
    """What the supervisor knows of one worker before it is started. Times are seconds.

    shutdown       how long it may take to end when it is told to, before it is killed; 0 kills at once (OTP's
                   brutal_kill), math.inf waits for ever
    ready_within   how long it may take until its `on_start` is done, from the moment that it is its turn
    hung_after     how long its loop may be silent, or the process be stopped, before it is killed; math.inf: for ever
    """

    name: str
    restart: Restart = Restart.PERMANENT
    shutdown: float = 5.0
    ready_within: float = 60.0
    hung_after: float = 30.0


class Policy(msgspec.Struct, frozen=True):
    """Limits and delays of restarts. Seconds are seconds of a monotonic clock.

    The n-th restart of one child within the period waits `backoff_initial` for n = 1, then `backoff_step` for n = 2 and
    `backoff_factor` times longer for each one after it, at most `backoff_max`; of this, up to the fraction `jitter` is
    taken off at random, so that many that died together do not come back together.
    """

    max_restarts: int = 20
    period: float = 60.0
    backoff_initial: float = 0.0
    backoff_step: float = 0.05
    backoff_factor: float = 2.0
    backoff_max: float = 5.0
    jitter: float = 0.2
    strategy: Strategy = Strategy.ONE_FOR_ONE

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"restart policy: {name} is {value!r}, but must be finite and not negative")
        if not self.period > 0:
            raise ValueError(f"restart policy: period is {self.period!r}, but must be more than 0 seconds")
        if self.backoff_factor < 1:
            raise ValueError(f"restart policy: backoff_factor is {self.backoff_factor!r}, but must be at least 1")
        if self.jitter > 1:
            raise ValueError(f"restart policy: jitter is {self.jitter!r}, but is a fraction between 0 and 1")


class Death(msgspec.Struct, frozen=True):
    """One end of one incarnation, or of a group. `code` and `signal` are both None if it never came to a process."""

    name: str
    code: int | None
    signal: int | None
    requested: bool
    reason: str
    was_up: bool = True  # this or an earlier incarnation had come as far as handling messages
    late: bool = False  # killed because it did not come up in time

    @property
    def ending(self) -> Ending:
        if self.requested:
            return Ending.SHUTDOWN
        if self.signal is not None:
            return Ending.SIGNAL
        return Ending.NORMAL if self.code == 0 else Ending.EXCEPTION


class History(msgspec.Struct, frozen=True):
    """The restarts that still count: when, and of whom; oldest first."""

    restarts: tuple[tuple[float, str], ...] = ()

    def within(self, period: float, now: float) -> History:
        return History(tuple((time, name) for time, name in self.restarts if now - time <= period))

    def count(self, name: str) -> int:
        return sum(1 for _, restarted in self.restarts if restarted == name)


class RestartAfter(msgspec.Struct, frozen=True):
    delay: float


class Finished(msgspec.Struct, frozen=True):
    """It ended as it may, and stays away."""


class GiveUp(msgspec.Struct, frozen=True):
    reason: str
    status: ExitStatus = ExitStatus.GAVE_UP


Decision = RestartAfter | Finished | GiveUp


def decide(
    spec: ChildSpec, policy: Policy, history: History, death: Death, now: float, random: float
) -> tuple[Decision, History]:
    """What to do about a death. `random` is in [0, 1). The history that comes back is the one for the next call."""
    history = history.within(policy.period, now)
    if (lost := hopeless(death)) is not None:
        return lost, history
    if not wants_restart(spec.restart, death.ending):
        return Finished(), history
    if death.code == WorkerExit.NO_SPACE:
        # It only has to wait for room, however long that takes: others may make it.
        return RestartAfter(policy.backoff_max * (1 - policy.jitter * random)), history
    history = History((*history.restarts, (now, spec.name)))
    if len(history.restarts) > policy.max_restarts:
        limit = f"more than {policy.max_restarts} restarts within {policy.period:g} s"
        return GiveUp(f"{limit} (all together); the last death: {death.reason}"), history
    return RestartAfter(backoff(policy, history.count(spec.name), random)), history


def wants_restart(restart: Restart, ending: Ending) -> bool:
    if restart is Restart.TRANSIENT:
        return ending in {Ending.EXCEPTION, Ending.SIGNAL}
    return restart is Restart.PERMANENT


def backoff(policy: Policy, nth: int, random: float) -> float:
    """The delay before the n-th restart (from 1) of one child within the period."""
    if nth <= 1:
        delay = policy.backoff_initial
    else:
        try:
            delay = policy.backoff_step * policy.backoff_factor ** (nth - 2)
        except OverflowError:
            delay = policy.backoff_max
    return min(delay, policy.backoff_max) * (1 - policy.jitter * random)


def blames_message(death: Death) -> bool:
    """Whether the message in progress is suspected of this death: not if another cause is known."""
    return not death.requested and death.code not in _OTHER_CAUSES


_OTHER_CAUSES = {
    WorkerExit.JOURNAL_REFUSED,
    WorkerExit.JOURNAL_POISONED,
    WorkerExit.NO_SPACE,
    WorkerExit.ORPHANED,
    WorkerExit.LOST,
}


def affected(strategy: Strategy, order: Sequence[str], dead: str) -> tuple[str, ...]:
    """Who is started anew together with the dead one, in order of start; those of them who live are stopped first."""
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return (dead,)
        case Strategy.ONE_FOR_ALL:
            return tuple(order)
        case Strategy.REST_FOR_ONE:
            return tuple(order[list(order).index(dead) :])


def hopeless(death: Death) -> GiveUp | None:
    """Ends that another try cannot make good, whatever the child spec says."""
    if death.code == WorkerExit.JOURNAL_REFUSED:
        return GiveUp(death.reason, ExitStatus.DAMAGED)
    if death.code == WorkerExit.NO_SPACE and not death.was_up:
        return GiveUp(death.reason, ExitStatus.NO_SPACE)
    if death.code == WorkerExit.START_FAILED and not death.was_up:
        # As in OTP: a child that cannot start when the system starts is an error of that start, not a death.
        return GiveUp(death.reason, ExitStatus.GAVE_UP)
    if not death.was_up and (death.late or death.ending is Ending.NORMAL):
        return GiveUp(f"it was never up: {death.reason}", ExitStatus.GAVE_UP)
    if not death.was_up and death.code is None and death.signal is None:
        return GiveUp(death.reason, ExitStatus.GAVE_UP)
    return None
