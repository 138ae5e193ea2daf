"""Requeues and drops dead letters of a running system: by commands from its gateway to its workers, each durable and
exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from actors.control_socket import Peer, Registry
from actors.dead_letters import LetterChange, LetterPlace
from actors.errors import MessageTooLarge
from actors.gateway import Gateway
from actors.letter_commands import UNKNOWN, Action, commands
from actors.plan import GATEWAY, Plan
from actors.system_errors import CommandTimeout, SendTimeout

ANSWER_WITHIN = 30.0
ASKED_AT_ONCE = 256  # letters in one request to the control socket, whose size is limited


class LetterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `ringleader dead-letters` asks of a running system, through its control socket."""

    letters: tuple[LetterPlace, ...]
    timeout: float = ANSWER_WITHIN


class LetterAnswer(msgspec.Struct, frozen=True):
    changes: list[LetterChange]


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
        most = plan.in_ring(GATEWAY, (worker,))
        for part, body in commands(action, [(letter.peer, letter.seq) for letter in mine], most):
            try:
                outcome = gateway.command(worker, body, max(0.0, deadline - time.monotonic()))
            except (CommandTimeout, SendTimeout) as late:
                outcome = [str(late)] * len(part)
            except MessageTooLarge:  # one letter, by a name that no worker has
                outcome = [UNKNOWN]
            if len(outcome) != len(part):  # the worker could make nothing of it
                outcome = [*outcome, "the command was not understood"][:1] * len(part)
            problems |= {LetterPlace(worker, *place): why for place, why in zip(part, outcome, strict=True)}
    return [LetterChange.of(letter, action, problems[letter]) for letter in letters]


def serve(registry: Registry, change: Callable[[Action, Sequence[LetterPlace], float], list[LetterChange]]) -> None:
    """Add the commands to those of the control socket."""

    def serving(action: Action) -> Callable[[LetterRequest, Peer], LetterAnswer]:
        return lambda asked, peer: LetterAnswer(change(action, asked.letters, asked.timeout))

    for action in get_args(Action):
        registry.add(command_name(action), LetterRequest, serving(action), blocks=True)


def ask_running(path: Path, action: Action, letters: Sequence[LetterPlace], timeout: float) -> list[LetterChange]:
    """Has the system that runs in `path` do it. Raises what `control_client.ask` does; letters that were asked for
    before that have taken effect."""
    from actors.control_client import ask

    changes: list[LetterChange] = []
    for at in range(0, len(letters), ASKED_AT_ONCE):
        asked = LetterRequest(letters=tuple(letters[at : at + ASKED_AT_ONCE]), timeout=timeout)
        changes += ask(path, command_name(action), asked, LetterAnswer).changes
    return changes


def command_name(action: Action) -> str:
    return f"{action}-dead-letters"
