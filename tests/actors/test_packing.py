"""What a packer is for, and that the receiver accepts what it has taken."""

from __future__ import annotations

import datetime
import enum
from typing import Annotated, Any, Literal, NewType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec import RunCodec
from actors.message import Message
from actors.packing import packing, plain_types
from tests.bus.implementations import needs_c


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Level(enum.IntEnum):
    LOW = -3
    HIGH = 2**40


class Way(enum.Flag):
    UP = 1
    DOWN = 2


Price = NewType("Price", float)


class Plain(Message):
    text: str
    number: int
    price: Price
    data: bytes
    there: bool
    side: Side
    level: Level | None
    way: Way
    mixed: str | int | None = None


class Derived(Plain):
    more: Annotated[float, "of no meaning"] | None = None


class Tagged(Message, tag="a tag"):
    number: int


class Numbered(Message, tag=300):
    pass


class Bounded(Message):
    level: Annotated[int, msgspec.Meta(le=10)]


class PerhapsBounded(Message):
    level: Annotated[int, msgspec.Meta(le=10)] | None


class Named(Message, array_like=False):
    number: int


class Checked(Message):
    number: int

    def __post_init__(self) -> None:
        if self.number == 13:
            raise ValueError


def test_types_that_ask_for_more_than_their_class_are_not_plain() -> None:
    assert plain_types(int | None) == (int, type(None))
    assert plain_types(Price) == (float,)
    assert plain_types(Side) == (Side,)
    bounded = Annotated[int, msgspec.Meta(le=10)]
    for more in (bounded, bounded | None, Literal["a"], datetime.datetime, int | list[int], Any, Plain):
        assert plain_types(more) is None


@pytest.mark.parametrize("type_", [Bounded, PerhapsBounded, Named, Checked])
def test_a_packer_is_not_for_classes_whose_values_have_to_be_looked_at(type_: type[Message]) -> None:
    assert packing(type_) is None


def packed(type_: type[Message], message: Message) -> bytes | None:
    from bus import _send

    made = packing(type_)
    assert made is not None
    pieces: list[Any] = []
    packer = _send.Packer(type_, *made, 10**6, 10**6, pieces.append)
    packer.begin(pieces)
    taken = packer.put(message)
    packer.end()
    assert taken == bool(pieces)
    return pieces[1] if taken else None


numbers = st.integers(-(2**63), 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = {
    "text": texts,
    "number": numbers,
    "price": st.floats() | numbers,
    "data": st.binary(),
    "there": st.booleans(),
    "side": st.sampled_from(Side),
    "level": st.sampled_from(Level) | st.none(),
    "way": st.sampled_from([Way.UP, Way.DOWN]),
    "mixed": texts | numbers | st.none(),
    "more": st.floats() | numbers | st.none(),
}
anything = st.one_of(
    *plain.values(), st.lists(numbers), st.integers(), st.text(), st.binary().map(bytearray), st.just(Way.UP | Way.DOWN)
)


@needs_c
@given(st.fixed_dictionaries(plain))
def test_what_fits_its_declaration_is_packed_as_msgspec_encodes_it(values: dict[str, Any]) -> None:
    message = Derived(**values)
    assert packed(Derived, message) == RunCodec(Derived).encode_run([message])


@needs_c
@given(st.fixed_dictionaries({name: st.one_of(right, right, right, anything) for name, right in plain.items()}))
def test_what_is_packed_the_receiver_accepts(values: dict[str, Any]) -> None:
    message, codec = Derived(**values), RunCodec(Derived)
    body = packed(Derived, message)
    if body is not None:
        codec.check_run(body)
        assert body == codec.encode_run([message])


@needs_c
@pytest.mark.parametrize("message", [Tagged(5), Numbered()])
def test_a_tag_is_packed_too(message: Message) -> None:
    assert packed(type(message), message) == RunCodec(type(message)).encode_run([message])


def test_a_bound_inside_a_union_is_checked_by_the_sender() -> None:
    codec, messages = RunCodec(PerhapsBounded), [PerhapsBounded(11)]
    with pytest.raises(Exception, match="level"):
        codec.check_run(codec.encode_run(messages), messages)
