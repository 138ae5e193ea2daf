"""What a changed topology does with what the last run left. Pure.

The identity of a peer is its worker, the identity of state is its handler. Added workers, handlers and routes just
work. State follows a handler that moved to another worker, provided that nothing is pending for the worker it left.
What cannot be honoured is refused before anything starts, with what is pending.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from actors.plan import GATEWAY, Plan
from actors.resume import RUNTIME
from actors.system_errors import TopologyChanged
from persist import Recovered


class Move(msgspec.Struct, frozen=True):
    """A handler whose state is to be carried from one worker's journal to another's."""

    handler: str
    source: str
    target: str


def pending(journals: Mapping[str, Recovered]) -> dict[tuple[str, str], int]:
    """(sender, receiver) -> messages that were committed by the one and not consumed by the other."""
    found: dict[tuple[str, str], int] = {}
    for sender, left in journals.items():
        for receiver, assigned in left.assigned.items():
            known = journals.get(receiver)
            consumed = known.watermarks.get(sender, 0) if known is not None else left.acked.get(receiver, 0)
            if assigned > consumed:
                found[sender, receiver] = assigned - consumed
    return found


def moves(plan: Plan, journals: Mapping[str, Recovered], hosted_before: Mapping[str, tuple[str, ...]]) -> list[Move]:
    """Whose state has to be carried where. Raises TopologyChanged for what cannot be honoured.

    `journals` by worker, and the gateway's; `hosted_before` is worker -> handlers of the last run.
    """
    waiting = pending(journals)
    _refuse_unreachable(plan, waiting)
    host_before = {handler: worker for worker, handlers in hosted_before.items() for handler in handlers}
    found = []
    for handler in (one.name for one in plan.handlers):
        target = plan.worker_of(handler)
        holders = [worker for worker, left in journals.items() if _holds(left, handler)]
        source = host_before.get(handler, target)
        if source not in holders:
            # It never had state there, or the run that was to take it there never came up.
            source = target if target in holders or not holders else holders[0]
        if source != target:
            found.append(Move(handler, source, target))
    for move in found:
        held = {f"{sender} -> {receiver}": n for (sender, receiver), n in waiting.items() if receiver == move.source}
        if held:
            raise TopologyChanged(f"handler {move.handler!r} moved from {move.source!r} to {move.target!r}", held)
    return found


def refuse_other_layouts(plan: Plan, names: Mapping[str, int]) -> None:
    """TopologyChanged for those of `names`, of which a journal has pending messages and the plan knows nothing, that
    are routes of a fixed message which now has another layout."""
    for route in plan.routes:
        known = f"route {route.key[0]} -> {route.type_name}"
        for name, count in names.items():
            if route.layout and name.startswith(f"{known}{{"):
                before = name.removeprefix(known)
                change = f"the layout of {route.type_name} has changed from {before} to {route.layout}"
                raise TopologyChanged(change, {known: count})


def carry(move: Move, source: Recovered, target: Recovered) -> None:
    """Put the handler's state into what the target's journal is opened with."""
    target.states.pop(move.handler, None)
    target.tables.pop(move.handler, None)
    if move.handler in source.states:
        target.states[move.handler] = source.states[move.handler]
    if move.handler in source.tables:
        target.tables[move.handler] = dict(source.tables[move.handler])


def _holds(left: Recovered, handler: str) -> bool:
    return handler != RUNTIME and (handler in left.states or handler in left.tables)


def _refuse_unreachable(plan: Plan, waiting: Mapping[tuple[str, str], int]) -> None:
    known = {GATEWAY, *(worker.name for worker in plan.workers)}
    lost = {
        f"{sender} -> {receiver}": n for (sender, receiver), n in waiting.items() if not {sender, receiver} <= known
    }
    if lost:
        raise TopologyChanged("workers are gone from the topology", lost)
    if plan.level == "memory" and waiting:
        raise TopologyChanged(
            "the level is memory now, which reads no journals",
            {f"{sender} -> {receiver}": n for (sender, receiver), n in waiting.items()},
        )
