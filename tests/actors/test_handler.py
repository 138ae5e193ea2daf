import functools
import math
from abc import ABC, abstractmethod
from typing import Any, Optional, Union

import pytest

from actors.errors import NotRunning
from actors.handler import Handler, HandlerSpec, describe, handle
from actors.message import Message, State
from actors.table import Table
from tests.actors import postponed
from tests.actors.declared import Average, Averager, Feed, Line, Report, Totals, Trade


class Quote(Message):
    bid: float


class Halt(Message):
    reason: str


def handled(cls):
    description = describe(cls)
    assert description.problems == ()
    return {type_.__name__: method for type_, method in description.handles.items()}


def problems(cls):
    return list(describe(cls).problems)


# What a class declares


def test_a_handler_is_read_from_its_class():
    feed, averager, report = describe(Feed), describe(Averager), describe(Report)
    assert (dict(feed.handles), feed.state, feed.table, feed.sends) == ({}, None, None, (Trade,))
    assert (feed.has_on_start, feed.has_on_loop, feed.has_on_stop) == (False, True, False)
    assert (dict(averager.handles), averager.state, averager.sends) == ({Trade: "on_trade"}, Totals, (Average,))
    assert (report.state, report.table) == (None, (str, Line))
    assert (averager.has_on_start, averager.has_on_loop, averager.has_on_stop) == (False, False, False)
    assert feed.problems == averager.problems == report.problems == ()


def test_a_union_means_several_types():
    class Both(Handler):
        @handle
        def on_either(self, message: Trade | Quote) -> None: ...

        @handle
        def on_other(self, message: Union[Halt, "Average"]) -> None: ...

    assert handled(Both) == {"Trade": "on_either", "Quote": "on_either", "Halt": "on_other", "Average": "on_other"}


def test_string_annotations_may_name_what_is_defined_further_down():
    description = describe(postponed.Early)
    assert description.problems == ()
    assert dict(description.handles) == {postponed.Late: "on_late", postponed.Ping: "on_late"}
    assert description.state is postponed.Later


def test_string_annotations_may_use_names_local_to_a_function():
    local, count, counter = postponed.local_handler()
    assert dict(describe(counter).handles) == {local: "on_local"}
    assert describe(counter).state is count
    row, keeper = postponed.local_table()
    assert describe(keeper).table == (str, row)


def test_classes_local_to_a_function_may_use_each_other():
    class Mine(Message):
        x: int

    class Takes(Handler):
        @handle
        def on_mine(self, mine: "Mine") -> None:
            self.send(Mine(mine.x + 1))

    assert dict(describe(Takes).handles) == {Mine: "on_mine"}
    assert describe(Takes).sends == (Mine,)


# Inheritance


class Base(Handler):
    @handle
    def on_trade(self, trade: Trade) -> None:
        self.send(Quote(trade.price))

    @handle
    def on_quote(self, quote: Quote) -> None: ...


def test_handler_methods_are_inherited():
    class Sub(Base):
        @handle
        def on_halt(self, halt: Halt) -> None: ...

    assert handled(Sub) == {"Trade": "on_trade", "Quote": "on_quote", "Halt": "on_halt"}
    assert describe(Sub).sends == (Quote,)


def test_an_overriding_method_needs_no_mark():
    class Sub(Base):
        def on_trade(self, trade: Trade) -> None: ...

    assert handled(Sub) == {"Trade": "on_trade", "Quote": "on_quote"}
    assert describe(Sub).sends == ()


def test_an_overriding_method_with_a_mark_says_what_it_is_for():
    class Sub(Base):
        @handle
        def on_trade(self, halt: Halt) -> None: ...  # type: ignore[override]

    assert handled(Sub) == {"Halt": "on_trade", "Quote": "on_quote"}


def test_a_handler_method_can_be_taken_back():
    class Sub(Base):
        on_trade = None  # type: ignore[assignment]

    assert handled(Sub) == {"Quote": "on_quote"}


def test_a_mixin_need_not_be_a_handler():
    class Mixin:
        @handle
        def on_halt(self, halt: Halt) -> None: ...

    class Sub(Mixin, Base): ...

    assert handled(Sub) == {"Trade": "on_trade", "Quote": "on_quote", "Halt": "on_halt"}


def test_state_is_inherited_and_overridden():
    class Sub(Averager): ...

    class Other(Averager):
        state: Table[str, int]  # type: ignore[assignment]

    assert describe(Sub).state is Totals
    assert describe(Other).state is None
    assert describe(Other).table == (str, int)


def test_a_wrapped_method_is_still_a_handler_method():
    def logged(method):
        @functools.wraps(method)
        def wrapper(self, *args):
            return method(self, *args)

        return wrapper

    class Outside(Handler):
        @logged
        @handle
        def on_trade(self, trade: Trade) -> None: ...

    class Inside(Handler):
        @handle
        @logged
        def on_trade(self, trade: Trade) -> None: ...

    assert handled(Outside) == handled(Inside) == {"Trade": "on_trade"}


