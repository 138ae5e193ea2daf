"""The topology: what a user declares, checked as a whole before anything starts.

    app = Topology("trades", durability="process")
    app.worker("ingest", feed=Feed.spec(path="trades.csv"))
    app.worker("stats", averager=Averager, report=Report)
    app.route("feed", Trade, to="averager")
    app.route("averager", Average, to="report")
    app.run()

Declaring never fails and the order does not matter; `compile`, which `run` and `start` begin with, tells all mistakes
at once (TopologyError) or returns the Plan.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.annotations import alternatives
from actors.codecs import Codec
from actors.declaration import (
    Declaration,
    DeclaredCodec,
    DeclaredExternal,
    DeclaredGroup,
    DeclaredOptions,
    DeclaredRoute,
    DeclaredWorker,
)
from actors.declared_rings import sized
from actors.errors import Problem, TopologyError
from actors.fingerprint import fingerprint, type_text
from actors.fixed import layout_text
from actors.handler import Handler, HandlerSpec
from actors.handler_policy import policy_of
from actors.hygiene import machine
from actors.message import Message, type_name
from actors.plan import GATEWAY, REPLY, Group, HandlerPlan, Limits, Plan, Route, WorkerPlan, number_edges
from actors.process_options import ProcessOptions
from actors.restart import ChildSpec, Restart, Strategy
from actors.ring_sizes import default_message
from actors.validate import problems
from actors.validate_options import option_problems
from actors.validate_preload import preload_problems

if TYPE_CHECKING:
    from actors.events import Observer
    from actors.system import System

MessageTypes = type[Any] | tuple[type[Any], ...]


class Topology:
    """Workers, their handlers, and the routes between handlers.

    durability          `memory` (a worker's crash), `process` (SIGKILL of everything) or `power` (power loss): what a
                        message survives once it is committed
    directory           where journals are kept; by default a directory of the user's, by the topology's name
    ring_bytes          size of the ring between two workers, a power of two; by default 1 MiB, 4 MiB for one that
                        carries fixed messages, more where max_message_bytes needs it, less where there are many rings
                        and little shared memory. `process` gives that of all rings into one worker, `route` and
                        `external` that of their own
    max_message_bytes   largest message, encoded, that goes through a ring; given, it is what every ring has to hold. By
                        default 256 KiB, or what the rings of its route hold if that is less; no answer is longer either
    max_claim_bytes     largest message of all: what is larger than max_message_bytes goes by claim check, in a file
                        that its sender writes and its receivers map; 0: nothing does
    max_attempts        how often a message may fail or kill its worker before it becomes a dead letter
    outbox_limit_bytes  how much a worker may have waiting for its receivers before its sources are paused
    claims_limit_bytes  and how much that is not consumed may lie in its claims
    batch               most messages in one transaction
    max_restarts        when workers, all together, are restarted more often than this within restart_period seconds,
                        the supervisor gives up and the system ends
    backoff_first       seconds before the second restart in a row; doubled each time up to backoff_max
    drain_timeout       seconds that a clean end may take before it is cut short
    strategy            who is started anew when a worker that is in no group dies: `one_for_one`, it alone;
                        `one_for_all`, everyone; `rest_for_one`, it and all that were declared after it
    retain_bytes        how much of each worker's journal is kept as history, for `ringleader journal` and
                        `persist.replay`, after everything in it has been consumed; 0: no such limit
    retain_seconds      and for how long; 0: no such limit. With neither, no history is kept; with both, what either
                        lets go goes
    log_bytes           how much of what workers and supervisor log is kept for `ringleader logs`; 0: nothing
    preload             modules that are imported once, in the process of which all workers are forks, so that no start
                        waits for them; not for those that open connections or start threads when imported
    """

    def __init__(
        self,
        name: str,
        *,
        durability: str = "process",
        directory: str | os.PathLike[str] | None = None,
        ring_bytes: int | None = None,
        max_message_bytes: int | None = None,
        max_claim_bytes: int = 1 << 30,
        max_attempts: int = 3,
        outbox_limit_bytes: int = 4 << 20,
        claims_limit_bytes: int = 16 << 20,
        batch: int = 2048,
        max_restarts: int = 10,
        restart_period: float = 60.0,
        backoff_first: float = 0.05,
        backoff_max: float = 5.0,
        drain_timeout: float = 30.0,
        strategy: str = "one_for_one",
        retain_bytes: int = 0,
        retain_seconds: float = 0.0,
        log_bytes: int = 8 << 20,
        preload: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.durability = durability
        self.directory = None if directory is None else Path(directory)
        numbers = {
            "ring_bytes": ring_bytes,
            "max_message_bytes": default_message(ring_bytes) if max_message_bytes is None else max_message_bytes,
            "max_claim_bytes": max_claim_bytes,
            "max_attempts": max_attempts,
            "outbox_limit_bytes": outbox_limit_bytes,
            "claims_limit_bytes": claims_limit_bytes,
            "batch": batch,
            "max_restarts": max_restarts,
            "restart_period": restart_period,
            "backoff_first": backoff_first,
            "backoff_max": backoff_max,
            "drain_timeout": drain_timeout,
            "retain_bytes": retain_bytes,
            "retain_seconds": retain_seconds,
            "log_bytes": log_bytes,
        }
        self._declaration = Declaration(
            name,
            durability,
            numbers,
            strategy=strategy,
            preload=preload,
            strict_message=max_message_bytes is not None,
        )

    def worker(self, name: str, /, **handlers: type[Handler] | HandlerSpec) -> None:
        """A process and the handlers it hosts: by name, the class, or its `.spec(...)` where it takes arguments."""
        self._declaration.workers.append(DeclaredWorker(name, handlers, _caller()))

    def supervise(
        self,
        worker: str,
        /,
        *,
        restart: str = "permanent",
        shutdown: float | str = 5.0,
        ready_within: float = 60.0,
        hung_after: float = 30.0,
    ) -> None:
        """How this worker is supervised, where that is not the default.

        restart       `permanent`, always restarted; `transient`, after an abnormal end only; `temporary`, never
        shutdown      seconds that it may take to end when it is told to, before it is killed; or `brutal_kill`,
                      or `infinity`
        ready_within  seconds until its `on_start` has to be done
        hung_after    seconds that its loop may be silent between two messages, or its process be stopped, before it is
                      killed and restarted; how long one message may take is the handler's busy_limit
        """
        options = {"restart": restart, "shutdown": shutdown, "ready_within": ready_within, "hung_after": hung_after}
        self._declaration.supervised.append(DeclaredOptions(worker, options, _caller()))

    def process(
        self,
        worker: str,
        /,
        *,
        memory_bytes: int | None = None,
        open_files: int | None = None,
        cpus: Iterable[int] | None = None,
        nice: int = 0,
        umask: int | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        ring_bytes: int | None = None,
    ) -> None:
        """What this worker's process is granted by the operating system; see ProcessOptions for what each one means."""
        options = {
            "memory_bytes": memory_bytes,
            "open_files": open_files,
            "cpus": tuple(cpus) if isinstance(cpus, Iterable) else cpus,
            "nice": nice,
            "umask": umask,
            "cwd": os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd,
            "user": user,
            "group": group,
            "ring_bytes": ring_bytes,
        }
        self._declaration.processes.append(DeclaredOptions(worker, options, _caller()))

    def group(
        self,
        name: str,
        members: Iterable[str],
        /,
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 10,
        restart_period: float = 60.0,
        restart: str = "permanent",
    ) -> None:
        """Workers and other groups that are supervised together, started in this order and stopped in the reverse.

        A group that restarts its members more than max_restarts times within restart_period seconds gives up: it is
        stopped as a whole, and its own group, or the system, deals with that as with a death, by `restart`.
        """
        options = {
            "strategy": strategy,
            "max_restarts": max_restarts,
            "restart_period": restart_period,
            "restart": restart,
        }
        listed = tuple(members) if isinstance(members, Iterable) and not isinstance(members, str) else members
        self._declaration.groups.append(DeclaredGroup(name, listed, options, _caller()))

    def route(
        self, source: str, message: MessageTypes, /, *, to: str | Iterable[str], ring_bytes: int | None = None
    ) -> None:
        """Messages of this type (or of these), sent by the source handler, go to this handler, or to each of these.

        `to=[]` says that nobody is to get them. `ring_bytes`: the size of the rings that they take, from the worker of
        the source to those of the targets. All routes between two workers share one ring: the largest size holds.
        """
        targets = tuple(to) if isinstance(to, Iterable) and not isinstance(to, str) else (to,)
        self._declaration.routes.append(DeclaredRoute(source, _types(message), targets, _caller(), ring_bytes))

    def external(self, handler: str, /, *types: type[Any], ring_bytes: int | None = None) -> None:
        """These types (or, if none is named, all it handles) reach this handler from outside, by `system.send` or
        `system.ask`, so that it is no mistake if no route brings them. `ring_bytes`: the size of the ring that they
        take to its worker, as for `route`."""
        flat = tuple(one for group in types for one in _types(group))
        self._declaration.externals.append(DeclaredExternal(handler, flat, _caller(), ring_bytes))

    def codec(self, message: type[Any], codec: Codec, /) -> None:
        """Messages of this class, a Message or not, are encoded by this codec: `JSON`, `RAW`, `PICKLE` or your own.

        Only PICKLE, and a codec of yours that does the same, executes what a message says; it is meant for data that is
        the program's own.
        """
        self._declaration.codecs.append(DeclaredCodec(message, codec, _caller()))
        self._declaration.descriptions.clear()  # what is a message has changed

    def compile(self) -> Plan:
        """Check everything; TopologyError with all the problems, or the plan."""
        found = [*problems(self._declaration), *option_problems(self._declaration, machine())]
        found += preload_problems(self._declaration, find_spec)
        if not found:
            plan = _plan(self._declaration)
            found = _unshippable(plan)
        if found:
            raise TopologyError(self.name, tuple(found))
        return plan

    def start(self, *, timeout: float = 60.0, observer: Observer | None = None) -> System:
        """Start the system in the background: `with app.start() as system: ...`.

        Returns when every worker is up; `timeout` in seconds. Raises TopologyError, or StartFailed with the exit status
        and the reason; nothing runs then. `observer` is called with every event of the supervisor, in its thread.
        """
        from actors.process import forkserver_ahead

        with forkserver_ahead():
            from actors.launch import start

            return start(self, timeout=timeout, observer=observer)

    def run(self) -> None:
        """Start the system and wait for its end, as a script does.

        The first SIGINT or SIGTERM drains, the second stops now. Returns after a clean end only; any other end is told
        on stderr and raises SystemExit with one of ExitStatus.
        """
        from actors.process import forkserver_ahead
        from actors.told_by_manager import taken

        told = taken()
        with forkserver_ahead():
            from actors.launch import run

            run(self, told)

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, durability={self.durability!r})"


