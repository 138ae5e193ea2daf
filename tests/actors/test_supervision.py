"""Supervision as a whole: the grid of restart types, endings and strategies, nested groups, orders of start and stop;
then random lives of random trees against a small reference of OTP's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase as HypPhase
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.exits import ExitStatus, WorkerExit
from actors.plan import Group
from actors.restart import ChildSpec, Death, Ending, Policy, Restart, Strategy
from actors.supervision import (
    Action,
    Ended,
    GroupGaveUp,
    Kill,
    Launch,
    LetIn,
    Outcome,
    Phase,
    Restarting,
    Supervision,
    SystemGaveUp,
    Tell,
)

AT_ONCE = Policy(backoff_step=0.0, jitter=0.0)
MANY = 10**6


def group(name: str, *members: str, strategy: Strategy = Strategy.ONE_FOR_ONE, most: int = MANY,
          restart: Restart = Restart.PERMANENT) -> Group:  # fmt: skip
    return Group(name, members, strategy, most, 60.0, restart)


def ended(name: str, ending: Ending, was_up: bool = True) -> Death:
    code, signal = {Ending.NORMAL: (0, None), Ending.EXCEPTION: (1, None)}.get(ending, (None, 9))
    return Death(name, code, signal, ending is Ending.SHUTDOWN, ending.value, was_up)


@dataclass
class World:
    """Workers that do what they are told, at once, unless they are in `slow`; and what was done, in order."""

    tree: Supervision
    now: float = 0.0
    slow: set[str] = field(default_factory=set)  # these take no notice of being told to end
    done: list[Action] = field(default_factory=list)
    living: set[str] = field(default_factory=set)
    lost: bool = False

    def step(self) -> bool:
        action = self.tree.next(self.now)
        if action is None:
            return False
        self.done.append(action)
        match action:
            case Launch(name):
                assert name not in self.living, f"{name} is launched while it lives"
                self.living.add(name)
                self.tree.recovered(name, self.now)
            case LetIn(name):
                self.tree.up(name, self.now)
            case Tell(name):
                if name not in self.slow:
                    self.die(name, Ending.NORMAL)
            case Kill(name):
                self.die(name, Ending.SIGNAL)
        return True

    def settle(self) -> None:
        for _ in range(1000):
            if not self.step():
                return
        raise AssertionError(f"it never settles: {self.done[-20:]}")

    def die(self, name: str, ending: Ending) -> list[Outcome]:
        self.living.discard(name)
        outcomes = self.tree.died(ended(name, ending), self.now, 0.0)
        self.lost |= any(isinstance(one, SystemGaveUp) for one in outcomes)
        return outcomes

    def names(self, kind: type[Action]) -> list[str]:
        return [action.name for action in self.done if isinstance(action, kind)]

    def up(self) -> set[str]:
        return {name for name, seat in self.tree.seats.items() if seat.phase is Phase.UP}


def world(*groups: Group, **restarts: Restart) -> World:
    """Everything is up. The leaves of these groups are the workers; `restarts` of those that are not permanent."""
    inner = {one.name for one in groups}
    names = [member for one in groups for member in one.members if member not in inner]
    specs = [ChildSpec(name, restarts.get(name, Restart.PERMANENT)) for name in names]
    made = World(Supervision(specs, groups, AT_ONCE))
    made.settle()
    assert made.up() == set(names)
    made.done.clear()
    return made


# ------------------------------------------------------------------------------------------------------- the grid
AGAIN = {Restart.PERMANENT: set(Ending), Restart.TRANSIENT: {Ending.EXCEPTION, Ending.SIGNAL}, Restart.TEMPORARY: set()}
WITH = {
    Strategy.ONE_FOR_ONE: ["c"],
    Strategy.ONE_FOR_ALL: ["a", "b", "c", "d", "e"],
    Strategy.REST_FOR_ONE: ["c", "d", "e"],
}


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("ending", Ending)
def test_grid_of_strategies_restart_types_and_endings(strategy: Strategy, restart: Restart, ending: Ending) -> None:
    one = world(group("", "a", "b", "c", "d", "e", strategy=strategy), c=restart)
    outcomes = one.die("c", ending)
    one.settle()
    if ending in AGAIN[restart]:
        back = WITH[strategy]
        assert outcomes == [Restarting(tuple(back), 0.0, tuple(name for name in back if name != "c"))]
        assert one.names(Tell) == [name for name in reversed(back) if name != "c"], "ended in the reverse order"
        assert one.names(Launch) == one.names(LetIn) == back, "started in order"
        assert one.up() == set("abcde")
    else:
        assert outcomes == [Ended("c")]
        assert one.done == []
        assert one.up() == set("abde")


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
def test_a_temporary_sibling_is_stopped_and_stays_away(strategy: Strategy) -> None:
    one = world(group("", "a", "b", "c", strategy=strategy), b=Restart.TEMPORARY)
    one.die("a", Ending.SIGNAL)
    one.settle()
    assert one.names(Tell) == ["c", "b"]
    assert one.up() == {"a", "c"}


def test_a_transient_sibling_that_had_ended_comes_back_with_the_others() -> None:
    one = world(group("", "a", "b", strategy=Strategy.ONE_FOR_ALL), b=Restart.TRANSIENT)
    one.die("b", Ending.NORMAL)
    one.settle()
    assert one.up() == {"a"}
    one.die("a", Ending.SIGNAL)
    one.settle()
    assert one.up() == {"a", "b"}


# ------------------------------------------------------------------------------------------------------- order, limits
def test_all_are_launched_at_once_and_let_in_one_by_one() -> None:
    specs = [ChildSpec(name) for name in "abc"]
    tree = Supervision(specs, [group("", "a", "b", "c")], AT_ONCE)
    assert [tree.next(0.0) for _ in range(4)] == [Launch("a"), Launch("b"), Launch("c"), None]
    for name in "cba":
        tree.recovered(name, 0.1)
    assert [tree.next(0.1), tree.next(0.1)] == [LetIn("a"), None]
    tree.up("a", 0.2)
    assert [tree.next(0.2), tree.next(0.2)] == [LetIn("b"), None]


def test_nobody_waits_at_the_gate_for_one_that_will_not_come() -> None:
    tree = Supervision([ChildSpec("a", Restart.TEMPORARY), ChildSpec("b")], [group("", "a", "b")], AT_ONCE)
    assert [tree.next(0.0), tree.next(0.0)] == [Launch("a"), Launch("b")]
    tree.recovered("b", 0.0)
    assert tree.next(0.0) is None
    tree.died(ended("a", Ending.SIGNAL), 0.0, 0.0)
    assert tree.next(0.0) == LetIn("b")


def test_who_does_not_end_in_time_is_killed_and_only_then_the_others_start() -> None:
    one = world(group("", "a", "b", strategy=Strategy.ONE_FOR_ALL))
    one.slow.add("b")
    one.die("a", Ending.SIGNAL)
    one.settle()
    assert one.done == [Tell("b", 5.0)]
    assert one.tree.next_time() == 5.0
    one.now = 5.0
    one.settle()
    assert one.done[1] == Kill("b", "it did not end within 5 s")
    assert one.names(Launch) == one.names(LetIn) == ["a", "b"]


def test_shutdown_0_kills_without_asking_and_infinity_waits_for_ever() -> None:
    specs = [ChildSpec("a"), ChildSpec("b", shutdown=0.0), ChildSpec("c", shutdown=math.inf)]
    one = World(Supervision(specs, [group("", "a", "b", "c", strategy=Strategy.ONE_FOR_ALL)], AT_ONCE))
    one.settle()
    one.done.clear()
    one.slow.add("c")
    one.die("a", Ending.SIGNAL)
    one.settle()
    assert one.done == [Tell("c", math.inf)]
    assert one.tree.next_time() == math.inf
    one.now = 1e9
    one.settle()
    assert len(one.done) == 1
    one.die("c", Ending.NORMAL)
    one.settle()
    assert one.done[1] == Kill("b", "its shutdown is brutal_kill", wanted=True)
    assert one.up() == set("abc")


@pytest.mark.parametrize("let_in", [False, True])
def test_who_is_not_ready_in_time_is_killed(let_in: bool) -> None:
    tree = Supervision([ChildSpec("a", ready_within=2.0)], [group("", "a")], AT_ONCE)
    tree.next(0.0)
    if let_in:
        tree.recovered("a", 1.0)
        assert tree.next(100.0) == LetIn("a"), "who waits for his turn is not late"
    begun = 100.0 if let_in else 0.0
    assert tree.next_time() == begun + 2.0
    assert tree.next(begun + 1.9) is None
    assert tree.next(begun + 2.0) == Kill("a", "it was not ready within 2 s")
    assert tree.next(begun + 3.0) is None, "killed once"


def test_a_first_start_that_is_late_is_a_failed_start_and_a_later_one_is_a_death() -> None:
    one = world(group("", "a"))
    late = Death("a", None, 9, False, "late", was_up=True, late=True)
    assert one.tree.died(late, 0.0, 0.0) == [Restarting(("a",), 0.0, ())]
    first = Death("a", None, 9, False, "late", was_up=False, late=True)
    assert one.tree.died(first, 0.0, 0.0) == [SystemGaveUp("it was never up: late", ExitStatus.GAVE_UP)]


@pytest.mark.parametrize("code", [WorkerExit.JOURNAL_REFUSED, WorkerExit.START_FAILED])
def test_what_is_hopeless_ends_the_system_from_however_deep(code: WorkerExit) -> None:
    one = world(group("", "g"), group("g", "a", restart=Restart.TEMPORARY))
    (outcome,) = one.tree.died(Death("a", code, None, False, "no use", was_up=False), 0.0, 0.0)
    assert isinstance(outcome, SystemGaveUp)


def test_a_failed_start_in_the_middle_of_a_restart_is_a_death_by_the_same_strategy() -> None:
    one = world(group("", "a", "b", "c", strategy=Strategy.REST_FOR_ONE))
    one.die("a", Ending.SIGNAL)
    while one.names(LetIn) != ["a"]:
        one.step()
    one.done.clear()
    one.die("b", Ending.SIGNAL)  # launched, and waiting for its turn
    one.settle()
    assert "a" not in one.names(Launch)
    assert one.names(LetIn) == ["b", "c"]
    assert one.up() == set("abc")


def test_who_is_started_again_while_those_before_it_come_up_still_waits_for_them() -> None:
    tree = Supervision(
        [ChildSpec(name) for name in "ab"], [group("", "a", "b", strategy=Strategy.REST_FOR_ONE)], AT_ONCE
    )
    assert [tree.next(0.0), tree.next(0.0)] == [Launch("a"), Launch("b")]
    tree.recovered("a", 0.0)
    assert tree.next(0.0) == LetIn("a")
    tree.died(ended("b", Ending.SIGNAL), 0.0, 0.0)
    assert tree.next(0.0) == Launch("b")
    tree.recovered("b", 0.0)
    assert tree.next(0.0) is None
    tree.up("a", 0.0)
    assert tree.next(0.0) == LetIn("b")


# ------------------------------------------------------------------------------------------------------- groups
NESTED = [group("", "x", "g", "y"), group("g", "a", "h"), group("h", "b", "c")]


def test_groups_start_where_they_stand_and_stop_in_reverse() -> None:
    one = world(*NESTED)
    assert list(one.tree.seats) == ["x", "a", "b", "c", "y"]
    one.tree.stop()
    one.settle()
    assert one.names(Tell) == ["y", "c", "b", "a", "x"]
    assert all(seat.over for seat in one.tree.seats.values())


def test_a_group_that_gives_up_is_a_death_in_the_group_around_it() -> None:
    one = world(
        group("", "x", "g", "y"),
        group("g", "a", "h", strategy=Strategy.ONE_FOR_ALL),
        group("h", "b", "c", most=1),
    )
    one.die("b", Ending.SIGNAL)
    one.settle()
    assert one.names(Launch) == ["b"]
    one.done.clear()
    outcomes = one.die("c", Ending.SIGNAL)
    reason = "more than 1 restarts within 60 s (all together); the last death: signal"
    assert outcomes == [GroupGaveUp("h", ("b", "c"), reason), Restarting(("a", "b", "c"), 0.0, ("a", "b"))]
    one.settle()
    assert one.names(Tell) == ["b", "a"]
    assert one.names(LetIn) == ["a", "b", "c"]
    one.done.clear()
    assert one.die("b", Ending.SIGNAL) == [Restarting(("b",), 0.0, ())], "a group that comes back counts anew"


@pytest.mark.parametrize("restart", Restart)
def test_a_group_is_restarted_by_its_own_restart_type(restart: Restart) -> None:
    one = world(group("", "x", "g"), group("g", "a", "b", most=0, restart=restart))
    outcomes = one.die("a", Ending.SIGNAL)
    one.settle()
    back = restart is not Restart.TEMPORARY
    assert isinstance(outcomes[0], GroupGaveUp)
    assert outcomes[1] == (Restarting(("a", "b"), 0.0, ("b",)) if back else Ended("g"))
    assert one.up() == ({"x", "a", "b"} if back else {"x"})
    assert one.tree.seats["b"].gave_up is not back


def test_the_root_gives_up_for_all() -> None:
    one = World(Supervision([ChildSpec("a")], [group("", "g", most=0), group("g", "a", most=0)], AT_ONCE))
    one.settle()
    outcomes = one.die("a", Ending.SIGNAL)
    assert [type(outcome) for outcome in outcomes] == [GroupGaveUp, SystemGaveUp]
    assert "group 'g' was given up" in outcomes[1].reason  # type: ignore[union-attr]


def test_strategies_of_a_group_stay_inside() -> None:
    one = world(group("", "x", "g"), group("g", "a", "b", strategy=Strategy.ONE_FOR_ALL))
    one.die("a", Ending.SIGNAL)
    one.settle()
    assert one.names(LetIn) == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- requests
def test_a_restart_that_is_asked_for_counts_against_no_limit() -> None:
    one = world(group("", "a", "b", strategy=Strategy.ONE_FOR_ALL, most=0))
    for _ in range(3):
        one.tree.restart("a", one.now)
        one.settle()
    assert one.names(Tell) == one.names(Launch) == ["a"] * 3
    assert not one.lost


def test_who_was_given_up_comes_back_when_it_is_asked_for() -> None:
    one = world(group("", "x", "g"), group("g", "a", "b", most=0, restart=Restart.TEMPORARY))
    one.die("a", Ending.SIGNAL)
    one.settle()
    one.tree.restart("a", one.now)
    one.settle()
    assert one.up() == {"x", "a"}
    assert not one.tree.seats["a"].gave_up


def test_a_restart_asked_for_in_the_middle_of_another_does_not_get_stuck() -> None:
    one = world(group("", "a", "b", "c", strategy=Strategy.ONE_FOR_ALL))
    one.slow.add("c")
    one.die("a", Ending.SIGNAL)
    one.settle()
    one.tree.restart("b", one.now)
    one.die("c", Ending.NORMAL)
    one.settle()
    assert one.up() == set("abc")


def test_a_restart_asked_for_while_siblings_still_end_waits_for_them() -> None:
    one = world(group("", "a", "b", "c", strategy=Strategy.ONE_FOR_ALL))
    one.slow.add("c")
    one.die("a", Ending.SIGNAL)
    one.settle()
    one.tree.restart("a", one.now)
    one.settle()
    assert one.names(Launch) == []
    one.die("c", Ending.NORMAL)
    one.settle()
    assert one.up() == set("abc")


def test_an_end_before_it_was_up_is_a_failed_start() -> None:
    tree = Supervision([ChildSpec("a", Restart.TRANSIENT)], [group("", "a")], AT_ONCE)
    tree.next(0.0)
    (outcome,) = tree.died(ended("a", Ending.NORMAL, was_up=False), 0.0, 0.0)
    assert outcome == SystemGaveUp("it was never up: normal", ExitStatus.GAVE_UP)


def test_stop_in_the_middle_of_a_backoff_starts_nobody() -> None:
    tree = Supervision([ChildSpec("a")], [group("", "a")], Policy(backoff_initial=9.0, jitter=0.0))
    one = World(tree)
    one.settle()
    one.die("a", Ending.SIGNAL)
    one.tree.stop()
    one.now = 100.0
    one.settle()
    assert one.names(Launch) == ["a"]


def test_stop_now_tells_everyone_at_once_and_soon_kills() -> None:
    one = world(group("", "a", "b"))
    one.slow |= {"a", "b"}
    one.tree.stop()
    one.settle()
    assert one.done == [Tell("b", 5.0)]
    one.tree.stop_now(one.now, 1.0)
    one.settle()
    assert one.done[1:] == [Tell("a", 1.0)]
    one.now = 0.5
    one.tree.stop_now(one.now, 1.0)  # pressed again: no more time than before
    one.now = 1.0
    one.settle()
    assert sorted(one.names(Kill)) == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- random lives
class Reference:
    """OTP's supervisor, for workers that start at once and obey: who is up after a death, and nothing else."""

    def __init__(self, groups: Sequence[Group], restarts: dict[str, Restart]) -> None:
        self.groups = {one.name: one for one in groups}
        self.around = {member: one.name for one in groups for member in one.members}
        self.restarts = restarts
        self.times: dict[str, list[float]] = {one.name: [] for one in groups}
        self.up = {name for name in self.around if name not in self.groups}
        self.lost = False

    def leaves(self, name: str) -> list[str]:
        if name not in self.groups:
            return [name]
        return [leaf for member in self.groups[name].members for leaf in self.leaves(member)]

    def type_of(self, name: str) -> Restart:
        return self.groups[name].restart if name in self.groups else self.restarts[name]

    def terminate(self, name: str) -> None:
        self.up -= set(self.leaves(name))

    def start(self, name: str) -> None:
        if name in self.groups:
            self.times[name] = []
            for member in self.groups[name].members:
                self.start(member)
        else:
            self.up.add(name)

    def died(self, name: str, abnormal: bool, now: float) -> None:
        self.terminate(name)
        kind = self.type_of(name)
        if kind is Restart.TEMPORARY or (kind is Restart.TRANSIENT and not abnormal):
            return
        one = self.groups[self.around[name]]
        times = self.times[one.name] = [time for time in self.times[one.name] if now - time <= one.period]
        times.append(now)
        if len(times) > one.max_restarts:
            if one.name == "":
                self.lost = True
            else:
                self.died(one.name, True, now)
            return
        at = one.members.index(name)
        others = {Strategy.ONE_FOR_ONE: (), Strategy.ONE_FOR_ALL: one.members, Strategy.REST_FOR_ONE: one.members[at:]}
        for member in others[one.strategy]:
            self.terminate(member)
        for member in one.members:
            if member == name or (member in others[one.strategy] and self.type_of(member) is not Restart.TEMPORARY):
                self.start(member)


