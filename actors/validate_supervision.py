"""The mistakes in how workers are said to be supervised: child specs, groups, strategies. Pure, like `validate`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from actors.declaration import Declaration, DeclaredGroup, DeclaredOptions
from actors.errors import Problem
from actors.naming import closest, name_problems
from actors.restart import Restart, Strategy

RESTARTS = tuple(one.value for one in Restart)
STRATEGIES = tuple(one.value for one in Strategy)
SHUTDOWNS = ("brutal_kill", "infinity")


def supervision_problems(declaration: Declaration) -> Iterator[Problem]:
    """In the order: the root, child specs, groups."""
    yield from _choice("strategy", declaration.strategy, STRATEGIES, str(declaration.name), "")
    workers = [worker.name for worker in declaration.workers if isinstance(worker.name, str)]
    seen: dict[str, str] = {}
    for said in declaration.supervised:
        if said.worker not in workers:
            text = f"supervise({said.worker!r}): there is no worker of that name"
            yield Problem(
                "unknown-worker", str(said.worker), text, closest(said.worker, workers, "workers"), said.where
            )
        elif said.worker in seen:
            text = f"worker {said.worker!r} is supervised twice (first at {seen[said.worker]})"
            yield Problem("duplicate-supervise", said.worker, text, "say it all in one call", said.where)
        seen.setdefault(str(said.worker), said.where)
        yield from _child(said)
    yield from _groups(declaration, workers)


def _child(said: DeclaredOptions) -> Iterator[Problem]:
    name, options = str(said.worker), said.options
    yield from _choice("restart", options["restart"], RESTARTS, name, said.where)
    shutdown = options["shutdown"]
    if shutdown not in SHUTDOWNS if isinstance(shutdown, str) else not _seconds(shutdown, 0):
        hint = "it is a number of seconds, 0 or more, or brutal_kill, or infinity"
        yield Problem("bad-option", name, f"shutdown={shutdown!r} of {name!r} cannot be", hint, said.where)
    for option in ("ready_within", "hung_after"):
        if not _seconds(options[option], 0) or options[option] == 0:
            hint = "it is a number of seconds above 0 (math.inf: no limit)"
            yield Problem("bad-option", name, f"{option}={options[option]!r} of {name!r} cannot be", hint, said.where)


def _choice(option: str, value: Any, choices: tuple[str, ...], name: str, where: str) -> Iterator[Problem]:
    if value not in choices:
        hint = closest(value, choices, "choices") if isinstance(value, str) else f"it is one of {', '.join(choices)}"
        yield Problem("bad-option", name, f"{option}={value!r} of {name!r} cannot be", hint, where)


def _seconds(value: Any, least: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and not math.isnan(value) and value >= least


def _groups(declaration: Declaration, workers: list[str]) -> Iterator[Problem]:
    groups = {group.name: group for group in declaration.groups if isinstance(group.name, str)}
    inside: dict[str, str] = {}
    seen: set[str] = set()
    for group in declaration.groups:
        yield from name_problems(group.name, "group", group.where)
        name = str(group.name)
        if name in workers or name in seen:
            kind = "a worker" if name in workers else "another group"
            hint = "workers and groups share one name space: take another name"
            yield Problem("duplicate-group", name, f"{kind} is called {name!r} as well", hint, group.where)
        seen.add(name)
        if not isinstance(group.members, tuple):
            text = f"group {name!r}: its members are {group.members!r}"
            yield Problem("bad-members", name, text, "give a list of names of workers and groups", group.where)
            continue
        if not group.members:
            yield Problem("empty-group", name, f"group {name!r} has no members", "name its workers", group.where)
        yield from _members(group, [*workers, *groups], inside)
        yield from _choice("strategy", group.options["strategy"], STRATEGIES, name, group.where)
        yield from _choice("restart", group.options["restart"], RESTARTS, name, group.where)
        restarts, period = group.options["max_restarts"], group.options["restart_period"]
        if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 0:
            text, hint = f"max_restarts={restarts!r} of {name!r} cannot be", "it is a whole number, 0 or more"
            yield Problem("bad-option", name, text, hint, group.where)
        if not _seconds(period, 0) or not 0 < period < math.inf:
            text, hint = f"restart_period={period!r} of {name!r} cannot be", "it is a number of seconds above 0"
            yield Problem("bad-option", name, text, hint, group.where)
    yield from _circles(groups)


def _members(group: DeclaredGroup, known: list[str], inside: dict[str, str]) -> Iterator[Problem]:
    for member in group.members:
        if member not in known:
            hint = closest(member, known, "workers and groups")
            text = f"group {group.name!r} names {member!r}, which is no worker and no group"
            yield Problem("unknown-member", str(member), text, hint, group.where)
        elif member in inside:
            hint = "a worker is supervised in one place: leave it in one of them"
            text = f"{member!r} is in group {inside[member]!r} and in group {group.name!r}"
            if inside[member] == group.name:
                text = f"{member!r} is in group {group.name!r} twice"
            yield Problem("two-groups", member, text, hint, group.where)
        else:
            inside[member] = str(group.name)


def _circles(groups: dict[str, DeclaredGroup]) -> Iterator[Problem]:
    """A group that lies, however deep, in itself is never reached from the root."""
    listed = {name: group.members for name, group in groups.items() if isinstance(group.members, tuple)}
    around = {member: name for name, members in listed.items() for member in members if isinstance(member, str)}
    for name, group in groups.items():
        seen, at = {name}, around.get(name)
        while at is not None and at not in seen:
            seen.add(at)
            at = around.get(at)
        if at == name:
            text, hint = f"group {name!r} lies in itself", "take one of them out of the other"
            yield Problem("circle-of-groups", name, text, hint, group.where)