def _types(given: Any) -> tuple[Any, ...]:
    if isinstance(given, (tuple, list, set, frozenset)):
        return tuple(leaf for one in given for leaf in _types(one))
    return alternatives(given)


def _caller() -> str:
    """The line of the declaration, for the problems found in it."""
    frame = sys._getframe(2)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _plan(declaration: Declaration) -> Plan:
    """The plan of a declaration without problems."""
    workers = tuple(
        WorkerPlan(
            worker.name,
            tuple(_handler(declaration, name, value) for name, value in worker.handlers.items()),
            _child(declaration, worker.name),
            _process(declaration, worker.name),
        )
        for worker in declaration.workers
    )
    handlers = [handler for worker in workers for handler in worker.handlers]
    home = {handler.name: worker.name for worker in workers for handler in worker.handlers}
    targets: dict[tuple[str, type], list[str]] = {}
    for route in declaration.routes:
        for message in route.types:
            targets.setdefault((route.source, message), []).extend(route.targets)
    ends = [(source, message, type_name(message), tuple(to)) for (source, message), to in targets.items()]
    ends += [
        (GATEWAY, message, type_name(message), (one.name,)) for one in handlers for message in one.description.handles
    ]
    routes = [Route(number, *end, layout_text(end[1])) for number, end in enumerate(ends)]
    routes += [Route(len(ends) + number, worker.name, None, REPLY, (GATEWAY,)) for number, worker in enumerate(workers)]
    known = {one.name: one.description for one in handlers}
    pairs = {(home[source], home[target]) for (source, _), to in targets.items() for target in to}
    return Plan(
        declaration.name,
        declaration.durability,
        workers,
        sized(declaration, number_edges(tuple(worker.name for worker in workers), pairs), known),
        tuple(routes),
        _fingerprint(declaration, workers, routes),
        Limits(**{name: value for name, value in declaration.numbers.items() if name != "ring_bytes"}),
        _groups(declaration),
        tuple((one.type, one.codec) for one in declaration.codecs),
        tuple(declaration.preload),
    )


