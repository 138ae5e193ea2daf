"""Gives each worker's journal to the user that the worker runs as, at the start of a system, whatever was before.

The identity of a system tells which users' its journals may be: of one that runs, or has run, exactly the declared one;
while they change hands, the one before and the one to come. So a crash in between is seen through by the next start,
also if another user is declared by then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from actors.identity import Identity
from actors.plan import Plan
from actors.rundir import RunDirectory
from actors.user_account import Account


def hand_over_journals(
    directory: RunDirectory, plan: Plan, old: Identity | None, accounts: Mapping[str, Account]
) -> None:
    """Of all workers that have, or had, a user of their own; nobody may be at work there. Raises RunDirectoryError and
    UnsafeDirectory for what belongs to anybody else."""
    me = os.geteuid()
    before = old.users if old is not None else {}
    concerned = {*before, *accounts}
    after = {name: accounts[name].uid if name in accounts else me for name in concerned}
    either = {name: tuple(dict.fromkeys((*before.get(name, (me,)), after[name]))) for name in concerned}
    if old is not None and any(either[name] != before.get(name) for name in concerned):
        directory.rewrite_identity(msgspec.structs.replace(old, users=either))
    there = directory.journals()
    for name in sorted(concerned):
        if name in there or (name in accounts and plan.level != "memory"):
            gid = accounts[name].gid if name in accounts else os.getegid()
            directory.hand_over(name, after[name], gid, either[name])
    directory.users = users_of(accounts)


def users_of(accounts: Mapping[str, Account]) -> dict[str, tuple[int, ...]]:
    return {name: (one.uid,) for name, one in accounts.items()}
