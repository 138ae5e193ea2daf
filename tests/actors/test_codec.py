import datetime
import enum
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec import FLAG_ASK, FLAG_REPLY, RUN, RunCodec, StateCodec, array_header, pack_header, unpack_header
from actors.errors import BadMessage, BadRecord, BadState, MessageTooLarge
from actors.message import Message, State


class Trade(Message):
    symbol: str
    price: float
    size: int


class Side(enum.Enum):
    BUY = "buy"


class Way(enum.Flag):
    UP = 1
    DOWN = 2


class Point(Message):
    x: int
    y: int


class Deep(Message):
    points: tuple[Point, ...]
    names: dict[str, list[int]]


class Held(Message):
    point: Point


class Loose(Message):
    anything: Any


class Bounded(Message):
    level: Annotated[int, msgspec.Meta(le=10)]


class Flagged(Message):
    way: Way


class Tagged(Message, tag=True):
    value: int


class Empty(Message):
    pass


class Renamed(Message, rename="camel"):
    long_name: int


def run(count=3):
    return [Trade("ACME", number + 0.5, number) for number in range(count)]


def test_the_header_is_sixteen_bytes_little_endian():
    header = pack_header(7, 3, 2, FLAG_ASK | FLAG_REPLY)
    assert header == struct.pack("<QIHH", 7, 3, 2, 3)
    assert len(header) == RUN.size == 16
    assert unpack_header(header + b"body") == (7, 3, 2, 3)


def test_a_record_shorter_than_its_header_is_refused():
    with pytest.raises(BadRecord) as caught:
        unpack_header(bytes(15))
    assert caught.value.size == 15


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_the_array_header_is_that_of_messagepack(count):
    assert array_header(count) + b"\xc0" * count == msgspec.msgpack.encode([None] * count)


def test_a_run_is_read_as_it_was_written():
    codec = RunCodec(Trade)
    body = codec.encode_run(run())
    codec.check_run(body)
    codec.check_run(body, run())
    assert codec.decode_run(body) == run()
    assert codec.decode_run(memoryview(body)) == run()


def test_joined_encodings_are_the_encoded_run():
    codec = RunCodec(Trade)
    for count in (1, 15, 16, 300):
        assert codec.join([codec.encode_one(one) for one in run(count)]) == codec.encode_run(run(count))


def test_one_message_is_read_as_it_was_written():
    codec = RunCodec(Deep)
    deep = Deep((Point(1, 2),), {"a": [1]})
    assert codec.decode_one(codec.encode_one(deep)) == deep


def test_combined_flags_are_read_as_they_were_written():
    codec, messages = RunCodec(Flagged), [Flagged(Way.UP | Way.DOWN), Flagged(Way.UP)]
    body = codec.encode_run(messages)
    codec.check_run(body, messages)
    assert codec.decode_run(body) == messages


def test_only_classes_of_scalars_are_late():
    assert RunCodec(Trade).late
    assert not RunCodec(Deep).late
    assert not RunCodec(Loose).late


WRONG = [
    (Trade("a", "x", 1), "price", "Expected `float`, got `str`", "'x'"),  # type: ignore[arg-type]
    (Trade("a", 1.0, 1.5), "size", "Expected `int`, got `float`", "1.5"),  # type: ignore[arg-type]
    (Trade("a", 1.0, True), "size", "Expected `int`, got `bool`", "True"),
    (Trade(None, 1.0, 1), "symbol", "Expected `str`, got `None`", "None"),  # type: ignore[arg-type]
    (Trade(b"a", 1.0, 1), "symbol", "Expected `str`, got `bytes`", "b'a'"),  # type: ignore[arg-type]
    (Deep((Point(1, "y"),), {}), "points[0][1]", "Expected `int`, got `str`", "'y'"),  # type: ignore[arg-type]
    (Deep((), {"a": [1, None]}), "names[...][1]", "Expected `int`, got `None`", "None"),  # type: ignore[list-item]
    (Held(Point(1, "y")), "point[1]", "Expected `int`, got `str`", "'y'"),  # type: ignore[arg-type]
    (Bounded(11), "level", "Expected `int` <= 10", "11"),
    (Tagged("x"), "value", "Expected `int`, got `str`", "'x'"),  # type: ignore[arg-type]
    (Renamed("x"), "long_name", "Expected `int`, got `str`", "'x'"),  # type: ignore[arg-type]
]
GOOD: dict[type, Message] = {
    Trade: Trade("a", 1.0, 1),
    Deep: Deep((), {}),
    Held: Held(Point(1, 2)),
    Bounded: Bounded(1),
    Tagged: Tagged(1),
    Renamed: Renamed(1),
}