class Lives(RuleBasedStateMachine):
    """Trees of two levels; deaths of all kinds, one after the other or in the middle of what the last one set off."""

    @initialize(data=st.data())
    def plant(self, data: st.DataObject) -> None:
        kinds, strategies = st.sampled_from(Restart), st.sampled_from(Strategy)
        names, groups, tops = [], [], []
        for number in range(data.draw(st.integers(1, 3))):
            members = [f"{'abc'[number]}{one}" for one in range(data.draw(st.integers(1, 3)))]
            names += members
            if data.draw(st.booleans()):
                most = data.draw(st.integers(0, 3))
                name = f"g{number}"
                restart = data.draw(kinds)
                groups.append(group(name, *members, strategy=data.draw(strategies), most=most, restart=restart))
                tops.append(name)
            else:
                tops += members
        root = group("", *tops, strategy=data.draw(strategies), most=data.draw(st.integers(0, 6)))
        restarts = {name: data.draw(kinds) for name in names}
        specs = [ChildSpec(name, restarts[name]) for name in names]
        self.one = World(Supervision(specs, [root, *groups], AT_ONCE))
        self.reference: Reference | None = Reference([root, *groups], restarts)
        self.one.settle()
        self.order = list(self.one.tree.seats)

    @precondition(lambda self: not self.one.lost and self.one.living)
    @rule(data=st.data(), ending=st.sampled_from([Ending.NORMAL, Ending.EXCEPTION, Ending.SIGNAL]))
    def die(self, data: st.DataObject, ending: Ending) -> None:
        name = data.draw(st.sampled_from(sorted(self.one.living)))
        self.one.die(name, ending)
        if self.reference is not None:
            self.reference.died(name, ending is not Ending.NORMAL, self.one.now)
            assert self.reference.lost == self.one.lost
            if not self.one.lost:
                self.one.settle()
                assert self.one.up() == self.one.living == self.reference.up

    @rule(seconds=st.floats(0.1, 50))
    def wait(self, seconds: float) -> None:
        self.one.now += seconds

    @precondition(lambda self: not self.one.lost)
    @rule(steps=st.integers(0, 3), data=st.data())
    def interrupt(self, steps: int, data: st.DataObject) -> None:
        """From here on deaths and requests come in the middle of things: nothing that the reference could say."""
        self.reference = None
        for _ in range(steps):
            self.one.step()
        what = data.draw(st.sampled_from(["slow", "restart", "nothing"]))
        if what == "slow":
            self.one.slow ^= {data.draw(st.sampled_from(self.order))}
        elif what == "restart":
            self.one.tree.restart(data.draw(st.sampled_from(self.order)), self.one.now)

    @invariant()
    def who_is_let_in_finds_those_before_it(self) -> None:
        for action in self.one.done:
            if isinstance(action, LetIn):
                seat = self.one.tree.seats[action.name]
                assert all(self.order.index(name) < self.order.index(action.name) for name in seat.gate)
        self.one.done.clear()

    def teardown(self) -> None:
        """Whatever happened, it comes to rest: nobody wanted is down, nobody unwanted is up, and a stop ends all."""
        if not hasattr(self, "one") or self.one.lost:
            return
        self.one.slow.clear()
        for _ in range(100):
            self.one.settle()
            self.one.now += 10.0
        for name, seat in self.one.tree.seats.items():
            assert seat.phase is (Phase.UP if seat.wanted else Phase.DOWN), name
            assert seat.leaving is None
        self.one.tree.stop()
        self.one.settle()
        assert not self.one.living


Lives.TestCase.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, phases=[HypPhase.generate, HypPhase.shrink]
)
test_random_lives = Lives.TestCase
