"""Supervision: whom to launch, to let in, to tell to end or to kill, and when. As in Erlang/OTP's supervision trees.

Pure: times come in as seconds of a monotonic clock, chance as a number, and what is to be done comes out as actions.
Nothing is started here. Workers are the leaves of a tree of groups; names of both are one name space.

What holds:
- Workers of one order (the first start, or a restart by a strategy) are launched at once, since much of coming up is
  importing and reading journals, but let in one by one: the handlers of a worker are made when all before it are up.
- Those who have to go first are told in the reverse order, each when the one after it is dead, and none is launched
  again before all of them are. Whoever does not end within its `shutdown` is killed.
- A death is dealt with by the innermost group. When that gives up, it is a death in the group around it, which restarts
  the whole group, with a fresh window, or gives up in turn. Unlike in OTP, where a supervisor that gives up exits with
  `shutdown`, this is an abnormal end: a `transient` group is started again, a `temporary` one stays down.
- A temporary member that is stopped for the sake of a sibling stays away; a transient one that had ended normally comes
  back with its siblings; a group that is started again starts all of its members. As in OTP.
- A restart that was asked for concerns one worker and counts against no limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from actors.exits import ExitStatus
from actors.plan import Group
from actors.restart import (
    ChildSpec,
    Death,
    Finished,
    GiveUp,
    History,
    Policy,
    Restart,
    RestartAfter,
    affected,
    decide,
    hopeless,
)


class Phase(Enum):
    DOWN = "down"
    LAUNCHED = "launched"  # it is a process: imports and recovers
    WAITING = "waiting"  # recovered; waits for its turn
    STARTING = "starting"  # let in: its handlers are made
    UP = "up"


@dataclass(frozen=True, slots=True)
class Launch:
    name: str


@dataclass(frozen=True, slots=True)
class LetIn:
    name: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Ask it to end. It has `seconds` for that."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """`wanted`: its child spec says to end it in this way, so it is nobody's fault."""

    name: str
    reason: str
    wanted: bool = False


Action = Launch | LetIn | Tell | Kill


@dataclass(frozen=True, slots=True)
class Restarting:
    """These come back, in this order, not before the delay is over; those of `stopped` who live have to end first."""

    names: tuple[str, ...]
    delay: float
    stopped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """It stays away, as it may."""

    name: str


@dataclass(frozen=True, slots=True)
class GroupGaveUp:
    """These workers are stopped; what comes next says whether they come back."""

    group: str
    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SystemGaveUp:
    reason: str
    status: ExitStatus


Outcome = Restarting | Ended | GroupGaveUp | SystemGaveUp


@dataclass(slots=True)
class Leaving:
    """It has to end: told when those of `after` are dead, killed when it takes longer than `limit` seconds."""

    after: frozenset[str]
    limit: float
    deadline: float | None = None  # None: not told yet
    killed: bool = False
    own: bool = False  # nobody has told it: it ends by itself


@dataclass(slots=True)
class Seat:
    """The place of one worker in the tree."""

    spec: ChildSpec
    group: str
    phase: Phase = Phase.DOWN
    since: float = 0.0  # when this phase began
    wanted: bool = True  # it is, or is to be, started
    due: float = 0.0  # not launched before
    clear: frozenset[str] = frozenset()  # nor before these are dead
    gate: frozenset[str] = frozenset()  # not let in before these are up
    leaving: Leaving | None = None
    late: bool = False  # killed because it did not come up in time
    gave_up: bool = False  # its group was given up

    @property
    def over(self) -> bool:
        return self.phase is Phase.DOWN and not self.wanted


@dataclass(slots=True)
class _Node:
    """A group, with the restarts of its members that still count."""

    group: Group
    policy: Policy
    history: History = field(default_factory=History)


