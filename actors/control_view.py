"""What the commands at run time print. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actors.control_protocol import WorkerChanged


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The stacks of one process. `how` is the way they were got; without any, `problem` says why.

    `code` is the exit status that the problem stands for.
    """

    name: str
    pid: int | None
    how: str = ""
    stacks: str = ""
    problem: str = ""
    code: int = 0


def changed_text(changed: WorkerChanged, command: str) -> str:
    who = "no process" if changed.pid is None else f"process {changed.pid}"
    if changed.outcome == "asked":
        return f"{changed.worker}: asked to {command} ({who}, epoch {changed.epoch})"
    return f"{changed.worker}: {changed.outcome}, {who}, epoch {changed.epoch} (after {changed.seconds:.2f} s)"


def stacks_text(looks: Sequence[Look]) -> str:
    parts = []
    for look in looks:
        if look.stacks:
            how = f", by {look.how}" if look.how else ""
            parts.append(f"{look.name}, process {look.pid}{how}\n{look.stacks.rstrip()}")
    return "\n\n".join(parts)


def stacks_json(looks: Sequence[Look]) -> str:
    return msgspec.json.format(msgspec.json.encode(looks), indent=2).decode()
