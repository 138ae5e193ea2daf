"""Handlers: what a user writes, and what the runtime reads out of it.

    class Averager(Handler):
        state: Totals                            # durable: committed with the messages it consumed

        def __init__(self, window): ...          # arguments come from Averager.spec(window=3) in the topology
        def on_start(self): ...                  # lifecycle: on_start, on_loop, on_stop

        @handle
        def on_trade(self, trade: Trade):        # the annotation says which messages: Trade, or Trade | Quote
            self.send(Average(trade.symbol, ...))

A handler never names its receivers: the topology routes by (source handler, message type). `describe` is a pure
function of the class and tells all its mistakes at once.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import msgspec
from msgspec.structs import fields

from actors.annotations import Unresolved, alternatives, evaluate, local_names, module_names, own, settle
from actors.errors import NotRunning
from actors.fingerprint import type_text
from actors.fixed import F, FixedMessage, Rows, is_fixed
from actors.handler_policy import ATTRIBUTE
from actors.handler_policy import problems as policy_problems
from actors.message import Message, State, check_encodable, check_type, is_immutable
from actors.table import Table

P = ParamSpec("P")
H = TypeVar("H", bound=Callable[..., Any])

_MARK = "__ringleader_handles__"  # on a function: the types it handles, or None while they are not resolved
_BATCH = "__ringleader_batch__"  # on such a function: it takes a list of messages
_NONE = object()


class HandlerSpec(msgspec.Struct, frozen=True):
    """A handler class with the arguments it is to be made with, in its worker, at each start."""

    cls: type[Handler]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Handler:
    """Base of handlers. There is nothing to call in `__init__`: the runtime sets up what is listed here before it."""

    name: str = ""
    """The handler's name in the topology."""

    @property
    def message_id(self) -> str:
        """The id of the message being handled, `sender/number`; empty when none is, or when it is from a handler of the
        same worker.

        It stays the same when the message is handled again after a crash, so it can serve as an idempotency key for
        effects outside the system, which may happen more than once.
        """
        current: Callable[[], str] | None = vars(self).get("_message_id")
        return current() if current is not None else ""

    def send(self, message: object) -> None:
        """Send a message to whoever the topology routes this type to from here.

        It leaves when the transaction commits, together with what was consumed and the state: all of it takes effect,
        once, or none of it. Raises UnroutedMessage; BadMessage and MessageTooLarge here or, for messages that cannot
        change any more, just before the commit.
        """
        self._not_running("send")

    def reserve(self, message: type[F], count: int, *, zeroed: bool = True) -> AbstractContextManager[Rows[F]]:
        """So many rows of a fixed message, to be written in place, and sent like any message when the block ends.

            with self.reserve(Tick, 1000) as rows:
                rows["price"] = prices

        They are zeros in the beginning; with `zeroed=False` they are whatever was there before, which takes less time
        and is for those who write every field. A block that is left by an exception sends nothing. Neither the rows nor
        a view of them may be kept: that is ViewEscaped, and the transaction is rolled back. Raises UnroutedMessage;
        TooManyRows, which says how many one transaction may send.
        """
        self._not_running("reserve")

    def reply(self, message: object) -> None:
        """Answer the message being handled, if its sender waits for an answer (`system.ask`); once per message."""
        self._not_running("reply")

    def stop_system(self) -> None:
        """Ask for a clean end: once this transaction is committed, the system handles what is under way, and stops."""
        self._not_running("stop_system")

    def stop_worker(self) -> None:
        """Ask for a clean end of this worker alone: once this transaction is committed, and what it has sent was taken
        by its receivers, `on_stop` of its handlers is called and its process ends with exit code 0.

        Whether it is started again is up to `topology.supervise`: a `permanent` worker, which is the default, is, and
        that counts against the restart limit; a `transient` or a `temporary` one stays away until the next start of the
        system, and what is sent to it waits.
        """
        self._not_running("stop_worker")

    def on_start(self) -> None:
        """Called whenever the handler is made, before any message: at the start, at a restart, after a rollback.

        So it may open what the handler needs. What it sends and what it changes in `state` takes effect once per start
        of the system; resuming a system that was killed is not a new start.
        """

    def on_loop(self) -> float | None:
        """Called again and again, between batches of messages: the place of a source.

        Returns the seconds to wait before the next call; None means at once if this call sent something, after a short
        pause otherwise; math.inf means never again. Several calls may be one transaction.
        """
        return math.inf

    def on_stop(self) -> None:
        """Called at a clean end, after the last message. Not called when the worker is killed."""

    @classmethod
    def spec(cls: Callable[P, Handler], *args: P.args, **kwargs: P.kwargs) -> HandlerSpec:
        """This class with arguments for its constructor, for Topology.worker."""
        return HandlerSpec(typing.cast("type[Handler]", cls), args, kwargs)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        if options:
            setattr(cls, ATTRIBUTE, options)  # a plain attribute: it travels with the class wherever that is shipped
        settle(cls, local_names(1))

    def _not_running(self, action: str) -> NoReturn:
        raise NotRunning(type(self).__name__, action)


