import datetime
import decimal
import enum
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NewType

import msgspec
import pytest

from actors.annotations import alternatives
from actors.message import Message, State, can_encode_late, check_encodable, check_type, is_immutable, type_name
from tests.actors import postponed


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Point(Message):
    x: float
    y: float


class Basket(Message):
    points: list[Point]


class Chain(Message):
    value: int
    rest: "Chain | None" = None


class Loop(Message):
    items: list[int]
    rest: "Loop | None" = None


class Pair(NamedTuple):
    left: int
    right: str


class LoosePair(NamedTuple):
    left: list[int]


@dataclass(frozen=True)
class Cold:
    x: int


@dataclass
class Warm:
    x: int


Price = NewType("Price", float)


class Thing:
    pass


def test_a_message_is_a_frozen_value():
    point = Point(1.0, 2.0)
    with pytest.raises(AttributeError):
        point.x = 3.0  # type: ignore[misc]
    assert point == Point(1.0, 2.0)
    assert hash(point) == hash(Point(1.0, 2.0))


def test_a_message_is_encoded_as_the_array_of_its_fields():
    assert msgspec.msgpack.encode(Point(1.0, 2.0))[0] == 0x92


def test_a_state_is_mutable_and_its_defaults_are_per_instance():
    class Totals(State):
        count: dict[str, int] = {}

    one, other = Totals(), Totals()
    one.count["a"] = 1
    assert other.count == {}


def test_a_state_survives_adding_and_reordering_fields():
    class Before(State):
        a: int = 0
        b: str = ""

    class After(State):
        c: list[int] = []
        b: str = ""
        a: int = 0

    data = msgspec.msgpack.encode(Before(1, "x"))
    assert msgspec.msgpack.decode(data, type=After) == After([], "x", 1)


IMMUTABLE = [
    type(None),
    None,
    bool,
    int,
    float,
    str,
    bytes,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
    Side,
    Literal["a", 1],
    int | None,
    tuple[int, ...],
    tuple[int, str],
    tuple[tuple[str, ...], Side],
    frozenset[str],
    Point,
    tuple[Point, ...],
    Point | None,
    Chain,
    Pair,
    Cold,
    Annotated[int, msgspec.Meta(ge=0)],
    Price,
]
MUTABLE = [
    list[int],
    dict[str, int],
    set[int],
    bytearray,
    Any,
    object,
    Thing,
    tuple,
    tuple[list[int], ...],
    frozenset[Any],
    Basket,
    Loop,
    Basket | None,
    LoosePair,
    Warm,
    Annotated[list[int], msgspec.Meta(max_length=3)],
    State,
    msgspec.Raw,
]


@pytest.mark.parametrize("type_", IMMUTABLE, ids=repr)
def test_known_to_be_immutable(type_):
    assert is_immutable(type_)


@pytest.mark.parametrize("type_", MUTABLE, ids=repr)
def test_not_known_to_be_immutable(type_):
    assert not is_immutable(type_)


def test_a_message_that_is_not_frozen_after_all_is_not_immutable():
    class Thawed(Message, frozen=False):  # type: ignore[misc]
        x: int

    assert not is_immutable(Thawed)
    assert not can_encode_late(Thawed)


@pytest.mark.parametrize(
    "type_", [tuple[int, ...], bytes, frozenset[int], Point, list[int], Any, int | bytes], ids=repr
)
def test_where_a_mutable_value_could_hide_nothing_is_encoded_late(type_):
    """A list encodes like a tuple or a struct, a bytearray like bytes, a set like a frozenset."""
    cls = msgspec.defstruct("Holder", [("value", type_)], bases=(Message,), frozen=True)
    assert not can_encode_late(cls)


@pytest.mark.parametrize("type_", [int, str | None, Side, Literal[1, 2], datetime.datetime, Price], ids=repr)
def test_scalars_are_encoded_late(type_):
    cls = msgspec.defstruct("Holder", [("value", type_)], bases=(Message,), frozen=True)
    assert can_encode_late(cls)


def test_every_field_that_cannot_be_encoded_is_told_by_name():
    class Mixed(Message):
        fine: dict[str, list[Point]]
        thing: Thing
        nested: dict[str, tuple[Thing, ...]]
        anything: Any
        both: str | bytes
        counts: defaultdict[str, int]

    thing, nested, both, counts = check_encodable(Mixed)
    assert thing.startswith("thing: `Thing` cannot be encoded")
    assert nested.startswith("nested: `Thing` cannot be encoded")
    assert both.startswith("both: ")
    assert "str-like" in both
    assert counts.startswith("counts: `defaultdict`")


def test_a_struct_inside_is_looked_into():
    class Inner(msgspec.Struct):
        thing: Thing

    class Outer(Message):
        inner: Inner

    assert check_encodable(Outer) == [
        "inner: `Thing` cannot be encoded: use a Struct, a dataclass or a builtin type, or Any for plain data"
    ]


def test_an_annotation_that_names_nothing_is_told_by_field():
    class Lost(Message):
        fine: int
        lost: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    (problem,) = check_encodable(Lost)
    assert problem.startswith("lost: annotation 'Nowhere' cannot be resolved")
    assert not is_immutable(Lost)
    assert not can_encode_late(Lost)


def test_an_annotation_that_a_subclass_replaces_is_not_told():
    class Lost(Message):
        one: "Nowhere"  # type: ignore[name-defined]  # noqa: F821
        two: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    class Found(Lost):
        one: int

    assert [problem.partition(":")[0] for problem in check_encodable(Found)] == ["two"]


def test_what_can_be_encoded_has_no_problems():
    assert check_encodable(Chain) == check_encodable(Basket) == []
    assert check_type(dict[str, Point | None]) is None


def test_string_annotations_may_use_names_local_to_a_function():
    inner, outer = postponed.local_messages()
    assert check_encodable(outer) == []
    body = msgspec.msgpack.encode(outer(inner(3), None))
    assert msgspec.msgpack.decode(body, type=outer) == outer(inner(3), None)


def test_a_class_is_known_by_its_module_and_name():
    assert type_name(Point) == f"{__name__}.Point"
    assert type_name(Warm) == f"{__name__}.Warm"


def test_a_script_is_known_by_its_file(monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "__spec__", None)
    monkeypatch.setattr(__main__, "__file__", "/somewhere/trades.py", raising=False)
    scripted = msgspec.defstruct("Scripted", [("x", int)], bases=(Message,), module="__main__", frozen=True)
    assert type_name(scripted) == "trades.Scripted"


def test_alternatives_are_flat():
    assert alternatives(Annotated[int | Annotated[str, 1], 2] | None) == (int, str, type(None))