# What it surely sends


def test_what_is_sent_is_found_where_it_is_certain():
    class Sends(Handler):
        def on_start(self) -> None:
            self.send(Trade("a", 1.0) if self.name else Quote(1.0))
            self.send(postponed.Ping(1))

            def halt(reason: str) -> None:
                self.send(Halt(reason))

            halt("end of day")

        @handle
        def on_trade(self, trade: Trade) -> None:
            self.reply(Average("a", 1.0))

    assert set(describe(Sends).sends) == {Trade, Quote, postponed.Ping, Halt}
    assert describe(Sends).replies == (Average,)


def test_what_is_not_certain_is_not_found():
    class Sends(Handler):
        other: Any = None

        def on_start(self) -> None:
            Quote: Any = self.pick  # noqa: N806
            self.send(Quote(1.0))
            self.other.send(Halt("a"))
            message = Trade("a", 1.0)
            self.send(message)
            self.send(self.pick())

        def on_stop(self) -> None:
            def later(self: Any) -> None:
                self.send(Halt("a"))

            self.other = later

        def with_import(self) -> None:
            from tests.actors.postponed import Ping as Average

            self.send(Average(1))

        def pick(self, *args: Any) -> Message: ...  # type: ignore[empty-body]

    assert describe(Sends).sends == ()


def test_code_without_source_is_no_trouble():
    names: dict[str, Any] = {"Handler": Handler, "Trade": Trade, "__name__": "typed"}
    exec("class Typed(Handler):\n    def on_start(self):\n        self.send(Trade('a', 1.0))\n", names)
    assert describe(names["Typed"]).sends == ()
    assert problems(names["Typed"]) == []


# Mistakes


def test_two_methods_for_one_type_are_a_mistake():
    class Sub(Base):
        @handle
        def on_deal(self, deal: Trade) -> None: ...

    (text,) = problems(Sub)
    assert text.startswith("on_trade and on_deal both handle Trade")
    assert "`on_trade = None`" in text


def test_a_parameter_without_annotation_is_a_mistake():
    class Bare(Handler):
        @handle
        def on_trade(self, trade): ...

    assert problems(Bare) == [
        "on_trade: its parameter has no annotation, which says what messages it is for, as in `trade: Trade`"
    ]


@pytest.mark.parametrize("annotation", [int, "Trade | None", list[Trade], State, Any, Optional[Trade]], ids=repr)  # noqa: UP045
def test_an_annotation_that_is_no_message_class_is_a_mistake(annotation):
    def on_it(self, it): ...

    on_it.__annotations__["it"] = annotation
    cls = type("Wrong", (Handler,), {"on_it": handle(on_it)})
    (text,) = problems(cls)
    assert text.startswith("on_it: it takes ")
    if annotation == list[Trade]:
        text = text.removesuffix(": put @handle(batch=True) above it to get several")
    elif annotation is int:
        text = text.removesuffix(", nor has it a codec: topology.codec(int, ...)")
    assert text.endswith("which is not a Message class")


def test_message_itself_is_not_a_type_to_handle():
    class Anything(Handler):
        @handle
        def on_any(self, message: Message) -> None: ...

    assert "on_any: it takes Message itself" in problems(Anything)[0]


def test_an_annotation_that_names_nothing_is_a_mistake():
    (text,) = problems(postponed.Unknown)
    assert text.startswith("on_nothing: the annotation 'Nothing' cannot be resolved (NameError")


def test_a_method_that_cannot_be_called_with_one_message_is_a_mistake():
    class Odd(Handler):
        @handle
        def on_none(self) -> None: ...

        @handle
        def on_two(self, trade: Trade, other: int) -> None: ...

        @handle
        def on_key(self, trade: Trade, *, other: int) -> None: ...

        @handle
        def on_fine(self, trade: Trade, other: int = 0) -> None: ...

    found = problems(Odd)
    assert [text.partition("(")[0] for text in found] == ["on_none", "on_two", "on_key"]
    assert all("must take one parameter, the message, besides self" in text for text in found)


def test_coroutines_and_generators_are_a_mistake():
    class Later(Handler):
        @handle
        async def on_trade(self, trade: Trade) -> None: ...

        @handle
        def on_quote(self, quote: Quote) -> Any:
            yield quote

        async def on_start(self) -> None: ...  # type: ignore[override]

    assert [text.split()[0] for text in problems(Later)] == ["on_trade", "on_quote", "on_start"]
    assert all("it must be a plain function" in text for text in problems(Later))


def test_static_methods_and_lifecycle_parameters_are_mistakes():
    class Static(Handler):
        @staticmethod
        @handle
        def on_trade(trade: Trade) -> None: ...

        def on_start(self, path: str) -> None: ...  # type: ignore[override]

    static, start = problems(Static)
    assert static == "on_trade is marked @handle but is not a plain method"
    assert start == "on_start(self, path: str) -> None must take no parameters, besides self"