@typing.overload
def handle(method: H, /) -> H: ...
@typing.overload
def handle(*, batch: bool = False) -> Callable[[H], H]: ...
def handle(method: Any = None, /, *, batch: bool = False) -> Any:
    """Marks a method as the one for the message types in the annotation of its one parameter.

        @handle
        def on_trade(self, trade: Trade): ...

        @handle(batch=True)
        def on_trades(self, trades: list[Trade]): ...

        @handle(batch=True)
        def on_ticks(self, ticks: Rows[Tick]): ...  # fixed messages: a read-only array

    With `batch`, the method is called with a list of what waits: consecutive messages of one type from one sender, at
    least one. All of them take effect together. When the call fails, or kills the worker, the messages are handled
    again one by one, each in a list of its own, so that the one to blame is found.
    """
    if method is None:
        local = local_names(1)
        return lambda method: _marked(method, batch, local)
    if not isinstance(method, FunctionType):
        raise TypeError(f"@handle stands above a method, alone or as @handle(batch=True); it got {method!r}")
    return _marked(method, batch, local_names(1))


def _marked(method: Any, batch: bool, local: Mapping[str, Any]) -> Any:
    if not isinstance(method, FunctionType):
        raise TypeError(f"@handle(...) stands above a method; it got {method!r}")
    setattr(method, _BATCH, batch)
    try:
        types: tuple[Any, ...] | None = _annotated_types(method, local)
    except Unresolved:
        types = None  # a name that is defined further down: describe() looks again
    setattr(method, _MARK, types)
    return method


class TableTypes(NamedTuple):
    """What a handler's `state: Table[K, V]` says."""

    key: Any
    value: Any


class HandlerDescription(msgspec.Struct, frozen=True):
    """What a handler class declares. `problems` are sentences about the class; empty if it can be run."""

    cls: type[Handler]
    handles: Mapping[type, str]  # message class -> name of the method
    batches: frozenset[str]  # the methods that take a list of them
    state: type[State] | None
    table: TableTypes | None
    has_on_start: bool
    has_on_loop: bool
    has_on_stop: bool
    sends: tuple[type, ...]  # classes it surely constructs in a self.send(...); there may be others
    replies: tuple[type, ...]  # the same for self.reply(...)
    problems: tuple[str, ...] = ()


def describe(cls: type[Handler], coded: Container[type] = ()) -> HandlerDescription:
    """Read a handler class. `coded`: the classes that the topology gives a codec, which are messages too."""
    import inspect  # here and below: workers, which are told what this finds, do without

    from actors.sends import constructed, reserved

    problems: list[str] = []
    handles = _handles(cls, problems, coded)
    batches = frozenset(name for name in handles.values() if getattr(_definition(cls, name), _BATCH, False))
    state, table = _state(cls, problems)
    lifecycle = {
        name: getattr(cls, name, None) is not getattr(Handler, name) for name in ("on_start", "on_loop", "on_stop")
    }
    problems.extend(policy_problems(cls, lifecycle["on_start"]))
    for name in ("send", "reserve", "reply", "stop_system", "stop_worker"):
        if getattr(cls, name, None) is not getattr(Handler, name):
            problems.append(f"it defines {name}, which the runtime provides: give it another name")
    for name, there in lifecycle.items():
        if there:
            problems.extend(_callable_problems(name, inspect.getattr_static(cls, name), 0))
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        problems.append(f"it is abstract: {', '.join(abstract)} is not implemented")
    if not handles and not problems and not lifecycle["on_start"] and not lifecycle["on_loop"]:
        problems.append(_idle(cls, coded))
    return HandlerDescription(
        cls,
        handles,
        batches,
        state,
        table,
        lifecycle["on_start"],
        lifecycle["on_loop"],
        lifecycle["on_stop"],
        tuple(dict.fromkeys((*constructed(cls, "send", coded), *reserved(cls)))),
        constructed(cls, "reply", coded),
        tuple(problems),
    )


