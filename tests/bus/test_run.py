"""Messages are made one at a time, as msgspec makes them, and nothing is taken for a run that is none."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import Kind
from tests.bus.implementations import needs_c
from tests.bus.test_progress import IMPLEMENTATIONS, SEQ, SINCE, cells

try:
    from bus import _progress
except ImportError:
    pass

pytestmark = needs_c


class Tick(msgspec.Struct, array_like=True, frozen=True, gc=False):
    symbol: str
    price: float
    size: int


class Mixed(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="mixed"):
    first: str | int | None
    second: bytes | bool
    third: int | float | None = 1


class Derived(Tick, frozen=True, gc=False):
    more: bytes
    price: int | None  # type: ignore[assignment]


class Empty(msgspec.Struct, array_like=True, frozen=True, gc=False):
    pass


class Small(msgspec.Struct, array_like=True, frozen=True, gc=False):
    number: int


class Hashed(msgspec.Struct, array_like=True, frozen=True, gc=False, cache_hash=True):
    number: int


class Tracked(msgspec.Struct, array_like=True, frozen=True):
    number: int


KINDS: dict[type, tuple[bytes, dict[str, int]]] = {
    Tick: (b"\x93", {"symbol": Kind.TEXT, "price": Kind.FLOAT, "size": Kind.INT}),
    Mixed: (
        b"\x94\xa5mixed",
        {
            "first": Kind.TEXT | Kind.INT | Kind.NONE,
            "second": Kind.BYTES | Kind.BOOL,
            "third": Kind.INT | Kind.FLOAT | Kind.NONE,
        },
    ),
    Derived: (
        b"\x94",
        {"symbol": Kind.TEXT, "price": Kind.INT | Kind.NONE, "size": Kind.INT, "more": Kind.BYTES},
    ),
    Empty: (b"\x90", {}),
    Small: (b"\x91", {"number": Kind.INT}),
    Hashed: (b"\x91", {"number": Kind.INT}),
}


def unpacker(cls: type) -> Any:
    prefix, kinds = KINDS[cls]
    return _progress.Unpacker(cls, prefix, tuple((getattr(cls, name), int(kind)) for name, kind in kinds.items()))


UNPACKERS = {cls: unpacker(cls) for cls in KINDS} if "c" in IMPLEMENTATIONS else {}
DECODE: dict[type, Any] = {cls: msgspec.msgpack.Decoder(list[cls]).decode for cls in KINDS}  # type: ignore[valid-type]
encode = msgspec.msgpack.encode

WIDE = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    [sign * 2**bits + more for bits in range(64) for sign in (1, -1) for more in (-1, 0, 1) if sign > 0 or bits < 63]
)
TEXT = st.text(max_size=40) | st.text("abÿ", max_size=18)
VALUES = {
    Tick: st.builds(Tick, TEXT, st.floats() | WIDE, WIDE),
    Mixed: st.builds(Mixed, TEXT | WIDE | st.none(), st.binary(max_size=300) | st.booleans(), WIDE | st.floats()),
    Derived: st.builds(Derived, symbol=TEXT, price=WIDE | st.none(), size=WIDE, more=st.binary(max_size=9)),
    Empty: st.builds(Empty),
    Small: st.builds(Small, WIDE),
    Hashed: st.builds(Hashed, WIDE),
}
RUNS = st.sampled_from(list(VALUES)).flatmap(lambda cls: st.tuples(st.just(cls), st.lists(VALUES[cls], max_size=20)))


def progress() -> Any:
    return IMPLEMENTATIONS["c"](cells(), SEQ, SINCE)


def one_by_one(run: Any) -> list[str]:
    """What each message was when its turn came."""
    return [repr(message) for message in progress().begin(run, 1, sys.maxsize, False)]


# ------------------------------------------------------------------------------------------------ the same as msgspec
@given(RUNS)
def test_a_run_is_the_messages_that_msgspec_decodes(made: tuple[Any, list[Any]]) -> None:
    cls, messages = made
    body = encode(messages)
    expected = [repr(one) for one in DECODE[cls](body)]  # by its text, as nan is not nan
    run = UNPACKERS[cls].unpack(body)
    assert len(run) == len(messages)
    assert [repr(one) for one in run[:]] == one_by_one(run) == expected
    kept = list(progress().begin(UNPACKERS[cls].unpack(memoryview(body)), 1, sys.maxsize, False))
    assert [repr(one) for one in kept] == expected, "what is kept stays what it was"


@given(RUNS, st.data())
def test_what_is_damaged_is_no_run_or_what_msgspec_finds_in_it(
    made: tuple[Any, list[Any]], data: st.DataObject
) -> None:
    cls, messages = made
    body = bytearray(encode(messages))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1)) if body else 0
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change" if body:
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 3))]
            case _:
                body[at:at] = data.draw(st.binary(min_size=1, max_size=3))
    run = UNPACKERS[cls].unpack(bytes(body))
    if run is not None:
        assert [repr(one) for one in run[:]] == one_by_one(run) == [repr(one) for one in DECODE[cls](bytes(body))]


@given(RUNS)
def test_a_run_that_is_cut_short_or_goes_on_is_none(made: tuple[Any, list[Any]]) -> None:
    cls, messages = made
    body = encode(messages)
    assert UNPACKERS[cls].unpack(body + b"\xc0") is None
    for size in range(len(body)):
        assert UNPACKERS[cls].unpack(memoryview(body)[:size]) is None


@pytest.mark.parametrize(
    "body",
    [
        b"\x91\x93\xa1a\xcb" + struct.pack(">d", 1) + b"\xc0",  # None is no int
        b"\x91\x93\xa1a\xcb" + struct.pack(">d", 1) + b"\xc3",  # nor is True
        b"\x91\x93\xa1a\xca" + struct.pack(">f", 1) + b"\x01",  # msgspec knows shorter floats
        b"\x91\x93\xc4\x01a\xcb" + struct.pack(">d", 1) + b"\x01",
        b"\x91\x93\xa2\xed\xa0\xcb" + struct.pack(">d", 1) + b"\x01",
        b"\x91\x93\xa1\xff\xcb" + struct.pack(">d", 1) + b"\x01",
        b"\x91\x92\xa1a\xcb" + struct.pack(">d", 1),
        b"\x91\xd4\x01\x01",
        b"\x81\x01\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x00",
        b"\xdd\x00\x00\x00",
        b"",
    ],
)
def test_what_is_not_plain_is_left_to_others(body: bytes) -> None:
    assert UNPACKERS[Tick].unpack(body) is None


def test_an_int_becomes_a_float_where_there_may_be_no_int() -> None:
    for number in (1, -1, 2**53 + 1, 2**64 - 1, -(2**63)):
        body = encode([Tick("a", number, 1), Tick("a", number, 2)])
        (price, _) = [one.price for one in UNPACKERS[Tick].unpack(body)[:]]
        assert type(price) is float
        assert price == DECODE[Tick](body)[0].price
    (kept,) = UNPACKERS[Mixed].unpack(encode([Mixed(1, True, 3)]))[:]
    assert (type(kept.third), kept.third) == (int, 3)


def test_a_message_is_a_message_in_every_way() -> None:
    (made,) = UNPACKERS[Derived].unpack(encode([Derived("a", None, 2, b"x")]))[:]
    expected = Derived("a", None, 2, b"x")
    assert type(made) is Derived
    assert (made, hash(made), repr(made)) == (expected, hash(expected), repr(expected))
    assert made.__reduce__() == expected.__reduce__()
    with pytest.raises(AttributeError):
        made.size = 1  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ texts that are known
def test_short_texts_are_told_apart_by_all_of_their_bytes() -> None:
    texts = ["".join(one) for size in range(4) for one in itertools.product("ab\0", repeat=size)]
    texts += [
        before + "x" * size + after for size in range(18) for before in ("", "a", "é") for after in ("", "b", "ü")
    ]
    texts += [f"{before}{n:06}{after}" for n in range(2000) for before, after in (("the same", ""), ("", "the same"))]
    texts += [letter * size for letter in map(chr, range(32, 127)) for size in range(17)]
    for order in (texts, texts[::-1], sorted(texts * 2, key=len)):
        assert [one.symbol for one in UNPACKERS[Tick].unpack(encode([Tick(one, 1.0, 1) for one in order]))[:]] == order


# ------------------------------------------------------------------------------------------------ one after the other
def test_a_message_that_is_kept_is_never_changed() -> None:
    run = UNPACKERS[Tick].unpack(encode([Tick("a", n / 2, n) for n in range(100)]))
    kept = [one for one in progress().begin(run, 1, sys.maxsize, False) if one.size % 3]
    assert [(one.price, one.size) for one in kept] == [(n / 2, n) for n in range(100) if n % 3]


def test_the_memory_of_one_that_is_not_kept_is_used_again() -> None:
    run = UNPACKERS[Tick].unpack(encode([Tick("a", 1.0, n) for n in range(100)]))
    assert len({id(one) for one in progress().begin(run, 1, sys.maxsize, False)}) == 2


def test_a_hash_that_is_remembered_is_that_of_the_message() -> None:
    run = UNPACKERS[Hashed].unpack(encode([Hashed(n) for n in range(10)]))
    hashes = [hash(one) for one in progress().begin(run, 1, sys.maxsize, False)]
    assert hashes == [hash(Hashed(n)) for n in range(10)]


def test_progress_is_told_of_a_run_as_of_a_list() -> None:
    block = cells()
    told = IMPLEMENTATIONS["c"](block, SEQ, SINCE)
    run = UNPACKERS[Small].unpack(encode([Small(n) for n in range(3)]))
    seen = [(one.number, block[SEQ], told.seq, told.done) for one in told.begin(run, 41, sys.maxsize, False)]
    assert seen == [(0, 41, 41, 0), (1, 42, 42, 1), (2, 43, 43, 2)]
    assert told.done == 3
    run = UNPACKERS[Small].unpack(encode([Small(n) for n in range(3)]))
    assert [one.number for one in told.begin(run, 1, 0, False)] == [0], "time is up"
    assert told.done == 1
    assert [one.number for one in run[1:]] == [1, 2], "the rest is for another time"
    with pytest.raises(TypeError):
        told.begin((1, 2), 1, 0, False)


def test_of_a_run_there_are_slices() -> None:
    messages = [Tick("a", math.pi, n) for n in range(20)]
    run = UNPACKERS[Tick].unpack(encode(messages))
    for part in (slice(None), slice(5, None), slice(-3, None), slice(2, 7), slice(7, 2), slice(30, 40)):
        assert run[part] == messages[part]
    with pytest.raises(TypeError):
        run[0]
    with pytest.raises(ValueError, match="one after the other"):
        run[::2]


def test_a_run_that_changes_meanwhile_is_an_error_and_nothing_else() -> None:
    body = bytearray(encode([Tick("abc", 1.0, 200)] * 3))
    for at in range(1, len(body)):
        for changed in (0x00, 0xC1, 0xDB, 0xFF):
            run = UNPACKERS[Tick].unpack(body)
            before, body[at] = body[at], changed
            try:
                for one in progress().begin(run, 1, sys.maxsize, False):
                    assert type(one.symbol) is str
            except (ValueError, UnicodeDecodeError):
                pass
            del run
            body[at] = before


def test_nothing_is_left_of_a_run() -> None:
    class Local(msgspec.Struct, array_like=True, frozen=True, gc=False):
        text: str
        number: int

    made = _progress.Unpacker(Local, b"\x92", ((Local.text, Kind.TEXT), (Local.number, Kind.INT)))
    body, wrong = encode([Local("a" * 30, 10**9 + n) for n in range(50)]), encode([Local("a", 1.5)] * 9)  # type: ignore[arg-type]
    references = sys.getrefcount(Local)

    def work() -> None:
        told = progress()
        for _ in told.begin(made.unpack(body), 1, sys.maxsize, False):
            pass
        list(told.begin(made.unpack(body), 1, sys.maxsize, False))
        assert next(told.begin(made.unpack(body), 1, sys.maxsize, False)).number == 10**9
        assert made.unpack(wrong) is None
        rest: Any = made.unpack(body)
        assert len(rest[7:]) == 43

    work()
    before = sys.getallocatedblocks()
    for _ in range(50):
        work()
    assert sys.getallocatedblocks() - before < 50
    assert sys.getrefcount(Local) == references


# ------------------------------------------------------------------------------------------------ what it is made with
def test_what_an_unpacker_cannot_be_for_is_refused() -> None:
    wrong: list[tuple[Any, ...]] = [
        (Tracked, b"\x91", ((Tracked.number, Kind.INT),)),
        (int, b"\x91", ()),
        (Small, b"\x91", ((Tick.size, Kind.INT),)),  # another class's
        (Small, b"\x91", ((Small.__repr__, Kind.INT),)),
        (Small, b"\x91", ((int.real, Kind.INT),)),
        (Small, b"\x91", (1,)),
        (Small, "\x91", ()),
    ]
    for given_ in wrong:
        with pytest.raises((TypeError, AttributeError)):
            _progress.Unpacker(*given_)
    with pytest.raises(TypeError):
        _progress.Run()
    with pytest.raises(TypeError):
        UNPACKERS[Tick].unpack("text")


def test_the_kinds_are_the_same() -> None:
    assert {str(kind.name): kind.value for kind in Kind} == {
        name: getattr(_progress, name) for name in ("NONE", "BOOL", "INT", "FLOAT", "TEXT", "BYTES")
    }
