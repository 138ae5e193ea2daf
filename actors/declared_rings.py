"""What a declaration says of the sizes of rings, edge by edge. Pure.

There is one ring from one worker to another, whatever routes lead there. Its size is, in this order: the largest that a
route between them (or, from the world outside, an `external` of a handler there) gives; what `process` gives for the
worker that receives; what the topology gives. Where none does, it is found when the system is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from actors.declaration import Declaration
from actors.fixed import is_fixed, layout_of, layout_problems
from actors.handler import HandlerDescription
from actors.message import check_encodable
from actors.plan import GATEWAY, Edge
from actors.ring_sizes import DEFAULT_RING, LEAST_RING, ROW_RING, ring_for, ring_wrong

ROW_HEAD = 64  # bytes at least that a row takes beside its own, alone or in a run

Pair = tuple[str, str]  # peers: sender, receiver


@dataclass(frozen=True, slots=True)
class Said:
    """The size of one ring, and where that is said."""

    ring_bytes: int
    where: str


def homes(declaration: Declaration) -> dict[str, str]:
    """Handler -> its worker."""
    return {
        handler: worker.name
        for worker in declaration.workers
        if isinstance(worker.name, str)
        for handler in worker.handlers
    }


def pairs(home: Mapping[str, str], source: object, targets: Iterable[object]) -> list[Pair]:
    """The rings of a route, as far as its ends are known; GATEWAY is a source, too."""
    begin = GATEWAY if source == GATEWAY else _home(home, source)
    ends = dict.fromkeys(end for target in targets if (end := _home(home, target)) is not None)
    return [(begin, end) for end in ends if end != begin] if begin is not None else []


def said_of_rings(declaration: Declaration) -> dict[Pair, Said]:
    """By routes and externals. Sizes that are no sizes are passed over."""
    home = homes(declaration)
    found: dict[Pair, Said] = {}
    given = [(one.source, one.targets, one.ring_bytes, one.where) for one in declaration.routes]
    given += [(GATEWAY, (one.handler,), one.ring_bytes, one.where) for one in declaration.externals]
    for source, targets, ring_bytes, where in given:
        if ring_bytes is None or ring_wrong(ring_bytes):
            continue
        for pair in pairs(home, source, targets):
            if pair not in found or found[pair].ring_bytes < ring_bytes:
                found[pair] = Said(ring_bytes, where)
    return found


def said_of_workers(declaration: Declaration) -> dict[str, Said]:
    """By `process`, for all rings into a worker; where it is called twice, the last one holds."""
    found: dict[str, Said] = {}
    for one in declaration.processes:
        ring_bytes = one.options.get("ring_bytes")
        if isinstance(one.worker, str):
            found.pop(one.worker, None)
            if ring_bytes is not None and not ring_wrong(ring_bytes):
                found[one.worker] = Said(ring_bytes, one.where)
    return found


def holds_all(declaration: Declaration) -> str:
    """Why every ring has to hold messages of `max_message_bytes`; empty where those that one does not hold go by claim
    check."""
    numbers = declaration.numbers
    if declaration.strict_message:
        return "max_message_bytes is given"
    last = {one.worker: one.options for one in declaration.processes if isinstance(one.worker, str)}
    if any(options.get("user") is not None for options in last.values()):
        return "nothing goes by claim check where a worker runs as another user"
    if numbers["max_claim_bytes"] < numbers["max_message_bytes"]:
        return f"max_claim_bytes={numbers['max_claim_bytes']} is less"
    return ""


def rows_of(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> dict[Pair, int]:
    """The longest row that a ring has to hold, header and all, where it carries fixed messages."""
    home = homes(declaration)
    carried = [(one.source, one.targets, one.types) for one in declaration.routes]
    carried += [(GATEWAY, (name,), tuple(described.handles)) for name, described in known.items()]
    found: dict[Pair, int] = {}
    for source, targets, types in carried:
        for type_ in types:
            if is_fixed(type_) and not check_encodable(type_) and not layout_problems(type_):
                for pair in pairs(home, source, targets):
                    found[pair] = max(found.get(pair, 0), layout_of(type_).size + ROW_HEAD)
    return found


def sized(declaration: Declaration, edges: Iterable[Edge], known: Mapping[str, HandlerDescription]) -> tuple[Edge, ...]:
    """The edges with what is said of their rings and, where nothing is, with the most and the least they may have."""
    by_pair, by_worker, everywhere = (
        said_of_rings(declaration),
        said_of_workers(declaration),
        declaration.numbers["ring_bytes"],
    )
    whole = ring_for(declaration.numbers["max_message_bytes"])
    strict, rows = bool(holds_all(declaration)), rows_of(declaration, known)
    found = []
    for edge in edges:
        said = by_pair.get((edge.source, edge.target)) or by_worker.get(edge.target)
        size = said.ring_bytes if said is not None else everywhere
        if size is not None:
            found.append(replace(edge, ring_bytes=size, least_ring=size))
            continue
        # An answer is at most max_message_bytes long, wherever the system runs.
        least = whole if strict or edge.target == GATEWAY else LEAST_RING
        least = max(least, ring_for(rows.get((edge.source, edge.target), 0)))
        usual = ROW_RING if edge.source != GATEWAY and (edge.source, edge.target) in rows else DEFAULT_RING
        found.append(replace(edge, ring_bytes=max(usual, whole, least), least_ring=least))
    return tuple(found)


def _home(home: Mapping[str, str], handler: object) -> str | None:
    return home.get(handler) if isinstance(handler, str) else None
