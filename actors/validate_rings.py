"""The mistakes in the sizes that a declaration gives for rings, each with the edge and the values. Pure.

That all of them together fit in shared memory is looked at when the system is started (`ring_sizes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from actors.declaration import Declaration, DeclaredExternal, DeclaredRoute
from actors.declared_rings import Said, holds_all, homes, pairs, rows_of, said_of_rings, said_of_workers
from actors.errors import Problem
from actors.handler import HandlerDescription
from actors.plan import GATEWAY
from actors.ring_sizes import largest_message, ring_for, ring_wrong


def ring_problems(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> Iterator[Problem]:
    """Of routes, externals and workers; of the topology's own number somebody else tells."""
    home = homes(declaration)
    for route in declaration.routes:
        yield from _of(f"route from {route.source!r:.80}", str(route.source), route)
        known_ends = all(isinstance(end, str) and end in home for end in (route.source, *route.targets))
        if known_ends and route.ring_bytes is not None and not pairs(home, route.source, route.targets):
            text = f"route from {route.source!r}: ring_bytes={route.ring_bytes!r:.80}, but it takes no ring"
            hint = "leave it out: only messages from one worker to another take a ring"
            yield Problem("bad-ring", route.source, text, hint, route.where)
    for external in declaration.externals:
        yield from _of(f"external({external.handler!r:.80})", str(external.handler), external)
    if all(isinstance(declaration.numbers[name], int) for name in ("max_message_bytes", "max_claim_bytes")):
        yield from _too_small(declaration, known)


def _of(what: str, name: str, one: DeclaredRoute | DeclaredExternal) -> Iterator[Problem]:
    wrong = None if one.ring_bytes is None else ring_wrong(one.ring_bytes)
    if wrong is not None:
        yield Problem("bad-ring", name, f"{what}: ring_bytes={one.ring_bytes!r:.80}: {wrong[0]}", wrong[1], one.where)


def _too_small(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> Iterator[Problem]:
    """Rings that do not hold what they have to."""
    limit, why, rows = declaration.numbers["max_message_bytes"], holds_all(declaration), rows_of(declaration, known)
    by_pair, by_worker, home = said_of_rings(declaration), said_of_workers(declaration), homes(declaration)
    there = [pair for one in declaration.routes for pair in pairs(home, one.source, one.targets)]
    there += [(GATEWAY, name) for name in by_worker]
    found = {pair: by_worker[pair[1]] for pair in there if pair[1] in by_worker} | by_pair
    told: set[Said] = set()  # what is said of several rings is one mistake
    for (source, target), said in found.items():
        if said in told:
            continue
        size, edge = said.ring_bytes, f"{source} -> {target}"
        if why and limit > largest_message(size):
            text = f"ring_bytes={size} of {edge} does not hold a message of max_message_bytes={limit} ({why})"
            hint = f"take {ring_for(limit)} or more, or max_message_bytes={largest_message(size)} or less"
            told.add(said)
            yield Problem("bad-ring", edge, text, hint, said.where)
        elif rows.get((source, target), 0) > largest_message(size):
            need = rows[source, target]
            text = f"ring_bytes={size} of {edge} does not hold the fixed messages that it carries, of {need} bytes"
            told.add(said)
            yield Problem("bad-ring", edge, text, f"take {ring_for(need)} or more", said.where)
