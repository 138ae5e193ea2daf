"""What a handler sends is given to what takes its class; a packer takes it whole or not at all."""

from __future__ import annotations

import gc
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bus import Kind, PySender
from tests.bus.implementations import needs_c

SENDERS: dict[str, Any] = {"python": PySender}
try:
    from bus import _send
except ImportError:
    pass
else:
    SENDERS["c"] = _send.Sender

each = pytest.mark.parametrize("name", ["python", pytest.param("c", marks=needs_c)])
ANY = int(Kind.NONE | Kind.BOOL | Kind.INT | Kind.FLOAT | Kind.TEXT | Kind.BYTES)


class Pair(msgspec.Struct, array_like=True, frozen=True):
    left: Any
    right: Any


class Other(msgspec.Struct, array_like=True, frozen=True):
    left: Any
    right: Any


def made(kinds: int = ANY, limit: int = 1000, largest: int = 1000, refused: Any = None, members: Any = None) -> Any:
    fields = ((Pair.left, kinds, members), (Pair.right, kinds, members))
    return _send.Packer(Pair, b"\x92", fields, limit, largest, refused)


def begun(**options: Any) -> tuple[Any, list[Any]]:
    pieces: list[Any] = []
    packer = made(**options)
    packer.begin(pieces)
    return packer, pieces


def read(pieces: list[Any]) -> list[list[Any]]:
    bodies = [msgspec.msgpack.decode(body) for body in pieces[1::2]]
    assert [len(body) for body in bodies] == pieces[::2]
    return bodies


# ------------------------------------------------------------------------------------------------ Sender
@each
def test_a_message_goes_to_what_takes_its_class_at_that_moment(name: str) -> None:
    seen: list[Any] = []
    puts: dict[type, Any] = {}
    send = SENDERS[name](puts, lambda message: seen.append(("missing", message))).send
    send(1)
    puts[int] = lambda message: seen.append(("first", message))
    send(2)
    puts[int] = seen.append
    send(3)
    send(True)  # its class, not a base of it
    assert seen == [("missing", 1), ("first", 2), 3, ("missing", True)]


@each
def test_what_takes_it_may_raise(name: str) -> None:
    def put(message: int) -> None:
        raise ValueError(message)

    send = SENDERS[name]({int: put}, put).send
    for message in (1, "text"):
        with pytest.raises(ValueError, match=str(message)):
            send(message)


class Owner:
    """Of what refers to it."""

    def __init__(self, make: Callable[[Callable[[Any], object]], Any]) -> None:
        self.owned = make(lambda message: self)


@each
def test_a_sender_in_a_cycle_is_collected(name: str) -> None:
    owner = Owner(lambda put: SENDERS[name]({int: put}, put).send)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------------------------------------ Packer
def packed(value: Any) -> bytes | None:
    packer, pieces = begun(limit=10**6, largest=10**6)
    taken = packer.put(Pair(value, value))
    packer.end()
    assert taken == bool(pieces)
    return pieces[1] if taken else None


@needs_c
def test_what_is_packed_is_what_msgspec_makes_of_it() -> None:
    values: list[Any] = [None, True, False, 0.0, -1.5, float("inf"), float("nan"), "\U0001f600", "é\0" * 100]
    sizes = [0, 1, 31, 32, 255, 256, 65_535, 65_536]
    values += [piece * size for piece in ("x", b"x") for size in sizes]
    for value in values:
        assert packed(value) == msgspec.msgpack.encode([Pair(value, value)])


@needs_c
def test_numbers_are_packed_as_far_as_they_can_be() -> None:
    for number in {sign * 2**bits + more for bits in range(66) for sign in (1, -1) for more in (-1, 0, 1)}:
        fits = -(2**63) <= number < 2**64
        assert packed(number) == (msgspec.msgpack.encode([Pair(number, number)]) if fits else None)


@needs_c
@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_a_piece_is_an_array_of_any_length(count: int) -> None:
    packer, pieces = begun(limit=10**7)
    message = Pair(1, None)
    for _ in range(count):
        packer.put(message)
    assert packer.count == count
    packer.end()
    assert pieces == [count, msgspec.msgpack.encode([message] * count)]


class Text(str):
    __slots__ = ()


@needs_c
@pytest.mark.parametrize(
    "value", [Text("a"), "\ud800", [1], (1,), {}, bytearray(b"a"), memoryview(b"a"), object(), 2**64]
)
@pytest.mark.parametrize("place", ["left", "right"])
def test_what_is_refused_leaves_nothing_behind(value: Any, place: str) -> None:
    packer, pieces = begun()
    good, bad = Pair("good", 1), Pair(**{"left": "bad", "right": "bad", place: value})
    assert [packer.put(one) for one in (good, bad, good)] == [True, False, True]
    packer.end()
    assert (packer.count, read(pieces)) == (2, [[["good", 1]] * 2])


@needs_c
def test_only_what_a_field_may_be_is_taken() -> None:
    values = {Kind.NONE: None, Kind.BOOL: True, Kind.INT: 1, Kind.FLOAT: 1.0, Kind.TEXT: "a", Kind.BYTES: b"a"}
    for kind in Kind:
        packer, _ = begun(kinds=int(kind))
        taken = {other for other, value in values.items() if packer.put(Pair(value, value))}
        assert taken == {kind}