def _handles(cls: type, problems: list[str], coded: Container[type]) -> dict[type, str]:
    """The message types of a class and the methods for them, overriding as in Python: by the method's name."""
    found: dict[type, str] = {}
    for name in dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)):
        definitions = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
        marked = _definition(cls, name)
        if marked is None or definitions[0] is None:
            continue  # not one, or taken back by `name = None`
        if not isinstance(definitions[0], FunctionType) or not isinstance(marked, FunctionType):
            problems.append(f"{name} is marked @handle but is not a plain method")
            continue
        if told := _callable_problems(name, definitions[0], 1):
            problems.extend(told)
            continue
        try:
            types = _types_of(marked)
        except Unresolved as error:
            problems.append(f"{name}: the annotation {error.annotation!r} cannot be resolved ({error.reason})")
            continue
        for type_ in types:
            if reason := _not_a_message(type_, coded):
                problems.append(f"{name}: {reason}")
            elif type_ in found:
                problems.append(
                    f"{found[type_]} and {name} both handle {type_.__name__}: keep one"
                    f" (a subclass overrides a method by its name, or takes it back by `{found[type_]} = None`)"
                )
            else:
                found[type_] = name
    return found


def _definition(cls: type, name: str) -> Any:
    """What is marked under this name, in the class or, where it was overridden without a mark, in a base; or None."""
    definitions = (vars(base)[name] for base in cls.__mro__ if name in vars(base))
    return next((one for one in definitions if _MARK in getattr(getattr(one, "__func__", one), "__dict__", {})), None)


def _types_of(method: FunctionType) -> tuple[Any, ...]:
    types = getattr(method, _MARK)
    if types is None:
        types = _annotated_types(method, {})
        setattr(method, _MARK, types)  # it is shipped to a process where the names may mean nothing
    return tuple(types)


def _annotated_types(method: FunctionType, local: Mapping[str, Any]) -> tuple[Any, ...]:
    """The classes in the annotation of the method's first parameter after self; none if it has no annotation."""
    function, annotation = _first_parameter(method)
    if annotation is _NONE:
        return ()
    names = getattr(function, "__globals__", {})
    closed = _closed_over(function) if isinstance(function, FunctionType) else {}
    declared = evaluate(annotation, names, {**closed, **local})
    if not getattr(method, _BATCH, False):
        return alternatives(declared)
    origin = typing.get_origin(declared)
    if origin is not list and origin is not Rows:
        return (_NotAList(declared),)
    inner = alternatives(typing.get_args(declared)[0])
    rows = [is_fixed(type_) for type_ in inner]
    if any(one is not (origin is Rows) for one in rows):
        return (_NotAList(declared),)
    return inner


def _first_parameter(method: FunctionType) -> tuple[Any, Any]:
    """The function that a method is, whatever wraps it, and the annotation of its first parameter after self."""
    plain = "__wrapped__" not in vars(method) and "__signature__" not in vars(method)
    if plain and method.__code__.co_argcount > 1:
        return method, method.__annotations__.get(method.__code__.co_varnames[1], _NONE)
    import inspect

    parameters = list(inspect.signature(method).parameters.values())[1:2]
    found = parameters[0].annotation if parameters else inspect.Parameter.empty
    return inspect.unwrap(method), _NONE if found is inspect.Parameter.empty else found


