"""Fixed messages without a system: layouts, rows, runs of rows, and who keeps a view of them."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import FixedMessage, Handler, Message, Rows, Size, Topology, TopologyError, handle
from actors.errors import BadMessage, BadRecord, CodecRefused, LayoutMismatch
from actors.fixed import f4, f8, i1, i2, i4, i8, layout_of, layout_problems, u1, u2, u4, u8
from actors.fixed_runs import FixedInlet, FixedRuns, elements, is_rows
from actors.handler import describe
from actors.layout import TAG, Layout, parse, place
from actors.sealed import unseal
from actors.views import Views


class Tick(FixedMessage):
    symbol: Annotated[bytes, Size(6)]
    live: bool
    price: f8
    size: u4
    levels: Annotated[tuple[f4, ...], Size(3)]
    pair: tuple[i2, i2]
    names: Annotated[tuple[Annotated[bytes, Size(3)], ...], Size(2)]


class Wide(FixedMessage):
    a1: u1
    a2: u2
    a4: u4
    a8: u8
    b1: i1
    b2: i2
    b4: i4
    b8: i8


TICK = Tick(b"RNGL", True, 1.5, 7, (1.0, 2.0, 3.0), (-1, 2), (b"x", b"yz"))

KINDS = st.sampled_from(["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", "S1", "S7", "S16"])
DECLARED = st.lists(st.tuples(KINDS, st.none() | st.integers(1, 5)), min_size=1, max_size=12)


def values(kind: str) -> st.SearchStrategy[Any]:
    bits = 8 * int(kind[1:]) if kind[0] in "ui" else 0
    match kind[0]:
        case "b":
            return st.booleans()
        case "u":
            return st.integers(0, 2**bits - 1)
        case "i":
            return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        case "f":
            return st.floats(width=32 if kind == "f4" else 64, allow_nan=False)
    return st.binary(max_size=int(kind[1:])).filter(lambda value: not value.endswith(b"\0"))


def rows_of(layout: Layout) -> st.SearchStrategy[list[Any]]:
    return st.tuples(
        *(
            values(one.kind) if one.count is None else st.tuples(*[values(one.kind)] * one.count)
            for one in layout.fields
        )
    ).map(list)


def laid_out(declared: list[tuple[str, int | None]]) -> Layout:
    return place((f"f{number}", *one) for number, one in enumerate(declared))


def numpy_type(layout: Layout) -> np.dtype[Any]:
    return np.dtype(
        {
            "names": [one.name for one in layout.fields],
            "formats": [one.format for one in layout.fields],
            "offsets": [one.offset for one in layout.fields],
            "itemsize": layout.size,
        }
    )


# ------------------------------------------------------------------------------------------------ layouts
@given(DECLARED)
def test_fields_do_not_overlap_are_aligned_and_rows_are_words(declared: list[tuple[str, int | None]]) -> None:
    layout = laid_out(declared)
    end = 0
    for one in layout.fields:
        assert one.offset >= end
        assert one.kind[0] == "S" or one.offset % one.item == 0
        end = one.end
    assert layout.size % 8 == 0
    assert end <= layout.size < end + 8
    assert numpy_type(layout).itemsize == layout.size
    assert parse(layout.text) == layout


@given(DECLARED.flatmap(lambda declared: st.tuples(st.just(declared), rows_of(laid_out(declared)))))
def test_a_row_says_the_same_to_numpy_and_without_it(given_: tuple[list[tuple[str, int | None]], list[Any]]) -> None:
    declared, row = given_
    layout = laid_out(declared)
    packed = layout.pack(row)
    assert list(layout.unpack(packed).values()) == row
    record = np.frombuffer(packed, numpy_type(layout))[0]
    for one, value in zip(layout.fields, row, strict=True):
        found = record[one.name]
        assert (found == value) if one.count is None else (found.tolist() == list(value))


def test_a_layout_is_told_as_text_and_every_difference_is_another_fingerprint() -> None:
    layout = layout_of(Tick)
    assert layout.text == (
        "{symbol S6 @0, live bool @6, price f8 @8, size u4 @16, levels f4[3] @20, pair i2[2] @32, names S3[2] @36;"
        " 48 bytes}"
    )
    assert layout.fingerprint[0] == TAG
    one: tuple[str, int | None] = ("u4", None)
    differing: list[list[tuple[str, int | None]]] = [
        [one],
        [("i4", None)],
        [("u4", 1)],
        [("u2", 2)],
        [one, one],
        [("S4", None)],
    ]
    others = [laid_out(declared) for declared in differing]
    renamed = place([("other", "u4", None)])
    assert len({one.fingerprint for one in [*others, renamed, layout]}) == len(others) + 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{; 0 bytes}",
        "{a f8 @0; 16 bytes}",
        "{a f8 @8; 16 bytes}",
        "{a f9 @0; 16 bytes}",
        "{a S0 @0; 8 bytes}",
    ],
)
def test_what_is_no_layout_is_not_read_as_one(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        (int, "an int has no size: declare one of u1"),
        (float, "a float has no size: declare f4 or f8"),
        (bytes, "bytes has no size"),
        (str, "str has no fixed layout"),
        (Annotated[bytes, Size(0)], "Size(0) is not a number of at least 1"),
        (Annotated[bytes, Size(True)], "Size(True) is not"),
        (tuple[f8, ...], "a tuple has no size"),
        (tuple[f8, u4], "items of one kind"),
        (Annotated[tuple[tuple[f8, f8], ...], Size(2)], "one dimension"),
        (Annotated[tuple[f8, f8], Size(3)], "Size(count=3) of a tuple with 2 items"),
        (f8 | None, "has no fixed layout"),
    ],
)
def test_a_field_without_a_layout_is_told(type_: Any, reason: str) -> None:
    bad = type("Bad", (FixedMessage,), {"__annotations__": {"it": type_}, "__module__": __name__})
    (problem,) = layout_problems(bad)
    assert problem.startswith("it: ")
    assert reason in problem


def test_a_row_has_a_field_and_no_megabytes() -> None:
    class Empty(FixedMessage): ...

    class Huge(FixedMessage):
        it: Annotated[bytes, Size(1 << 17)]

    assert layout_problems(Empty) == ["none is declared: a row needs at least one"]
    assert layout_problems(Huge) == ["it: ends at 131072 bytes, and a row has at most 65536"]


@pytest.mark.parametrize("kind", [u1, u2, u4, u8, i1, i2, i4, i8])
def test_a_number_that_does_not_fit_is_the_senders_fault(kind: Any) -> None:
    layout = layout_of(type("One", (FixedMessage,), {"__annotations__": {"it": kind}, "__module__": __name__}))
    bits = 8 * layout.fields[0].item
    least, most = (0, 2**bits - 1) if layout.fields[0].kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for value in (least, most):
        assert layout.unpack(layout.pack([value])) == {"it": value}
    for value in (least - 1, most + 1):
        with pytest.raises(Exception, match="it") as raised:
            layout.pack([value])
        assert "does not fit" in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("symbol", b"1234567", "it has 7 bytes, and there is room for 6"),
        ("symbol", b"a\0", "it ends with a zero byte"),
        ("symbol", "a", "expected bytes, got str"),
        ("live", 1, "expected bool, got int"),
        ("price", "1", "expected float, got str"),
        ("size", 1.0, "expected int, got float"),
        ("size", True, "expected int, got bool"),
        ("levels", (1.0,), "expected a tuple of 3 items"),
        ("pair", (1, 1 << 15), "it does not fit i2"),
    ],
)
def test_a_message_that_does_not_fit_its_row_is_refused(field: str, value: object, reason: str) -> None:
    fields = {name: getattr(TICK, name) for name in Tick.__struct_fields__} | {field: value}
    with pytest.raises(BadMessage) as raised:
        FixedRuns(Tick).encode_run([TICK, Tick(**fields)])
    assert (raised.value.index, raised.value.field) == (1, field)
    assert reason in raised.value.reason


# ------------------------------------------------------------------------------------------------ runs
def test_a_run_is_split_into_elements_and_joined_from_them() -> None:
    runs = FixedRuns(Tick)
    many = [Tick(b"A", False, float(n), n, (0.0,) * 3, (0, 0), (b"", b"")) for n in range(5)]
    body = runs.encode_run(many)
    assert is_rows(body)
    assert len(body) == 8 + 5 * 48
    parts = list(elements(body, 5))
    assert parts == [runs.encode_one(one) for one in many]
    assert runs.join(parts) == body
    assert [runs.decode_one(part) for part in parts] == many == runs.decode_run(body)
    assert not is_rows(b"")
    assert not is_rows(b"\x91\xc7")
    with pytest.raises(BadRecord):
        list(elements(body[:-1], 5))


def inlet(views: Views | None = None) -> FixedInlet:
    return FixedInlet(Tick, Views() if views is None else views)


def test_the_receiver_sees_the_bytes_themselves_and_cannot_write() -> None:
    body = bytearray(FixedRuns(Tick).encode_run([TICK, TICK]))
    rows = inlet().decode_run(memoryview(body))
    assert rows.dtype == Tick.dtype
    body[8 + 8 : 8 + 16] = struct.pack("<d", 2.5)
    assert rows["price"].tolist() == [2.5, 1.5]
    with pytest.raises(ValueError, match="read-only"):
        rows["price"] = 0.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        rows.flags.writeable = True


def test_one_row_has_its_fields_as_attributes_whatever_they_are_called() -> None:
    tick: Any
    (tick,) = inlet().each(inlet().decode_run(FixedRuns(Tick).encode_run([TICK])))
    assert (tick.symbol, tick.size, tick.pair.tolist(), tick["price"]) == (b"RNGL", 7, [-1, 2], 1.5)
    assert np.void in type(tick).__mro__
    with pytest.raises(ValueError, match="read-only"):
        tick["price"] = 0.0
    assert tick.copy().size == 7
    assert "RNGL" in repr(tick)


def test_another_layout_is_refused_and_named() -> None:
    with pytest.raises(LayoutMismatch, match="symbol S6 @0") as raised:
        inlet().decode_run(FixedRuns(Wide).encode_run([Wide(1, 2, 3, 4, 5, 6, 7, 8)]))
    assert layout_of(Wide).fingerprint.hex() in str(raised.value)
    with pytest.raises(LayoutMismatch):
        inlet().decode_one(FixedRuns(Wide).encode_one(Wide(1, 2, 3, 4, 5, 6, 7, 8)))
    with pytest.raises(CodecRefused):
        inlet().decode_one(b"\x91\x01")


@given(st.binary(max_size=200))
def test_what_is_no_run_of_rows_is_refused(body: bytes) -> None:
    for data in (body, layout_of(Tick).fingerprint + body):
        try:
            rows = inlet().decode_run(data)
        except (BadRecord, CodecRefused, LayoutMismatch):
            continue
        assert len(data) == 8 + len(rows) * 48


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 300), st.integers(0, 255), st.integers(-60, 60))
def test_a_damaged_run_is_refused_or_is_rows_of_the_memory_that_it_was_given(
    rows: int, count: int, at: int, byte: int, longer: int
) -> None:
    """In the middle of other memory, as in a ring: a changed byte, another length, another number than it says."""
    body = bytearray(FixedRuns(Tick).encode_run([TICK] * rows))
    body[at % len(body)] = byte
    size = max(0, len(body) + longer)
    around = memoryview(bytes(64) + bytes(body) + bytes(64))
    view = around[64 : 64 + size]
    try:
        found = inlet().decode_run(view)
    except (BadRecord, CodecRefused, LayoutMismatch):
        found = None
    if found is not None and is_rows(view):
        assert found.tobytes() == bytes(view[8:])
        assert np.shares_memory(found, np.frombuffer(around, "u1"))
        assert not np.shares_memory(found, np.frombuffer(around[64 + size :], "u1"))
    if view and is_rows(view):
        try:
            parts = list(elements(view, count))
        except BadRecord:
            return
        assert len(parts) == count
        for part in parts:
            try:
                assert len(inlet().decode_one(part)) == 1
            except (BadRecord, CodecRefused, LayoutMismatch):
                continue
            assert len(view) == 8 + 48 * count


def test_a_dead_letter_comes_back_as_a_run_of_one() -> None:
    element = FixedRuns(Tick).encode_one(TICK)
    assert unseal(element).codec == "fixed"
    assert inlet().decode_run(b"\x91" + element)["size"].tolist() == [7]


# ------------------------------------------------------------------------------------------------ views
KEEPERS: dict[str, Callable[[Any], object]] = {
    "the rows": lambda rows: rows,
    "a slice": lambda rows: rows[1:],
    "a slice of a slice": lambda rows: rows[1:][1:],
    "a column": lambda rows: rows["price"],
    "a column of a slice": lambda rows: rows[1:]["price"],
    "an array in a column": lambda rows: rows["levels"][0],
    "a record": lambda rows: rows[0],
    "another type": lambda rows: rows.view("u1"),
    "a memoryview": lambda rows: memoryview(rows["price"]),
    "a generator": lambda rows: (row for row in rows),
    "a closure": lambda rows: lambda: rows["price"],
    "an iterator": iter,
    "a matrix": lambda rows: rows.view("u1").reshape(len(rows), -1).T,
}
COPIES: dict[str, Callable[[Any], object]] = {
    "a copy": lambda rows: rows.copy(),
    "a copy of a column": lambda rows: rows["price"].copy(),
    "what a mask takes": lambda rows: rows[rows["size"] > 0],
    "a number": lambda rows: rows["price"][0],
    "a list": lambda rows: rows["price"].tolist(),
    "bytes": lambda rows: rows.tobytes(),
    "a copy of a record": lambda rows: rows[0].copy(),
}


@pytest.mark.parametrize("keep", [*KEEPERS, *COPIES])
def test_whoever_keeps_a_view_is_noticed_and_who_keeps_a_copy_is_not(keep: str) -> None:
    views = Views()
    body = FixedRuns(Tick).encode_run([TICK] * 3)
    rows = inlet(views).decode_run(np.frombuffer(body, "u1").data)  # any memory but bytes is taken for shared
    kept = (KEEPERS | COPIES)[keep](rows)
    del rows
    assert views
    taken = views.take_back()
    assert bool(taken) is (keep in KEEPERS)
    assert bool(views.gone()) is (keep in KEEPERS)
    del kept
    assert not views.gone()
    assert not views.lent


def test_neither_a_cycle_of_garbage_nor_a_raised_exception_counts_as_keeping() -> None:
    views = Views()
    body = FixedRuns(Tick).encode_run([TICK] * 3)

    def fail() -> None:
        rows = inlet(views).decode_run(body)
        cycle: list[Any] = [rows]
        cycle.append(cycle)
        raise ValueError(f"not {rows['size'][0]}")

    try:
        fail()
    except ValueError:
        assert not views.take_back()


# ------------------------------------------------------------------------------------------------ declarations
class Sink(Handler):
    @handle(batch=True)
    def on_ticks(self, ticks: Rows[Tick]) -> None: ...


class Feed(Handler):
    def on_loop(self) -> float:
        with self.reserve(Tick, 3) as rows:
            rows["price"] = 1.0
        return math.inf


def test_a_reserve_is_a_send_that_needs_a_route() -> None:
    assert describe(Feed).sends == (Tick,)
    app = Topology("t")
    app.worker("w", feed=Feed)
    with pytest.raises(TopologyError, match="handler 'feed' sends Tick, which is routed nowhere"):
        app.compile()


def problems(handler: type[Handler], type_: type[Message] = Tick, **options: Any) -> list[str]:
    app = Topology("t", **options)
    app.worker("w", sink=handler)
    app.external("sink", type_)
    try:
        app.compile()
    except TopologyError as error:
        return [str(one) for one in error.problems]
    return []


def handling(annotation: object, batch: bool) -> type[Handler]:
    def on_it(self, it): ...

    on_it.__annotations__["it"] = annotation
    return type("Wrong", (Handler,), {"on_it": handle(batch=batch)(on_it)})


class Plain(Message):
    n: int


def test_what_takes_rows_is_declared_so() -> None:
    assert problems(Sink) == []
    assert problems(handling(Tick, False)) == []
    assert describe(handling(Rows[Tick | Wide], True)).problems == ()
    assert "put @handle(batch=True) above it" in problems(handling(Rows[Tick], False))[0]
    for wrong in (list[Tick], Rows.__class_getitem__(Plain)):
        assert "declare Rows of fixed messages and lists of others" in problems(handling(wrong, True))[0]
    assert "takes FixedMessage itself" in problems(handling(FixedMessage, False))[0]


def test_a_row_over_the_size_limit_is_told_at_the_start() -> None:
    assert "has rows of 48 bytes, over max_message_bytes=40" in problems(Sink, max_message_bytes=40)[0]


def test_importing_actors_does_not_import_numpy_and_without_it_the_extra_is_named() -> None:
    code = """
import sys
import actors, actors.fixed, actors.worker, actors.system
assert "numpy" not in sys.modules
sys.modules["numpy"] = None
from actors import *
from actors.fixed import f8
class Tick(FixedMessage):
    price: f8
class Sink(Handler):
    @handle(batch=True)
    def on_ticks(self, ticks: Rows[Tick]): ...
app = Topology("t")
app.worker("w", sink=Sink)
app.external("sink", Tick)
try:
    app.compile()
except TopologyError as error:
    print(error)
try:
    Tick.dtype
except MissingNumPy as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.count("fixed messages need NumPy, an extra: pip install 'ringleader[numpy]'") == 2