@needs_c
def test_members_are_known_by_their_address() -> None:
    members = {id(Kind.INT): b"\xa3int"}
    packer, pieces = begun(kinds=0, members=members)
    assert [packer.put(Pair(one, one)) for one in (Kind.INT, Kind.TEXT, 4)] == [True, False, False]
    packer.end()
    assert read(pieces) == [[["int", "int"]]]


@needs_c
def test_only_messages_of_its_class_are_taken() -> None:
    packer, _ = begun()
    assert not packer.put(Other(1, 2))
    assert not packer.put(None)


@needs_c
def test_a_field_that_was_deleted_is_refused() -> None:
    class Open(msgspec.Struct, array_like=True):
        left: Any

    packer = _send.Packer(Open, b"\x91", ((Open.left, ANY, None),), 1000, 1000, print)
    packer.begin([])
    message = Open(1)
    assert packer.put(message)
    del message.left
    assert not packer.put(message)


@needs_c
def test_pieces_hold_no_more_than_the_limit_but_for_a_message_that_is_longer_alone() -> None:
    packer, pieces = begun(limit=100)
    sizes = [10, 10, 30, 200, 10, 40, 40, 40, 90, 1]
    for size in sizes:
        assert packer.put(Pair("x" * size, None))
    packer.end()
    bodies = read(pieces)
    assert [len(one[0]) for body in bodies for one in body] == sizes
    assert all(len(data) <= 100 or count == 1 for count, data in zip(pieces[::2], pieces[1::2], strict=True))
    assert len(bodies) < len(sizes)


@needs_c
def test_a_message_over_the_largest_is_refused() -> None:
    packer, pieces = begun(limit=10, largest=50)
    size = len(msgspec.msgpack.encode(Pair("", "")))
    assert packer.put(Pair("x" * 25, "x" * (50 - size - 25)))
    for parts in (("x" * 25, "x" * (51 - size - 25)), ("x" * 51, ""), ("", b"x" * 10**6)):
        assert not packer.put(Pair(*parts))
    packer.end()
    assert [len(body) for body in read(pieces)] == [1]


@needs_c
def test_more_may_come_after_the_end_and_nothing_without_a_run() -> None:
    packer, pieces = begun()
    packer.put(Pair(1, 1))
    packer.end()
    packer.end()
    packer.put(Pair(2, 2))
    packer.end()
    assert (packer.count, read(pieces)) == (2, [[[1, 1]], [[2, 2]]])
    packer.put(Pair(3, 3))
    packer.clear()
    packer.end()
    assert (packer.count, len(pieces)) == (0, 4)
    with pytest.raises(ValueError, match="no run"):
        packer.put(Pair(1, 1))
    again: list[Any] = []
    packer.begin(again)
    packer.put(Pair(4, 4))
    packer.end()
    assert read(again) == [[[4, 4]]]


@needs_c
def test_a_sender_gives_what_its_packer_refuses_to_who_takes_that() -> None:
    refused: list[Any] = []
    puts: dict[type, Any] = {}

    def keep(message: Any) -> None:
        refused.append(message)
        puts[Pair] = refused.append

    packer, pieces = begun(refused=keep)
    puts[Pair] = packer
    send = _send.Sender(puts, refused.append).send
    send(Pair(1, 1))
    send(Pair([], 1))
    send(Pair(2, 2))
    packer.end()
    assert read(pieces) == [[[1, 1]]]
    assert refused == [Pair([], 1), Pair(2, 2)]
    packer.clear()
    packer.begin(pieces := [])
    puts[Pair] = packer
    send(Pair(3, 3))
    packer.clear()
    puts[Pair] = refused.append
    send(Pair(4, 4))
    assert refused[2:] == [Pair(4, 4)]


@needs_c
def test_what_refuses_may_raise_and_the_run_goes_on() -> None:
    def refuse(message: Any) -> None:
        raise ValueError("no")

    packer, pieces = begun(refused=refuse)
    send = _send.Sender({Pair: packer}, refuse).send
    send(Pair(1, 1))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            send(Pair([], 1))
    send(Pair(2, 2))
    packer.end()
    assert read(pieces) == [[[1, 1], [2, 2]]]


@needs_c
def test_nothing_of_a_message_is_kept() -> None:
    packer, pieces = begun()
    values = ["text of a message", b"bytes of a message", 2**70, 3.25]
    before = [sys.getrefcount(value) for value in values]
    for value in values:
        packer.put(Pair(value, value))
    del value
    packer.end()
    assert [sys.getrefcount(value) for value in values] == before
    assert sys.getrefcount(pieces) == 3


@needs_c
def test_a_packer_in_a_cycle_is_collected() -> None:
    owner = Owner(lambda put: begun(refused=put)[0])
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


@needs_c
@pytest.mark.parametrize(
    "fields",
    [((1, 2),), ((Pair.left, ANY, []),), ((Pair.left, "x", None),), ((struct, ANY, None),), (None,), [Pair.left]],
)
def test_it_is_made_of_descriptors_only(fields: Any) -> None:
    with pytest.raises(TypeError):
        _send.Packer(Pair, b"", fields, 1, 1, print)


@needs_c
def test_both_name_kinds_alike() -> None:
    assert {str(kind.name): kind.value for kind in Kind} == {
        name: getattr(_send, name) for name in ("NONE", "BOOL", "INT", "FLOAT", "TEXT", "BYTES")
    }