def _handler(declaration: Declaration, name: str, value: Any) -> HandlerPlan:
    spec = value if isinstance(value, HandlerSpec) else HandlerSpec(value)
    return HandlerPlan(name, spec, declaration.describe(spec.cls), policy_of(spec.cls))


def _child(declaration: Declaration, worker: str) -> ChildSpec:
    """How a worker is supervised; where it is said twice, the last one holds."""
    options: dict[str, Any] = {}
    for said in declaration.supervised:
        if said.worker == worker:
            options = dict(said.options)
    if options:
        options["restart"] = Restart(options["restart"])
        options["shutdown"] = {"brutal_kill": 0.0, "infinity": math.inf}.get(options["shutdown"], options["shutdown"])
    return ChildSpec(worker, **options)


def _process(declaration: Declaration, worker: str) -> ProcessOptions:
    options: dict[str, Any] = {}
    for said in declaration.processes:
        if said.worker == worker:
            options = dict(said.options)
    return ProcessOptions(**options)


def _groups(declaration: Declaration) -> tuple[Group, ...]:
    """The root, whose members are in no other group, in the order of their declaration; then the others."""
    inside = {member for group in declaration.groups for member in group.members}
    first = {worker.name: number for number, worker in enumerate(declaration.workers)}
    for group in reversed(declaration.groups):  # a group stands where the first of its workers was declared
        first[group.name] = min((first[member] for member in group.members if member in first), default=len(first))
    tops = sorted((name for name in first if name not in inside), key=lambda name: first[name])
    numbers = declaration.numbers
    root = Group("", tuple(tops), Strategy(declaration.strategy), numbers["max_restarts"], numbers["restart_period"])
    found, pending = [root], list(tops)
    named = {group.name: group for group in declaration.groups}
    while pending:
        declared = named.get(pending.pop(0))
        if declared is not None:
            said = declared.options
            found.append(
                Group(
                    declared.name,
                    declared.members,
                    Strategy(said["strategy"]),
                    said["max_restarts"],
                    said["restart_period"],
                    Restart(said["restart"]),
                )
            )
            pending += declared.members
    return tuple(found)


