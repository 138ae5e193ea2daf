"""Strongly connected components of a directed graph: which workers lie on a common cycle.

Backpressure depends on them: an edge inside a component is never paused, or a cycle of full queues could stop for ever.
Pure. Tarjan's algorithm, without recursion, in time linear in nodes and edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def strongly_connected(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> tuple[frozenset[str], ...]:
    """The components, in the order in which `nodes` names their first members.

    Two nodes share a component exactly if each can be reached from the other. A node on no cycle is a component of its
    own. Edges may repeat and may lead to themselves; an end that is not in `nodes` raises KeyError.
    """
    order = list(dict.fromkeys(nodes))
    successors: dict[str, list[str]] = {node: [] for node in order}
    for source, target in edges:
        successors[source].append(target)

    found: dict[str, int] = {}  # when a node was first seen
    low: dict[str, int] = {}  # the earliest node on the stack that it is known to reach
    stack: dict[str, None] = {}  # seen, and not yet in a component
    member: dict[str, frozenset[str]] = {}

    for root in order:
        if root in found:
            continue
        path: list[tuple[str, Iterator[str]]] = []
        entering: str | None = root
        while entering is not None or path:
            if entering is not None:
                found[entering] = low[entering] = len(found)
                stack[entering] = None
                path.append((entering, iter(successors[entering])))
                entering = None
            node, rest = path[-1]
            for successor in rest:
                if successor not in found:
                    entering = successor
                    break
                if successor in stack:
                    low[node] = min(low[node], found[successor])
            if entering is not None:
                continue
            path.pop()
            if path:
                parent = path[-1][0]
                low[parent] = min(low[parent], low[node])
            if low[node] == found[node]:
                names = []
                while node in stack:
                    names.append(stack.popitem()[0])
                component = frozenset(names)
                member.update(dict.fromkeys(component, component))

    return tuple(dict.fromkeys(member[node] for node in order))
