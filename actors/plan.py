"""The plan: a topology, checked and frozen, with everything numbered. It is what workers are started with.

    worker   hosts handlers                                    edge    (sending worker -> receiving worker), distinct
    route    (source handler, message class) -> handlers       peer    a worker, or the gateway: the world outside

Numbers are dense and begin at 0: a route's id is its place in `routes`, an edge's index its place in `edges`, a peer's
index its place in `peers`, a handler's its place in `handlers`. Names, not numbers, identify things from one start to
the next: a peer by its name, state by its handler's name, a route by its `key`.

The gateway has an edge to and from every worker. Each (handler, message class it handles) has a route from the gateway,
for `system.send` and `system.ask`; each worker has one reply route to the gateway, with no message class.
A route between handlers of one worker needs no edge.

Pure and immutable. Pickling a plan, by whatever pickler, ships by value the classes that the other side cannot import.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec.structs import replace

from actors.codecs import PICKLE, Codec
from actors.components import strongly_connected
from actors.handler import HandlerDescription, HandlerSpec
from actors.handler_policy import HandlerPolicy
from actors.process_options import ProcessOptions
from actors.restart import ChildSpec, Restart, Strategy
from actors.ring_sizes import DEFAULT_RING, largest_message

GATEWAY = "gateway"
REPLY = "#reply"


class Limits(msgspec.Struct, frozen=True):
    """The numbers of a topology; see Topology for what each one means."""

    max_message_bytes: int
    max_claim_bytes: int
    max_attempts: int
    outbox_limit_bytes: int
    claims_limit_bytes: int
    batch: int
    max_restarts: int
    restart_period: float
    backoff_first: float
    backoff_max: float
    drain_timeout: float
    retain_bytes: int
    retain_seconds: float
    log_bytes: int


class HandlerPlan(msgspec.Struct, frozen=True):
    name: str
    spec: HandlerSpec
    description: HandlerDescription
    policy: HandlerPolicy


class WorkerPlan(msgspec.Struct, frozen=True):
    name: str
    handlers: tuple[HandlerPlan, ...]
    child: ChildSpec
    process: ProcessOptions


class Group(msgspec.Struct, frozen=True):
    """Workers and groups that are supervised together: a supervisor of its own in OTP, without a process here.

    Members start in this order and stop in the reverse. A group that gives up is a death in its parent, which deals
    with it by the group's own restart type.
    """

    name: str  # empty: the root
    members: tuple[str, ...]  # names of workers and groups, which share one name space
    strategy: Strategy
    max_restarts: int
    period: float
    restart: Restart = Restart.PERMANENT


class Edge(msgspec.Struct, frozen=True):
    index: int
    source: str  # a worker, or GATEWAY
    target: str
    inside: bool  # both ends lie on a common cycle: never paused
    ring_bytes: int = DEFAULT_RING
    least_ring: int = DEFAULT_RING  # what its ring may be made smaller to where room is short; `ring_bytes`: never

    @property
    def name(self) -> str:
        return f"{self.source}>{self.target}"


class Route(msgspec.Struct, frozen=True):
    id: int
    source: str  # a handler; GATEWAY; for a reply route, a worker
    message: type | None  # None for a reply route, which carries any class
    type_name: str  # REPLY for a reply route
    targets: tuple[str, ...]  # handlers; (GATEWAY,) for a reply route; empty: this is sent to nobody, on purpose
    layout: str = ""  # of a fixed message: part of what the route is called, so that no journal is read by another one

    @property
    def key(self) -> tuple[str, str]:
        """What the route is called in journals; unique in the plan, and the same at the next start."""
        source = f"{GATEWAY}:{self.targets[0]}" if self.source == GATEWAY else self.source
        return (source, self.type_name + self.layout)

    @property
    def is_reply(self) -> bool:
        return self.message is None


class Plan(msgspec.Struct, frozen=True, dict=True):
    name: str
    level: str
    workers: tuple[WorkerPlan, ...]
    edges: tuple[Edge, ...]
    routes: tuple[Route, ...]
    fingerprint: str
    limits: Limits
    groups: tuple[Group, ...]  # the root first, parents before their members
    codecs: tuple[tuple[type, Codec], ...] = ()  # the classes that are not encoded as MessagePack
    preload: tuple[str, ...] = ()  # modules that workers find imported, as the user says

    @cached_property
    def peers(self) -> tuple[str, ...]:
        """The gateway, then the workers."""
        return (GATEWAY, *(worker.name for worker in self.workers))

    @cached_property
    def handlers(self) -> tuple[HandlerPlan, ...]:
        return tuple(handler for worker in self.workers for handler in worker.handlers)

    @cached_property
    def components(self) -> tuple[frozenset[str], ...]:
        """Which workers lie on a common cycle; the gateway is left out."""
        between = [(edge.source, edge.target) for edge in self.edges if GATEWAY not in (edge.source, edge.target)]
        return strongly_connected([worker.name for worker in self.workers], between)

    @cached_property
    def paths(self) -> dict[str, str]:
        """Worker -> the groups it is in, the outermost first, with slashes between them; who is in none is left out."""
        around = {member: group.name for group in self.groups for member in group.members}
        found: dict[str, str] = {}
        for worker in self.workers:
            path: list[str] = []
            at = around[worker.name]
            while at:
                path.insert(0, at)
                at = around[at]
            if path:
                found[worker.name] = "/".join(path)
        return found

    @property
    def one_user(self) -> bool:
        """Nobody runs as another user, so that everyone may read the files of everyone."""
        return all(worker.process.user is None for worker in self.workers)

    @property
    def largest_claim(self) -> int:
        """The largest message that goes by claim check; 0 if none does."""
        return self.limits.max_claim_bytes if self.one_user else 0

    def codec(self, message: type) -> Codec | None:
        """What messages of this class are encoded by; None for MessagePack."""
        return self._codecs.get(message)

    def worker(self, name: str) -> WorkerPlan:
        return self._workers[name]

    def handler(self, name: str) -> HandlerPlan:
        return self._handlers[name]

    def worker_of(self, handler: str) -> str:
        """The worker that hosts a handler; the gateway hosts itself."""
        return self._worker_of[handler]

    def component_of(self, worker: str) -> frozenset[str]:
        return self._component_of[worker]

    def edge(self, source: str, target: str) -> Edge | None:
        """The edge between two peers, if there is one."""
        return self._edge_between.get((source, target))

    def inbound(self, peer: str) -> tuple[Edge, ...]:
        """The edges that end at a worker, or at the gateway."""
        return tuple(edge for edge in self.edges if edge.target == peer)

    def outbound(self, peer: str) -> tuple[Edge, ...]:
        return tuple(edge for edge in self.edges if edge.source == peer)

    def with_rings(self, sizes: Mapping[str, int]) -> Plan:
        """The same with rings of these sizes, by the names of their edges."""
        return replace(self, edges=tuple(replace(edge, ring_bytes=sizes[edge.name]) for edge in self.edges))

    def in_ring(self, source: str, targets: Iterable[str]) -> int:
        """The largest message that goes from one peer to all of these through their rings."""
        edges = [edge for target in targets if (edge := self.edge(source, target)) is not None]
        return min([self.limits.max_message_bytes, *(largest_message(edge.ring_bytes) for edge in edges)])

    def route_for(self, source: str, message: type) -> Route | None:
        """Where a handler's messages of this class go; None if the topology does not say."""
        return self._route_for.get((source, message))

    def routes_from(self, source: str) -> tuple[Route, ...]:
        return tuple(route for route in self.routes if route.source == source and not route.is_reply)

    def entry(self, handler: str, message: type) -> Route | None:
        """The route by which the outside world reaches a handler with this class; None if it does not handle it."""
        return self._entry.get((handler, message))

    def reply_route(self, worker: str) -> Route:
        return self._reply_route[worker]

    def source_peer(self, route: Route) -> str:
        """The worker, or the gateway, that sends on this route."""
        return route.source if route.is_reply else self.worker_of(route.source)

    def target_peers(self, route: Route) -> tuple[str, ...]:
        """The peers that host its targets, each once, in the order of the targets; the sender itself may be one."""
        return tuple(dict.fromkeys(self.worker_of(target) for target in route.targets))

    @cached_property
    def imports(self) -> tuple[str, ...]:
        """All modules that are to be imported once for all workers: those, and what pickles by value are made with."""
        by_value = any(name in self._packed for name in (b"cloudpickle", b"actors.shipping"))
        pickles = any(codec is PICKLE for _, codec in self.codecs)
        return (*["actors.shipping"] * by_value, *["actors.message_pickler"] * pickles, *self.preload)

    @cached_property
    def _codecs(self) -> Mapping[type, Codec]:
        return dict(self.codecs)

    @cached_property
    def _workers(self) -> Mapping[str, WorkerPlan]:
        return {worker.name: worker for worker in self.workers}

    @cached_property
    def _handlers(self) -> Mapping[str, HandlerPlan]:
        return {handler.name: handler for handler in self.handlers}

    @cached_property
    def _worker_of(self) -> Mapping[str, str]:
        return {GATEWAY: GATEWAY} | {one.name: worker.name for worker in self.workers for one in worker.handlers}

    @cached_property
    def _component_of(self) -> Mapping[str, frozenset[str]]:
        return {worker: component for component in self.components for worker in component}

    @cached_property
    def _edge_between(self) -> Mapping[tuple[str, str], Edge]:
        return {(edge.source, edge.target): edge for edge in self.edges}

    @cached_property
    def _route_for(self) -> Mapping[tuple[str, type], Route]:
        return {
            (one.source, one.message): one for one in self.routes if one.message is not None and one.source != GATEWAY
        }

    @cached_property
    def _entry(self) -> Mapping[tuple[str, type], Route]:
        return {
            (one.targets[0], one.message): one
            for one in self.routes
            if one.message is not None and one.source == GATEWAY
        }

    @cached_property
    def _reply_route(self) -> Mapping[str, Route]:
        return {one.source: one for one in self.routes if one.is_reply}

    @cached_property
    def _packed(self) -> bytes:
        """Every incarnation of every worker gets the same."""
        from actors.shipping import pack

        return pack({name: getattr(self, name) for name in self.__struct_fields__})

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self._packed,)


def unpack(data: bytes) -> Plan:
    """What a packed plan is made from again, in a worker; no cloudpickle is needed where all of it can be imported."""
    return Plan(**pickle.loads(data))


def number_edges(workers: tuple[str, ...], pairs: set[tuple[str, str]]) -> tuple[Edge, ...]:
    """The gateway's edges, then those between workers, in the order of the workers."""
    between = [
        (source, target) for source in workers for target in workers if (source, target) in pairs and source != target
    ]
    component = {worker: part for part in strongly_connected(workers, between) for worker in part}
    ends = [(GATEWAY, worker) for worker in workers] + [(worker, GATEWAY) for worker in workers] + between
    return tuple(
        Edge(index, source, target, GATEWAY not in (source, target) and component[source] == component[target])
        for index, (source, target) in enumerate(ends)
    )