def _fingerprint(declaration: Declaration, workers: tuple[WorkerPlan, ...], routes: list[Route]) -> str:
    codecs = sorted((type_name(one.type), one.codec.name) for one in declaration.codecs)
    structs: list[type] = [
        route.message for route in routes if route.message is not None and issubclass(route.message, Message)
    ]
    states: dict[str, str] = {}
    for handler in (handler for worker in workers for handler in worker.handlers):
        described = handler.description
        if described.state is not None:
            states[handler.name] = type_text(described.state, structs)
        elif described.table is not None:
            key, value = described.table.key, described.table.value
            states[handler.name] = f"Table[{type_text(key, structs)}, {type_text(value, structs)}]"
    hosted = {worker.name: sorted(handler.name for handler in worker.handlers) for worker in workers}
    carried = sorted([*route.key, *sorted(route.targets)] for route in routes)
    named = [declaration.name, hosted, carried, states]
    return fingerprint([*named, codecs] if codecs else named, structs)


def _unshippable(plan: Plan) -> list[Problem]:
    """Handlers whose class or arguments cannot be sent to a worker."""
    from actors.shipping import pack

    found = []
    for handler in plan.handlers:
        parts = {handler.spec.cls.__name__: handler.spec.cls}
        parts |= {f"argument {number}": value for number, value in enumerate(handler.spec.args, 1)}
        parts |= {f"argument {name}": value for name, value in handler.spec.kwargs.items()}
        for name, value in parts.items():
            try:
                pack(value)
            except Exception as error:  # whatever a user's __reduce__ raises
                text = f"handler {handler.name!r}: {name} cannot be sent to a worker: {error}"
                hint = "give what it can be made from, and make it in on_start"
                found.append(Problem("not-shippable", handler.name, text, hint))
    for type_, codec in plan.codecs:
        carried: dict[str, object] = {f"message class {type_.__name__}": type_, f"codec {codec.name!r}": codec}
        for what, one in carried.items():
            try:
                pack(one)
            except Exception as error:
                text = f"{what} cannot be sent to a worker: {error}"
                found.append(Problem("not-shippable", type_.__name__, text, "define it in a module"))
    return found