@pytest.mark.parametrize("name", ["send", "reply", "stop_system"])
def test_what_the_runtime_provides_cannot_be_defined(name):
    cls = type("Greedy", (Base,), {name: lambda self, message: None})
    assert problems(cls) == [f"it defines {name}, which the runtime provides: give it another name"]


def test_an_abstract_handler_is_a_mistake():
    class Abstract(Handler, ABC):
        def on_start(self) -> None: ...

        @abstractmethod
        def where(self) -> str: ...

    assert problems(Abstract) == ["it is abstract: where is not implemented"]


def test_a_handler_that_does_nothing_is_a_mistake():
    class Forgot(Handler):
        def on_trade(self, trade: Trade) -> None: ...

        def distance(self, a: int) -> int:
            return a

    class Nothing(Handler): ...

    assert problems(Forgot) == ["it handles nothing: put @handle above on_trade"]
    assert problems(Nothing) == ["it does nothing: it has no method marked @handle, no on_start and no on_loop"]


def test_a_state_needs_a_default_for_every_field():
    class Half(State):
        a: int
        b: int = 0

    class Keeps(Base):
        state: Half

    assert problems(Keeps) == ["state: Half.a has no default: give it the value of the first start"]


def test_a_state_must_be_encodable():
    class Odd(State):
        thing: object = None
        fine: int = 0

    class Keeps(Base):
        state: Odd

    (text,) = problems(Keeps)
    assert text.startswith("state: Odd.thing: `object` cannot be encoded")


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (dict[str, int], "is not a State class of yours or a Table[K, V]"),
        (State, "is not a State class of yours or a Table[K, V]"),
        (Trade, "is not a State class of yours or a Table[K, V]"),
        (Table, "a Table needs the types of its keys and values"),
        (Table[str, object], "values of type <class 'object'>: `object` cannot be encoded"),
        (Table[tuple[object, ...], int], "`object` cannot be encoded"),
        (Table[list[int], int], "keys of type list[int] can change"),
        ("Nothing", "the annotation 'Nothing' cannot be resolved"),
    ],
    ids=repr,
)
def test_a_state_of_another_type_is_a_mistake(annotation, told):
    cls = type("Keeps", (Base,), {"__annotations__": {"state": annotation}, "__module__": __name__})
    assert told in problems(cls)[0]
    assert problems(cls)[0].startswith("state: ")


def test_a_state_given_as_a_value_is_a_mistake():
    class ByValue(Base):
        state = Totals()

    class Both(Base):
        state: Totals = Totals()

    assert problems(ByValue) == ["state is given as a value: declare it by its type alone, as in `state: Totals`"]
    assert problems(Both)[0].startswith("state has a value in the class")


def test_handle_takes_no_message_class():
    with pytest.raises(TypeError, match="@handle stands above a method"):
        handle(Trade)


def test_all_mistakes_of_a_class_are_told_at_once():
    class Wrong(Handler):
        state: int

        @handle
        def on_trade(self, trade): ...

        def send(self, message: object) -> None: ...

    assert len(problems(Wrong)) == 3


# Away from a worker


@pytest.mark.parametrize("action", ["send", "reply", "stop_system"])
def test_a_handler_that_no_worker_hosts_says_so(action):
    feed = Feed("path")
    with pytest.raises(NotRunning) as caught:
        getattr(feed, action)(*([] if action == "stop_system" else [Trade("a", 1.0)]))
    assert isinstance(caught.value, RuntimeError)
    assert (caught.value.handler, caught.value.action) == ("Feed", action)


def test_a_handler_can_be_tried_without_a_worker():
    sent: list[Message] = []
    feed = Feed("path")
    vars(feed)["send"] = sent.append
    feed.on_loop()
    assert sent == [Trade("ACME", 2.5)]
    averager = Averager()
    averager.state = Totals()
    vars(averager)["send"] = sent.append
    averager.on_trade(Trade("ACME", 2.0))
    assert sent[1:] == [Average("ACME", 2.0)]


def test_the_message_id_is_that_of_the_runtime():
    feed = Feed("path")
    assert feed.message_id == ""
    assert feed.name == ""
    vars(feed)["_message_id"] = lambda: "ingest>stats/7"
    assert feed.message_id == "ingest>stats/7"


def test_a_handler_without_a_loop_is_never_called_again():
    handler: Handler = Averager()
    assert handler.on_loop() == math.inf


def test_a_spec_carries_the_class_and_its_arguments():
    spec = Feed.spec(path="trades.csv")
    assert spec == HandlerSpec(Feed, (), {"path": "trades.csv"})
    assert Feed.spec("trades.csv") == HandlerSpec(Feed, ("trades.csv",), {})


class Plain(Handler):
    @handle
    def on_number(self, trade: Trade) -> None: ...


class Derived(Plain):
    @handle
    def on_number(self, trade: Trade) -> None:
        super().on_number(trade)


def test_a_handler_method_may_use_super():
    assert describe(Derived).handles == {Trade: "on_number"}