def _closed_over(function: FunctionType) -> dict[str, Any]:
    """The variables of enclosing functions that have a value yet; `__class__`, for super(), gets its own later."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


class _NotAList(NamedTuple):
    """What a batch handler takes by mistake."""

    declared: Any


def _not_a_message(type_: Any, coded: Container[type]) -> str | None:
    if isinstance(type_, _NotAList) and typing.get_origin(type_.declared) in {list, Rows}:
        return (
            f"it is a batch handler and takes {type_text(type_.declared)}: declare Rows of fixed messages and lists of"
            f" others, as in `ticks: Rows[Tick]`, `trades: list[Trade]`"
        )
    if typing.get_origin(type_) is Rows:
        return f"it takes {type_text(type_)}: put @handle(batch=True) above it to get several"
    if isinstance(type_, _NotAList):
        text = getattr(type_.declared, "__name__", None) or repr(type_.declared)
        if is_fixed(type_.declared) or type_.declared is Rows:
            of = "Tick" if type_.declared is Rows else text
            return f"it is a batch handler and takes {text}: declare rows, as in `ticks: Rows[{of}]`"
        return f"it is a batch handler and takes {text}: declare a list, as in `trades: list[Trade]`"
    if typing.get_origin(type_) is list:
        return f"it takes {type_!r}, which is not a Message class: put @handle(batch=True) above it to get several"
    if isinstance(type_, type) and type_ in coded:
        return None
    text = getattr(type_, "__name__", None) or repr(type_)
    if not isinstance(type_, type) or not issubclass(type_, Message):
        codec = (
            f", nor has it a codec: topology.codec({text}, ...)"
            if type(type_) is type and type_ is not type(None)
            else ""
        )
        return f"it takes {text}, which is not a Message class{codec}"
    if type_ in {Message, FixedMessage}:
        return f"it takes {text} itself: name the classes it is for, as in `trade: Trade | Quote`"
    return None


def _callable_problems(name: str, function: Any, arguments: int) -> list[str]:
    """What keeps a method from being called with so many arguments, and from being done when it returns."""
    if not isinstance(function, FunctionType):
        return [f"{name} is not a plain method"]
    import inspect

    if (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):
        return [f"{name} is a coroutine or a generator: it must be a plain function, done when it returns"]
    signature = inspect.signature(function)
    try:
        signature.bind(*[None] * (arguments + 1))
    except TypeError:
        takes = "one parameter, the message" if arguments else "no parameters"
        return [f"{name}{signature} must take {takes}, besides self"]
    if arguments and getattr(function, _MARK, None) == ():
        return [f"{name}: its parameter has no annotation, which says what messages it is for, as in `trade: Trade`"]
    return []


def _state(cls: type, problems: list[str]) -> tuple[type[State] | None, TableTypes | None]:
    """The durable state that a class declares by `state: ...`."""
    owner = next((base for base in cls.__mro__ if "state" in own(base)), None)
    value = getattr(cls, "state", None)
    if owner is None:
        if isinstance(value, (State, Table)) or (isinstance(value, type) and issubclass(value, State)):
            problems.append("state is given as a value: declare it by its type alone, as in `state: Totals`")
        return None, None
    try:
        declared = evaluate(own(owner)["state"], module_names(owner.__module__), dict(vars(owner)))
    except Unresolved as error:
        problems.append(f"state: the annotation {error.annotation!r} cannot be resolved ({error.reason})")
        return None, None
    owner.__annotations__["state"] = declared  # it may be shipped to where the names mean nothing
    if value is not None:
        problems.append(
            "state has a value in the class: declare it by its type alone, defaults belong to the State's fields"
        )
    if typing.get_origin(declared) is Table:
        key, stored = typing.get_args(declared)
        problems.extend(f"state: keys of type {key}: {reason}" for reason in [check_type(key)] if reason)
        problems.extend(f"state: values of type {stored}: {reason}" for reason in [check_type(stored)] if reason)
        if not is_immutable(key):
            problems.append(f"state: keys of type {key} can change: use str, int, a tuple or a frozen struct")
        return None, TableTypes(key, stored)
    if declared is Table:
        problems.append("state: a Table needs the types of its keys and values, as in `state: Table[str, Stats]`")
        return None, None
    if not isinstance(declared, type) or not issubclass(declared, State) or declared is State:
        problems.append(f"state: {declared!r} is not a State class of yours or a Table[K, V]")
        return None, None
    unencodable = check_encodable(declared)
    problems.extend(f"state: {declared.__name__}.{text}" for text in unencodable)
    if not unencodable:
        problems.extend(
            f"state: {declared.__name__}.{one.name} has no default: give it the value of the first start"
            for one in fields(declared)
            if one.required
        )
    return declared, None


def _idle(cls: type, coded: Container[type]) -> str:
    """Why a class that does nothing does nothing, as far as can be told."""
    import inspect

    forgotten = []
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if isinstance(method, FunctionType) and not hasattr(Handler, name):
            try:
                types = _annotated_types(method, {})
            except Unresolved:
                continue
            if types and not any(_not_a_message(type_, coded) for type_ in types):
                forgotten.append(name)
    if forgotten:
        return f"it handles nothing: put @handle above {', '.join(forgotten)}"
    return "it does nothing: it has no method marked @handle, no on_start and no on_loop"