@pytest.mark.parametrize(("message", "field", "reason", "value"), WRONG, ids=repr)
@pytest.mark.parametrize("with_messages", [False, True])
def test_a_value_that_does_not_fit_its_type_is_blamed_on_its_message_and_field(
    message, field, reason, value, with_messages
):
    codec = RunCodec(type(message))
    messages = [GOOD[type(message)]] * 3 + [message] + [GOOD[type(message)]]
    body = codec.encode_run(messages)
    with pytest.raises(BadMessage) as caught:
        codec.check_run(body, messages if with_messages else None)
    error = caught.value
    assert (error.index, error.field, error.reason, error.type) == (3, field, reason, codec.type_name)
    if "..." not in field:
        assert error.value == value
    assert value not in str(error).replace(error.reason, "")
    with pytest.raises(BadRecord, match=codec.type_name):
        codec.decode_run(body)


UNENCODABLE = [
    (Trade(object(), 1.0, 1), "symbol", "object"),  # type: ignore[arg-type]
    (Trade("a", 1.0, 1 << 64), "size", "OverflowError"),
    (Trade("\ud800", 1.0, 1), "symbol", "UnicodeEncodeError"),
    (Trade("a", 1j, 1), "price", "complex"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("message", "field", "reason"), UNENCODABLE, ids=ascii)
def test_a_value_that_cannot_be_encoded_is_blamed_on_its_message_and_field(message, field, reason):
    codec = RunCodec(Trade)
    with pytest.raises(BadMessage) as caught:
        codec.encode_run([*run(2), message, message])
    assert (caught.value.index, caught.value.field) == (2, field)
    assert reason in caught.value.reason
    with pytest.raises(BadMessage) as caught:
        codec.encode_one(message)
    assert (caught.value.index, caught.value.field) == (0, field)


def test_what_a_value_looks_like_is_kept_short_and_out_of_the_text():
    class Rude:
        def __repr__(self):
            raise ValueError("no")

    Rude.__qualname__ = "Rude"
    codec = RunCodec(Loose)
    with pytest.raises(BadMessage) as caught:
        codec.encode_run([Loose(Rude())])
    assert "repr raises ValueError" in caught.value.value
    body = RunCodec(Trade).encode_run([Trade("a", "secret " * 1000, 1)])  # type: ignore[arg-type]
    with pytest.raises(BadMessage) as caught:
        RunCodec(Trade).check_run(body)
    assert "secret" not in str(caught.value)
    assert len(caught.value.value) <= 80


def test_a_validating_constructor_is_asked_by_the_check():
    class Even(Message):
        value: int

        def __post_init__(self):
            if not refuse:
                return
            raise ValueError("odd")

    refuse = False
    codec, even = RunCodec(Even), Even(1)
    refuse = True
    with pytest.raises(BadMessage) as caught:
        codec.check_run(codec.encode_run([even]), [even])
    assert caught.value.reason == "odd"


SCALAR: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    st.just(Side.BUY),
    st.datetimes(),
)


class Optional_(Message):  # noqa: N801
    symbol: str | None
    price: float | bool
    size: int | None
    side: Side


@given(st.tuples(SCALAR, SCALAR, SCALAR, SCALAR))
def test_what_the_quick_check_passes_the_receiver_accepts(values):
    """And the other way round: with or without the messages, the check says the same."""
    codec, messages = RunCodec(Optional_), [Optional_(*values)]
    try:
        body = codec.encode_run(messages)
    except BadMessage:
        return  # a lone surrogate, say
    accepted = True
    try:
        codec.decode_run(body)
    except BadRecord:
        accepted = False
    for given_messages in (messages, None):
        try:
            codec.check_run(body, given_messages)
        except BadMessage:
            assert not accepted
        else:
            assert accepted


