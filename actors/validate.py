"""All the mistakes of a declaration, each with the name at fault and what to do about it.

Pure: `problems(declaration)` looks at the declaration only; an empty list means that a plan can be made of it.
A mistake is told once: what follows from another one (a route from an unknown handler has no types to check) is not.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from actors.declaration import Declaration
from actors.errors import Problem
from actors.fixed import FixedMessage
from actors.handler import Handler, HandlerDescription, HandlerSpec
from actors.message import Message, check_encodable, type_name
from actors.naming import RESERVED, closest, name_problems
from actors.ring_sizes import largest_message, ring_wrong
from actors.validate_codecs import codec_problems
from actors.validate_fixed import fixed_problems
from actors.validate_rings import ring_problems
from actors.validate_supervision import supervision_problems
from bus.layout import MAX_CAPACITY

LEVELS = ("memory", "process", "power")
LEAST_LOG = 1 << 18  # bytes: one record is up to a quarter of that, and the log is two files


def problems(declaration: Declaration) -> list[Problem]:
    """Every mistake in a declaration, in the order: the topology, its workers, its routes, what no route carries."""
    hosted = {name: value for worker in declaration.workers for name, value in worker.handlers.items()}
    known = {name: declaration.describe(cls) for name, value in hosted.items() if (cls := _class_of(value)) is not None}
    return [
        *_topology(declaration),
        *_workers(declaration),
        *supervision_problems(declaration),
        *_handlers(declaration, known),
        *codec_problems(declaration),
        *_routes(declaration, hosted, known),
        *_externals(declaration, hosted, known),
        *ring_problems(declaration, known),
        *_uncarried(declaration, known),
        *_messages(declaration, known),
    ]


def _class_of(value: Any) -> type[Handler] | None:
    cls = value.cls if isinstance(value, HandlerSpec) else value
    return cls if isinstance(cls, type) and issubclass(cls, Handler) and cls is not Handler else None


# What a number must be: whole or not, and its least value.
_NUMBERS: Mapping[str, tuple[type, int]] = {
    "max_message_bytes": (int, 1),
    "max_claim_bytes": (int, 0),
    "max_attempts": (int, 1),
    "outbox_limit_bytes": (int, 1),
    "claims_limit_bytes": (int, 1),
    "batch": (int, 1),
    "max_restarts": (int, 0),
    "restart_period": (float, 0),
    "backoff_first": (float, 0),
    "backoff_max": (float, 0),
    "drain_timeout": (float, 0),
    "retain_bytes": (int, 0),
    "retain_seconds": (float, 0),
    "log_bytes": (int, 0),
}


def _topology(declaration: Declaration) -> Iterator[Problem]:
    yield from name_problems(declaration.name, "topology", "")
    if declaration.durability not in LEVELS:
        hint = closest(declaration.durability, LEVELS, "levels")
        yield Problem(
            "bad-level", str(declaration.durability), f"durability {declaration.durability!r} is no level", hint
        )
    wrong = set()
    for name, (kind, least) in _NUMBERS.items():
        value = declaration.numbers[name]
        if not _is_number(value, kind) or not least <= value < math.inf:
            wrong.add(name)
            noun = "a whole number" if kind is int else "a number of seconds"
            yield Problem("bad-number", name, f"{name}={value!r} is out of range", f"it is {noun}, {least} or more")
    ring, message = declaration.numbers["ring_bytes"], declaration.numbers["max_message_bytes"]
    bad_ring = None if ring is None else ring_wrong(ring)
    if bad_ring is not None:
        yield Problem("bad-number", "ring_bytes", f"ring_bytes={ring!r:.80}: {bad_ring[0]}", bad_ring[1])
    if "log_bytes" not in wrong and 0 < (kept := declaration.numbers["log_bytes"]) < LEAST_LOG:
        hint = f"take {LEAST_LOG} or more, or 0 to keep no log"
        yield Problem("bad-number", "log_bytes", f"log_bytes={kept} is too small to keep anything", hint)
    if bad_ring is None and "max_message_bytes" not in wrong and message > largest_message(ring or MAX_CAPACITY):
        most = largest_message(ring or MAX_CAPACITY)
        hint = f"one record is at most half of a ring: take {most} or less" + (", or a larger ring" if ring else "")
        text = f"max_message_bytes={message} does not fit in " + (f"ring_bytes={ring}" if ring else "any ring")
        yield Problem("bad-number", "max_message_bytes", text, hint)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def _workers(declaration: Declaration) -> Iterator[Problem]:
    if not declaration.workers:
        yield Problem(
            "empty-topology",
            str(declaration.name),
            f"topology {declaration.name!r} has no workers",
            "add one: topology.worker('name', handler=Handler)",
        )
    seen: dict[str, str] = {}
    homes: dict[str, str] = {}
    for worker in declaration.workers:
        yield from name_problems(worker.name, "worker", worker.where)
        if not isinstance(worker.name, str):
            continue
        if worker.name in seen:
            first = f" (first at {seen[worker.name]})" if seen[worker.name] else ""
            hint = "name all its handlers in one call, or give the other worker a name of its own"
            text = f"worker {worker.name!r} is declared twice{first}"
            yield Problem("duplicate-worker", worker.name, text, hint, worker.where)
        seen.setdefault(worker.name, worker.where)
        if not worker.handlers:
            text, hint = (
                f"worker {worker.name!r} hosts no handlers",
                "name them: topology.worker('name', handler=Handler)",
            )
            yield Problem("empty-worker", str(worker.name), text, hint, worker.where)
        for name in worker.handlers:
            yield from name_problems(name, "handler", worker.where)
            if name in homes:
                text = f"handler name {name!r} is used twice, in worker {homes[name]!r} and in worker {worker.name!r}"
                hint = "a name stands for one handler, with one state: give the second a name of its own"
                yield Problem("duplicate-handler", name, text, hint, worker.where)
            homes.setdefault(name, worker.name)


def _handlers(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> Iterator[Problem]:
    told: set[type] = set()
    for worker in declaration.workers:
        for name, value in worker.handlers.items():
            cls = _class_of(value)
            if cls is None:
                yield _not_a_handler(name, value, worker.where)
                continue
            if cls not in told:
                told.add(cls)
                for text in declaration.describe(cls).problems:
                    yield Problem("bad-handler", name, f"handler {name!r}: {cls.__name__}: {text}", "", worker.where)
            args, kwargs = (value.args, value.kwargs) if isinstance(value, HandlerSpec) else ((), {})
            try:
                inspect.signature(cls).bind(*args, **kwargs)
            except TypeError as error:
                text = f"handler {name!r}: {cls.__name__} cannot be made with these arguments: {error}"
                hint = f"give them with {cls.__name__}.spec(...)"
                yield Problem("bad-arguments", name, text, hint, worker.where)
            except ValueError:
                pass  # no signature to be had: the worker will find out


def _not_a_handler(name: str, value: Any, where: str) -> Problem:
    text = f"handler {name!r} is {value!r:.80}, which is not a Handler class"
    hint = "give a subclass of Handler, or its .spec(...)"
    if isinstance(value, Handler):
        kind = type(value).__name__
        text, hint = (
            f"handler {name!r} is an instance of {kind}",
            f"give the class, {kind} or {kind}.spec(...): workers make it",
        )
    elif value is Handler or (isinstance(value, HandlerSpec) and value.cls is Handler):
        text, hint = f"handler {name!r} is Handler itself", "give a subclass of it"
    return Problem("not-a-handler", name, text, hint, where)


def _unknown(declaration: Declaration, name: Any, hosted: Mapping[str, Any], role: str, where: str) -> Problem:
    workers = {worker.name: worker for worker in declaration.workers if isinstance(worker.name, str)}
    if isinstance(name, type):
        text = f"{role} {name.__name__}: a route names handlers by their names in the topology, not by class"
        same = [repr(one) for one, value in hosted.items() if _class_of(value) is name]
        hint = f"did you mean {' or '.join(same)}?" if same else "no worker hosts this class"
        return Problem("unknown-handler", name.__name__, text, hint, where)
    hint = closest(name, hosted, "handlers")
    if not isinstance(name, str):
        hint = "handlers are named by strings"
    elif name in RESERVED:
        hint = (
            "for the outside, use topology.external(handler, Type), and self.reply() or system.status() the other way"
        )
    elif name in workers and workers[name].handlers:
        hint = f"{name!r} is a worker: name one of its handlers, {', '.join(workers[name].handlers)}"
    return Problem(
        "unknown-handler", str(name), f"{role} {name!r}: no worker hosts a handler of that name", hint, where
    )


def _routes(
    declaration: Declaration, hosted: Mapping[str, Any], known: Mapping[str, HandlerDescription]
) -> Iterator[Problem]:
    seen: set[tuple[str, Any, str]] = set()
    for route in declaration.routes:
        if not isinstance(route.source, str) or route.source not in hosted:
            yield _unknown(declaration, route.source, hosted, "route from", route.where)
        for target in route.targets:
            if not isinstance(target, str) or target not in hosted:
                yield _unknown(declaration, target, hosted, f"route from {route.source!r} to", route.where)
        if not route.types:
            text = f"route from {route.source!r} names no message types"
            yield Problem("not-a-message", str(route.source), text, "name at least one Message class", route.where)
        for type_ in route.types:
            if not _is_message(type_, declaration):
                yield _not_a_message(f"route from {route.source!r}", type_, route.where)
                continue
            for target in route.targets:
                if not isinstance(route.source, str) or not isinstance(target, str):
                    continue
                if (route.source, type_, target) in seen:
                    text = f"{type_.__name__} is routed from {route.source!r} to {target!r} twice"
                    yield Problem("duplicate-route", route.source, text, "one of the two can go", route.where)
                seen.add((route.source, type_, target))
                if target in known:
                    role = f"{type_.__name__} is routed from {route.source!r} to {target!r}"
                    yield from _unhandled(role, known[target], target, type_, route.where)


def _externals(
    declaration: Declaration, hosted: Mapping[str, Any], known: Mapping[str, HandlerDescription]
) -> Iterator[Problem]:
    for external in declaration.externals:
        if not isinstance(external.handler, str) or external.handler not in hosted:
            yield _unknown(declaration, external.handler, hosted, "external", external.where)
        for type_ in external.types:
            if not _is_message(type_, declaration):
                yield _not_a_message(f"external({external.handler!r})", type_, external.where)
            elif isinstance(external.handler, str) and external.handler in known:
                role = f"{type_.__name__} is declared to reach {external.handler!r} from outside"
                yield from _unhandled(role, known[external.handler], external.handler, type_, external.where)


def _is_message(type_: Any, declaration: Declaration) -> bool:
    if not isinstance(type_, type):
        return False
    return (issubclass(type_, Message) and type_ not in {Message, FixedMessage}) or type_ in declaration.coded


def _not_a_message(role: str, type_: Any, where: str) -> Problem:
    text = type_.__name__ if isinstance(type_, type) else f"{type_!r:.80}"
    hint = "routes carry subclasses of Message, and classes with a codec: topology.codec(Class, ...)"
    if isinstance(type_, Message):
        text, hint = f"an instance of {type(type_).__name__}", f"name the class, {type(type_).__name__}"
    return Problem("not-a-message", text, f"{role}: {text} is not a Message class", hint, where)


def _unhandled(role: str, target: HandlerDescription, name: str, type_: type, where: str) -> Iterator[Problem]:
    handled = list(target.handles)
    if type_ in handled or target.problems or any(type_name(one) == type_name(type_) for one in handled):
        return
    names = ", ".join(one.__name__ for one in handled) or "nothing"
    match = difflib.get_close_matches(type_.__name__, [one.__name__ for one in handled], 1)
    hint = (
        f"did you mean {match[0]}?"
        if match
        else f"it handles {names}: add a method marked @handle, or change the route"
    )
    text = f"{role}, but {target.cls.__name__} does not handle it"
    yield Problem("unhandled-type", name, text, hint, where)


def _uncarried(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> Iterator[Problem]:
    """What is sent or handled, while no route carries it."""
    carried = [
        (route, type_) for route in declaration.routes for type_ in route.types if _is_message(type_, declaration)
    ]
    routed = {(str(route.source), type_) for route, type_ in carried}
    reached = {(str(target), type_) for route, type_ in carried for target in route.targets}
    reached |= {
        (str(one.handler), type_)
        for one in declaration.externals
        for type_ in one.types
        if _is_message(type_, declaration)
    }
    open_ = {str(one.handler) for one in declaration.externals if not one.types}
    where = {name: worker.where for worker in declaration.workers for name in worker.handlers}
    for name, handler in known.items():
        for type_ in handler.sends:
            if (name, type_) not in routed:
                text = f"handler {name!r} sends {type_.__name__}, which is routed nowhere from there"
                takers = [other for other, one in known.items() if type_ in one.handles]
                to = repr(takers[0] if len(takers) == 1 else takers) if takers else "..."
                hint = f"add topology.route({name!r}, {type_.__name__}, to={to}), or to=[] if nobody is to get it"
                yield Problem("unrouted-send", name, text, hint, where[name])
        for type_ in handler.handles:
            if (name, type_) not in reached and name not in open_:
                text = f"handler {name!r} handles {type_.__name__}, but no route brings it there"
                senders = [other for other, one in known.items() if type_ in one.sends] or ["..."]
                hint = (
                    f"add topology.route({senders[0]!r}, {type_.__name__}, to={name!r}), or"
                    f" topology.external({name!r}, {type_.__name__}) if it comes from system.send() or system.ask()"
                )
                yield Problem("undelivered-type", name, text, hint.replace("'...'", "..."), where[name])


def _messages(declaration: Declaration, known: Mapping[str, HandlerDescription]) -> Iterator[Problem]:
    """Message classes that cannot be encoded, and two of one name."""
    routed = [type_ for route in declaration.routes for type_ in route.types if _is_message(type_, declaration)]
    used = [type_ for one in known.values() for type_ in (*one.handles, *one.sends, *one.replies)]
    yield from fixed_problems(declaration, [*routed, *used])
    by_name: dict[str, type] = {}
    for type_ in dict.fromkeys([*routed, *used]):
        for text in () if type_ in declaration.coded else check_encodable(type_):
            yield Problem("unencodable-field", type_.__name__, f"message {type_.__name__}: field {text}")
        name = type_name(type_)
        if by_name.setdefault(name, type_) is not type_:
            text = f"there are two message classes named {name}"
            hint = "rename one; if its definition was run twice, run again what was defined with the first"
            yield Problem("ambiguous-type", name, text, hint)
