"""What an unpacker is for, and that a receiver gets the same messages with it and without."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec
import pytest

from actors.codec import RunCodec
from actors.codecs import RAW
from actors.errors import BadRecord, CodecRefused
from actors.message import Message
from actors.sealed import head
from actors.unpacking import LEAST, PlainInlet, unpacking
from bus import RING_IMPLEMENTATION


class Trade(Message):
    symbol: str
    price: float
    size: int
    note: str | None = None


class Tagged(Trade, tag=300):
    data: bytes | None = None


class Side(enum.Enum):
    BUY = "buy"


class Sided(Message):
    side: Side


class Bounded(Message):
    size: Annotated[int, msgspec.Meta(ge=0)]


class Nested(Message):
    trades: list[int]


class Checked(Message):
    size: int

    def __post_init__(self) -> None:
        raise AssertionError


class Collected(Message, gc=True):
    size: int


def trades(count: int = 200) -> list[Trade]:
    return [Trade(f"S{n % 7}", n if n % 3 else n / 4, n, None if n % 2 else "é") for n in range(count)]


@pytest.mark.parametrize("cls", [Sided, Bounded, Nested, Checked, Collected])
def test_what_is_not_plain_has_no_unpacker(cls: Any) -> None:
    assert unpacking(cls) is None


@pytest.mark.skipif(RING_IMPLEMENTATION != "c", reason="only the C ring has one")
def test_a_receiver_gets_what_was_sent() -> None:
    for cls, messages in ((Trade, trades()), (Tagged, [Tagged("a", 1.0, n, data=b"x" * n) for n in range(200)])):
        body = RunCodec(cls).encode_run(messages)
        run = PlainInlet(cls).decode_run(body)
        assert not isinstance(run, list), "it makes them one by one"
        assert run[:] == messages == RunCodec(cls).decode_run(body)
        assert PlainInlet(cls).decode_run(memoryview(body))[150:] == messages[150:]


def test_a_class_that_is_not_plain_is_read_as_ever() -> None:
    messages = [Nested([n]) for n in range(LEAST)]
    assert PlainInlet(Nested).decode_run(RunCodec(Nested).encode_run(messages)) == messages


def test_what_comes_alone_makes_nothing_ready() -> None:
    inlet = PlainInlet(Trade)
    assert inlet.decode_run(RunCodec(Trade).encode_run(trades(1))) == trades(1)
    assert "_unpacker" not in vars(inlet)


class Older(Message):
    symbol: str
    price: float
    size: int


def test_a_run_of_an_older_class_is_read_with_the_defaults_of_the_new_one() -> None:
    body = RunCodec(Older).encode_run([Older("a", 1.0, n) for n in range(300)])
    assert PlainInlet(Trade).decode_run(body) == [Trade("a", 1.0, n) for n in range(300)]


def test_one_message_that_is_wrong_makes_a_bad_record_of_the_run() -> None:
    for place in (0, 100, 199):
        messages = trades()
        messages[place] = Trade("a", 1.0, "1")  # type: ignore[arg-type]
        with pytest.raises(BadRecord, match="Expected `int`, got `str`"):
            PlainInlet(Trade).decode_run(RunCodec(Trade).encode_run(messages))


def test_what_another_codec_has_made_is_refused_by_its_name() -> None:
    body = RunCodec.join([head(RAW.name.encode(), LEAST) + bytes(LEAST)])
    with pytest.raises(CodecRefused, match=RAW.name):
        PlainInlet(Trade).decode_run(body)
