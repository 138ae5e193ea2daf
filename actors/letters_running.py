"""Requeues and drops dead letters of a running system: by commands from its gateway to its workers, each durable and
exactly once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.dead_letters import LetterChange, LetterPlace
from actors.gateway import Gateway
from actors.letter_commands import Action, commands
from actors.plan import Plan
from actors.system_errors import CommandTimeout, SendTimeout

ANSWER_WITHIN = 30.0


class LetterRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """What `ringleader dead-letters` asks of a running system, as JSON."""

    letters: tuple[LetterPlace, ...]
    timeout: float = ANSWER_WITHIN


class Requeue(LetterRequest, frozen=True, kw_only=True, tag="requeue"): ...


class Drop(LetterRequest, frozen=True, kw_only=True, tag="drop"): ...


def change_running(
    plan: Plan, gateway: Gateway, action: Action, letters: Sequence[LetterPlace], timeout: float
) -> list[LetterChange]:
    """What has become of each letter, in the given order. Raises SystemClosed when the system is ending.

    What was not answered in time has that as its problem: the command is on its way and takes effect all the same.
    """
    deadline = time.monotonic() + timeout
    workers = {worker.name for worker in plan.workers}
    problems: dict[LetterPlace, str] = {}
    for worker in dict.fromkeys(letter.worker for letter in letters):
        mine = list(dict.fromkeys(letter for letter in letters if letter.worker == worker))
        if worker not in workers:
            problems |= dict.fromkeys(mine, f"this system has no worker {worker!r}; stop it first")
            continue
        for part, body in commands(action, [(letter.peer, letter.seq) for letter in mine]):
            try:
                outcome = gateway.command(worker, body, max(0.0, deadline - time.monotonic()))
            except (CommandTimeout, SendTimeout) as late:
                outcome = [str(late)] * len(part)
            if len(outcome) != len(part):  # the worker could make nothing of it
                outcome = [*outcome, "the command was not understood"][:1] * len(part)
            problems |= {LetterPlace(worker, *place): why for place, why in zip(part, outcome, strict=True)}
    return [LetterChange.of(letter, action, problems[letter]) for letter in letters]


def request(action: Action, letters: Sequence[LetterPlace], timeout: float = ANSWER_WITHIN) -> dict[str, Any]:
    """What to send to a running system; `read_request` takes it there, from JSON too."""
    kind = Requeue if action == "requeue" else Drop
    asked: dict[str, Any] = msgspec.to_builtins(kind(letters=tuple(letters), timeout=timeout))
    return asked


def read_request(asked: Any) -> tuple[Action, tuple[LetterPlace, ...], float]:
    """Raises msgspec.ValidationError for anything else."""
    found = msgspec.convert(asked, type=Requeue | Drop)
    return "requeue" if isinstance(found, Requeue) else "drop", found.letters, found.timeout
