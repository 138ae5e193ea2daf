"""Messages in parts: one behind the other, these are what the encoder makes of them; large buffers are not copied."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from actors import Message
from actors.beside import LEAST, parts_of
from actors.codec import RunCodec
from actors.errors import BadMessage, MessageTooLarge
from actors.tickets import Large


class Inner(Message):
    a: int
    b: bytes


class One(Message):
    body: bytes


class Many(Message):
    n: int
    first: bytes
    name: str | None
    second: memoryview
    inner: Inner
    third: bytearray
    more: dict[str, list[int]]


class Perhaps(Message):
    body: bytes | None
    n: int = 7


class Tagged(Message, tag=True):
    body: bytes


class Plain(Message):
    text: str


LARGE = bytes(range(256)) * (LEAST // 256)


@pytest.mark.parametrize(
    "message",
    [
        One(LARGE),
        One(LARGE * 40),
        Many(1, LARGE, "x", memoryview(LARGE), Inner(1, LARGE), bytearray(LARGE), {"a": [1, 2]}),
        Many(1, b"small", None, np.arange(LEAST).data, Inner(1, b""), bytearray(), {}),
        Many(1, b"", None, memoryview(b""), Inner(1, b""), bytearray(LARGE), {}),
        Perhaps(LARGE, -1),
    ],
)
def test_the_parts_are_the_encoding(message: Message) -> None:
    parts = parts_of(type(message))
    assert parts is not None
    made = parts(message)
    assert made is not None
    assert b"".join(made) == msgspec.msgpack.encode(message)
    assert sum(map(len, made)) == len(b"".join(made))


def test_large_buffers_are_not_copied() -> None:
    large = RunCodec(One).encode_alone(One(LARGE), 1000, 1 << 20)
    assert isinstance(large, Large)
    assert any(part is LARGE for part in large.parts)


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        (One, One(LARGE[1:])),
        (Perhaps, Perhaps(None)),
        (Many, Many(1, b"", None, np.arange(2 * LEAST).data[::2], Inner(1, b""), bytearray(), {})),
    ],
)
def test_what_has_no_large_buffer_that_is_whole_has_no_parts(type_: type[Message], message: Any) -> None:
    parts = parts_of(type_)
    assert parts is not None
    assert parts(message) is None


def test_what_is_encoded_in_another_way_has_no_parts() -> None:
    assert parts_of(Tagged) is None
    assert parts_of(Plain) is None


@pytest.mark.parametrize("wrong", [memoryview(LARGE), bytearray(LARGE)])
def test_another_buffer_than_the_declared_one_arrives_as_the_declared_one(wrong: Any) -> None:
    codec = RunCodec(One)
    assert codec.decode_one(codec.encode_alone(One(wrong), 1000, 1 << 20)) == One(LARGE)


@pytest.mark.parametrize(
    ("type_", "values"), [(One, [5]), (One, [["text"] * LEAST]), (Perhaps, [LARGE, "text"]), (Perhaps, [LARGE, None])]
)
def test_what_the_receiver_would_not_accept_is_a_bad_message(type_: type[Message], values: list[Any]) -> None:
    with pytest.raises(BadMessage):
        RunCodec(type_).encode_alone(type_(*values), 1000, 1 << 20)


def test_the_limit_is_that_of_the_whole() -> None:
    codec = RunCodec(One)
    size = len(msgspec.msgpack.encode(One(LARGE)))
    assert isinstance(codec.encode_alone(One(LARGE), size - 1, size), Large)
    assert isinstance(codec.encode_alone(One(LARGE), size, size), bytes)
    with pytest.raises(MessageTooLarge):
        codec.encode_alone(One(LARGE), size - 2, size - 1)