class Supervision:
    """The state of a tree. `groups`: the root first. `backoff`: a policy, of which only the delays are used."""

    def __init__(self, specs: Sequence[ChildSpec], groups: Sequence[Group], backoff: Policy) -> None:
        root = groups[0]
        self.root = root.name
        self._nodes = {group.name: _Node(group, _policy(group, backoff)) for group in groups}
        self._parent = {member: group.name for group in groups for member in group.members}
        by_name = {spec.name: spec for spec in specs}
        self.seats = {name: Seat(by_name[name], self._parent[name]) for name in self.leaves(root.name)}
        self.stopping = False
        self._order(list(self.seats), 0.0)

    def leaves(self, name: str) -> list[str]:
        """The workers of a group, in the order of their start; of a worker, itself."""
        node = self._nodes.get(name)
        if node is None:
            return [name]
        return [leaf for member in node.group.members for leaf in self.leaves(member)]

    # ------------------------------------------------------------------------------------------------ what to do
    def next(self, now: float) -> Action | None:
        """One thing to be done now, taken as done; None when there is nothing."""
        for seat in self.seats.values():
            action = self._due(seat, now)
            if action is not None:
                return action
        return None

    def _due(self, seat: Seat, now: float) -> Action | None:
        name, leaving = seat.spec.name, seat.leaving
        if seat.phase is Phase.DOWN:
            if seat.wanted and seat.due <= now and self._gone(seat.clear):
                self._enter(seat, Phase.LAUNCHED, now)
                return Launch(name)
            return None
        if leaving is not None:
            return self._see_off(seat, leaving, now)
        if seat.phase is Phase.WAITING and self._passable(seat.gate):
            self._enter(seat, Phase.STARTING, now)
            return LetIn(name)
        if not seat.late and now >= self._late_at(seat):
            seat.late = True
            return Kill(name, f"it was not ready within {seat.spec.ready_within:g} s")
        return None

    def _see_off(self, seat: Seat, leaving: Leaving, now: float) -> Action | None:
        name = seat.spec.name
        if leaving.deadline is None:
            if not self._gone(leaving.after):
                return None
            leaving.deadline = now + leaving.limit
            if leaving.limit > 0:
                return Tell(name, leaving.limit)
            leaving.killed = True
            return Kill(name, "its shutdown is brutal_kill", wanted=True)
        if leaving.killed or now < leaving.deadline:
            return None
        leaving.killed = True
        return Kill(name, f"it did not end within {leaving.limit:g} s")

    def may_enter(self, name: str) -> bool:
        """All whom it would wait for at the gate are up, or will not come: it need not be let in when it gets there."""
        return self._passable(self.seats[name].gate)

    def next_time(self) -> float:
        """When something becomes due by time alone; math.inf for never."""
        return min((self._time(seat) for seat in self.seats.values()), default=math.inf)

    def _time(self, seat: Seat) -> float:
        if seat.phase is Phase.DOWN:
            return seat.due if seat.wanted and self._gone(seat.clear) else math.inf
        if seat.leaving is not None:
            return math.inf if seat.leaving.deadline is None or seat.leaving.killed else seat.leaving.deadline
        return math.inf if seat.late else self._late_at(seat)

    @staticmethod
    def _late_at(seat: Seat) -> float:
        return seat.since + seat.spec.ready_within if seat.phase in {Phase.LAUNCHED, Phase.STARTING} else math.inf

    def _gone(self, names: Iterable[str]) -> bool:
        """The incarnations that had to end are dead; others may have taken their places."""
        return all(self.seats[name].leaving is None for name in names)

    def _passable(self, names: Iterable[str]) -> bool:
        """All of them are up, or will not come."""
        return all(self.seats[name].phase is Phase.UP or not self.seats[name].wanted for name in names)

    @staticmethod
    def _enter(seat: Seat, phase: Phase, now: float) -> None:
        seat.phase, seat.since = phase, now

    # ------------------------------------------------------------------------------------------------ what happened
    def recovered(self, name: str, now: float) -> None:
        """It has what its journal held, and waits at the gate."""
        if self.seats[name].phase is Phase.LAUNCHED:
            self._enter(self.seats[name], Phase.WAITING, now)

    def up(self, name: str, now: float) -> None:
        self._enter(self.seats[name], Phase.UP, now)

    def ends_itself(self, name: str, now: float) -> None:
        """It is in its last moments without having been told to end: it has the time that its child spec gives it."""
        seat = self.seats[name]
        if seat.leaving is None and not self.stopping:
            seat.leaving = Leaving(frozenset(), seat.spec.shutdown, now + (seat.spec.shutdown or math.inf), own=True)

    def goes_on(self, name: str) -> None:
        """They were not its last moments."""
        leaving = self.seats[name].leaving
        if leaving is not None and leaving.own:
            self.seats[name].leaving = None

    def died(self, death: Death, now: float, random: float) -> list[Outcome]:
        """A process is proven dead, or could not be launched. What follows, the innermost group first."""
        seat = self.seats[death.name]
        leaving, seat.leaving, seat.late = seat.leaving, None, False
        self._enter(seat, Phase.DOWN, now)
        if self.stopping:
            seat.wanted = False
            return []
        if (lost := hopeless(death)) is not None:
            return [SystemGaveUp(lost.reason, lost.status)]
        if leaving is not None and not leaving.own:
            return [] if seat.wanted else [Ended(death.name)]
        return self._decide(seat.spec, seat.group, death, now, random)

    def _decide(self, spec: ChildSpec, group: str, death: Death, now: float, random: float) -> list[Outcome]:
        """About the death of a member, a worker or a group, of this group."""
        node = self._nodes[group]
        decision, node.history = decide(spec, node.policy, node.history, death, now, random)
        match decision:
            case RestartAfter(delay):
                return [self._restart(node, spec.name, now, delay)]
            case Finished():
                self._dismiss(self.leaves(spec.name))
                return [Ended(spec.name)]
            case GiveUp(reason, status):
                if group == self.root:
                    return [SystemGaveUp(reason, status)]
        around = self._parent[group]
        workers = tuple(self.leaves(group))
        gone = Death(group, None, None, False, f"group {group!r} was given up: {decision.reason}")
        outcomes = self._decide(ChildSpec(group, node.group.restart), around, gone, now, random)
        for name in workers:
            self.seats[name].gave_up = not self.seats[name].wanted
        return [GroupGaveUp(group, workers, decision.reason), *outcomes]

    def _restart(self, node: _Node, dead: str, now: float, delay: float) -> Restarting:
        members = affected(node.group.strategy, node.group.members, dead)
        concerned = [leaf for member in members for leaf in self.leaves(member)]
        back = [member for member in members if member == dead or not self._stays_away(member)]
        names = [leaf for member in back for leaf in self.leaves(member)]
        for member in members:
            self._forget(member)
        stopped = tuple(name for name in concerned if self.seats[name].phase is not Phase.DOWN)
        self._order(names, now + delay, self._dismiss(concerned))
        return Restarting(tuple(names), delay, stopped)

    def _stays_away(self, member: str) -> bool:
        """A temporary member does not come back because of a sibling's death."""
        node = self._nodes.get(member)
        return (node.group.restart if node is not None else self.seats[member].spec.restart) is Restart.TEMPORARY

    def _forget(self, member: str) -> None:
        """A group that is started anew begins with an empty window, and so do those inside."""
        node = self._nodes.get(member)
        if node is not None:
            node.history = History()
            for inner in node.group.members:
                self._forget(inner)

    # ------------------------------------------------------------------------------------------------ orders
    def _order(self, names: Sequence[str], due: float, clear: frozenset[str] = frozenset()) -> None:
        """Have all of them started, in this order, when those of `clear` are dead; who of them lives ends first."""
        living = self._dismiss(names) | clear
        for number, name in enumerate(names):
            seat = self.seats[name]
            waiting = {one for one in seat.gate if self.seats[one].phase is not Phase.UP}
            seat.wanted, seat.gave_up, seat.due, seat.clear = True, False, due, living
            seat.gate = frozenset(names[:number]) | waiting

    def _dismiss(self, names: Sequence[str], limit: float = math.inf) -> frozenset[str]:
        """Have all of them end, in the reverse order, and stay away. Returns who lives."""
        living = [name for name in names if self.seats[name].phase is not Phase.DOWN]
        for number, name in enumerate(living):
            seat = self.seats[name]
            if seat.leaving is None or seat.leaving.own:
                seat.leaving = Leaving(frozenset(living[number + 1 :]), min(limit, seat.spec.shutdown))
        for name in names:
            self.seats[name].wanted = False
        return frozenset(living)

    def restart(self, name: str, now: float) -> None:
        """Have this one started anew, or again if it had ended or was given up."""
        seat = self.seats[name]
        self._order([name], now, frozenset(one for one in seat.clear if self.seats[one].leaving is not None))

    def stop(self) -> None:
        """Have all of them end, in the reverse order."""
        self.stopping = True
        for seat in self.seats.values():
            if seat.leaving is not None and not seat.leaving.killed:
                seat.leaving = None  # told again: this time it is the end
        self._dismiss(list(self.seats))

    def stop_now(self, now: float, grace: float) -> None:
        """Have all of them end at once; after `grace` seconds they are killed."""
        if not self.stopping:
            self.stop()
        for seat in self.seats.values():
            leaving = seat.leaving
            if leaving is not None:
                leaving.after, leaving.limit = frozenset(), min(leaving.limit, grace)
                if leaving.deadline is not None:
                    leaving.deadline = min(leaving.deadline, now + grace)


def _policy(group: Group, backoff: Policy) -> Policy:
    return Policy(
        max_restarts=group.max_restarts,
        period=group.period,
        strategy=group.strategy,
        backoff_initial=backoff.backoff_initial,
        backoff_step=backoff.backoff_step,
        backoff_factor=backoff.backoff_factor,
        backoff_max=backoff.backoff_max,
        jitter=backoff.jitter,
    )


def one_group(specs: Iterable[ChildSpec], policy: Policy) -> tuple[Group, ...]:
    """The tree of a root only."""
    names = tuple(spec.name for spec in specs)
    return (Group("", names, policy.strategy, policy.max_restarts, policy.period),)


def depth(groups: Sequence[Group]) -> Mapping[str, int]:
    """How deep each member lies; those of the root at 1."""
    found: dict[str, int] = {groups[0].name: 0}
    for group in groups:
        found |= dict.fromkeys(group.members, found[group.name] + 1)
    return found
