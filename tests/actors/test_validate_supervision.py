"""Mistakes in child specs and groups, each told with the name at fault and what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors import Handler, Message, Topology, TopologyError, handle
from actors.errors import Problem
from actors.restart import ChildSpec, Restart, Strategy


class Tick(Message):
    n: int


class Clock(Handler):
    @handle
    def on_tick(self, tick: Tick) -> None: ...


def system(**options: Any) -> Topology:
    topology = Topology("trades", **options)
    for name in ("a", "b", "c"):
        topology.worker(f"w-{name}", **{name: Clock})
        topology.external(name)
    return topology


def the_one(topology: Topology) -> Problem:
    with pytest.raises(TopologyError) as caught:
        topology.compile()
    (problem,) = caught.value.problems
    return problem


def test_without_a_word_everyone_is_permanent_in_one_group() -> None:
    plan = system().compile()
    (root,) = plan.groups
    assert (root.name, root.members, root.strategy) == ("", ("w-a", "w-b", "w-c"), Strategy.ONE_FOR_ONE)
    assert (root.max_restarts, root.period) == (10, 60.0)
    assert [worker.child for worker in plan.workers] == [ChildSpec(name) for name in ("w-a", "w-b", "w-c")]


def test_what_is_said_arrives() -> None:
    topology = system(strategy="rest_for_one")
    topology.supervise("w-a", restart="transient", shutdown="brutal_kill", ready_within=1.0, hung_after=math.inf)
    topology.supervise("w-b", shutdown="infinity")
    topology.group(
        "pair", ["w-b", "w-c"], strategy="one_for_all", max_restarts=2, restart_period=5, restart="temporary"
    )
    topology.group("outer", ["pair"])
    plan = topology.compile()
    assert plan.worker("w-a").child == ChildSpec("w-a", Restart.TRANSIENT, 0.0, 1.0, math.inf)
    assert plan.worker("w-b").child.shutdown == math.inf
    root, outer, pair = plan.groups
    assert (root.members, root.strategy) == (("w-a", "outer"), Strategy.REST_FOR_ONE)
    assert outer.members == ("pair",)
    assert (pair.members, pair.strategy) == (("w-b", "w-c"), Strategy.ONE_FOR_ALL)
    assert (pair.max_restarts, pair.period, pair.restart) == (2, 5, Restart.TEMPORARY)


def test_a_group_stands_where_its_first_worker_was_declared() -> None:
    topology = system()
    topology.group("late", ["w-a", "w-c"])
    assert topology.compile().groups[0].members == ("late", "w-b")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("restart", "always", "restart='always' of 'w-a' cannot be"),
        ("restart", None, "it is one of permanent, transient, temporary"),
        ("shutdown", -1, "shutdown=-1 of 'w-a' cannot be"),
        ("shutdown", "brutal", "it is a number of seconds, 0 or more, or brutal_kill, or infinity"),
        ("shutdown", math.nan, "shutdown=nan"),
        ("shutdown", True, "shutdown=True"),
        ("ready_within", 0, "it is a number of seconds above 0"),
        ("hung_after", "5", "hung_after='5' of 'w-a' cannot be"),
    ],
)
def test_a_bad_option_of_a_child_spec_is_told(option: str, value: Any, words: str) -> None:
    topology = system()
    topology.supervise("w-a", **{option: value})
    problem = the_one(topology)
    assert problem.subject == "w-a"
    assert words in str(problem)


def test_supervising_nobody_or_twice_is_told() -> None:
    topology = system()
    topology.supervise("w-d")
    assert "there is no worker of that name" in str(the_one(topology))
    topology = system()
    topology.supervise("w-a")
    topology.supervise("w-a", restart="temporary")
    assert the_one(topology).kind == "duplicate-supervise"


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        ({"g": []}, "empty-group"),
        ({"g": ["w-x"]}, "unknown-member"),
        ({"g": ["w-a", "w-a"]}, "two-groups"),
        ({"g": ["w-a"], "h": ["w-a"]}, "two-groups"),
        ({"w-a": ["w-b"]}, "duplicate-group"),
        ({"G": ["w-b"]}, "bad-name"),
        ({"g": ["g"]}, "circle-of-groups"),
    ],
)
def test_a_bad_group_is_told(groups: dict[str, list[str]], kind: str) -> None:
    topology = system()
    for name, members in groups.items():
        topology.group(name, members)
    assert the_one(topology).kind == kind


@pytest.mark.parametrize("members", ["w-a", None, 7])
def test_members_that_are_no_list_are_told(members: Any) -> None:
    topology = system()
    topology.group("g", members)
    problem = the_one(topology)
    assert problem.kind == "bad-members"
    assert f"its members are {members!r}" in str(problem)


def test_two_groups_in_each_other_are_told() -> None:
    topology = system()
    topology.group("g", ["w-a", "h"])
    topology.group("h", ["w-b", "g"])
    with pytest.raises(TopologyError) as caught:
        topology.compile()
    assert {problem.kind for problem in caught.value.problems} == {"circle-of-groups"}


@pytest.mark.parametrize(
    "options",
    [{"strategy": "all"}, {"restart": "never"}, {"max_restarts": -1}, {"max_restarts": 1.5}, {"restart_period": 0}],
)
def test_a_bad_option_of_a_group_is_told(options: dict[str, Any]) -> None:
    topology = system()
    topology.group("g", ["w-a"], **options)
    problem = the_one(topology)
    assert (problem.kind, problem.subject) == ("bad-option", "g")


def test_a_bad_strategy_of_the_root_is_told() -> None:
    problem = the_one(system(strategy="rest-for-one"))
    assert "did you mean 'rest_for_one'?" in str(problem)