def test_messages_without_fields_are_runs_too():
    codec = RunCodec(Empty)
    body = codec.encode_run([Empty()] * 3)
    codec.check_run(body, [Empty()] * 3)
    assert codec.decode_run(body) == [Empty()] * 3


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91", b"\x91\x01", b"\x01", b"\x90\x00"])
def test_a_body_that_is_no_run_of_the_class_is_refused(body):
    codec = RunCodec(Trade)
    with pytest.raises(BadRecord):
        codec.decode_run(body)
    with pytest.raises(BadMessage):
        codec.check_run(body)
    with pytest.raises(BadRecord):
        codec.decode_one(body)


@given(st.lists(st.text(max_size=50), max_size=40), st.integers(60, 400))
def test_split_runs_are_the_same_messages_in_the_same_order_and_each_fits(texts, limit):
    codec = RunCodec(Trade)
    messages = [Trade(text[:10], 1.0, number) for number, text in enumerate(texts)]
    encoded = [codec.encode_one(one) for one in messages]
    for items in (messages, encoded):
        parts = codec.split_run(items, limit)
        assert [one for _, body in parts for one in codec.decode_run(body)] == messages
        assert all(len(body) <= limit and count == len(codec.decode_run(body)) > 0 for count, body in parts)


def test_a_run_that_fits_is_not_split():
    codec = RunCodec(Trade)
    body = codec.encode_run(run())
    assert codec.split_run(run(), len(body)) == [(3, body)]
    assert [count for count, _ in codec.split_run(run(), len(body) - 1)] == [1, 2]


def test_a_message_over_the_limit_is_blamed_with_its_index_and_size():
    codec = RunCodec(Trade)
    big = Trade("x" * 1000, 1.0, 1)
    for items in ([*run(5), big, *run(2)], [codec.encode_one(one) for one in [*run(5), big, *run(2)]]):
        with pytest.raises(MessageTooLarge) as caught:
            codec.split_run(items, 200)
        assert (caught.value.index, caught.value.limit) == (5, 200)
        assert caught.value.size == len(codec.encode_one(big))
        assert caught.value.type == codec.type_name


def test_a_message_too_long_for_a_run_of_several_is_a_run_of_its_own_up_to_its_own_limit():
    codec = RunCodec(Trade)
    big = Trade("x" * 1000, 1.0, 1)
    size = len(codec.encode_one(big))
    parts = codec.split_run([*run(2), big, *run(2)], 200, size)
    assert [one for _, body in parts for one in codec.decode_run(body)] == [*run(2), big, *run(2)]
    assert (1, codec.encode_run([big])) in parts
    with pytest.raises(MessageTooLarge) as caught:
        codec.split_run([*run(2), big], 200, size - 1)
    assert (caught.value.index, caught.value.size, caught.value.limit) == (2, size, size - 1)


def test_a_message_over_its_own_limit_is_refused_also_where_the_run_would_fit():
    codec = RunCodec(Trade)
    big = Trade("x" * 100, 1.0, 1)
    for items in ([*run(2), big], [codec.encode_one(one) for one in [*run(2), big]]):
        with pytest.raises(MessageTooLarge) as caught:
            codec.split_run(items, 10_000, 100)
        assert (caught.value.index, caught.value.limit) == (2, 100)
        assert len(codec.split_run(items, 10_000, 200)) == 1


class Totals(State):
    count: dict[str, int] = {}
    at: datetime.date | None = None


def test_a_state_is_read_as_it_was_written():
    codec = StateCodec(Totals)
    state = codec.fresh()
    state.count["a"] = 1
    data = codec.encode(state)
    codec.check(data)
    assert codec.decode(data) == state


def test_a_state_that_could_not_be_read_back_is_refused_by_name_and_field():
    codec = StateCodec(Totals)
    with pytest.raises(BadState) as caught:
        codec.check(codec.encode(Totals({"a": "x"})))  # type: ignore[dict-item]
    assert caught.value.where.endswith("Totals")
    assert "`$.count[...]`" in caught.value.reason
    with pytest.raises(BadState):
        codec.encode(Totals({"a": object()}))  # type: ignore[dict-item]


def test_a_state_that_no_longer_fits_its_class_is_told_as_such():
    with pytest.raises(BadRecord, match="Totals"):
        StateCodec(Totals).decode(msgspec.msgpack.encode({"count": 3}))


@dataclass
class Plain:
    x: int


def test_dataclasses_travel_too():
    class Holder(Message):
        plain: Plain

    codec = RunCodec(Holder)
    assert codec.decode_run(codec.encode_run([Holder(Plain(1))])) == [Holder(Plain(1))]
    assert not codec.late
