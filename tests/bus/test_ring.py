"""The ring's contract, for both implementations and for pairs of them."""

from __future__ import annotations

import array
import itertools
import sys
from inspect import signature
from pickle import PickleBuffer
from typing import Any

import pytest

import bus.ring
from bus import Cell, LayoutError, PyRing, RecordTooLarge, RingCorrupt
from bus.layout import HEADER_SIZE, RECORD_HEADER, RingIdentity, framed
from bus.ring import MOST_RESERVED
from tests.bus.implementations import DOORBELLS, RINGS, each, needs_c, new_ring, pairs

ALL = 2**62


def ends(producer: str, consumer: str, capacity: int = 4096) -> tuple[Any, Any, bytearray]:
    buffer = new_ring(capacity)
    return RINGS[producer](buffer), RINGS[consumer](buffer), buffer


def cell_of(buffer: bytearray, cell: int) -> int:
    return int.from_bytes(buffer[cell * 8 : cell * 8 + 8], sys.byteorder)


def set_cell(buffer: bytearray, cell: int, value: int) -> None:
    buffer[cell * 8 : cell * 8 + 8] = value.to_bytes(8, sys.byteorder)


@pairs
def test_records_come_out_as_they_went_in(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    sent = [b"", b"a", b"12345678", bytes(range(256)), b"x" * out.max_record]
    assert [out.push(record) for record in sent] == [True] * len(sent)
    assert into.take_many(ALL, ALL) == sent
    assert into.take_many(ALL, ALL) == []


@pairs
def test_ten_thousand_records_wrap_around_many_times(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    sent = [bytes([n % 251]) * (n * 37 % 611) for n in range(10_000)]
    received: list[bytes] = []
    at = 0
    while len(received) < len(sent):
        at += out.push_many(sent[at : at + 7])
        taken = into.take_many(5, ALL)
        assert taken, f"stuck after {len(received)}"
        received += taken
        into.release()
    assert received == sent
    assert out.get(Cell.TAIL) > 100 * out.capacity


@pairs
def test_parts_become_one_record(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    numbers = array.array("I", [1, 2, 3])
    backing = bytearray(b"..view..")
    parts: list[Any] = [
        b"head",
        bytearray(b"body"),
        memoryview(backing)[2:6],
        numbers,
        b"",
        memoryview(b""),
        array.array("Q"),
    ]
    assert out.push(*parts)
    assert out.push()
    assert out.push(*[b"x"] * 20)
    assert into.take_many(ALL, ALL) == [b"headbodyview" + numbers.tobytes(), b"", b"x" * 20]


@each
def test_a_part_is_not_held_on_to(name: str) -> None:
    ring = RINGS[name](new_ring())
    growing = bytearray(b"record")
    ring.push(growing, b"x")
    ring.push_many([growing])
    growing.append(0)  # BufferError if the ring still exported it


@each
@pytest.mark.parametrize("method", ["push", "push_many"])
def test_what_is_not_bytes_is_refused_and_nothing_is_visible(name: str, method: str) -> None:
    ring = RINGS[name](new_ring())
    calls: dict[str, Any] = {
        "push": lambda bad: ring.push(b"good", bad),
        "push_many": lambda bad: ring.push_many([b"good", bad]),
    }
    for bad in ("text", 17, None, [b"nested"]):
        with pytest.raises(TypeError):
            calls[method](bad)
    with pytest.raises(BufferError):
        calls[method](memoryview(b"every second")[::2])
    assert ring.used() == 0
    with pytest.raises(TypeError):
        ring.push_many(17)


@pairs
def test_full_ring_takes_nothing_and_shows_nothing(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    record = b"r" * (512 - RECORD_HEADER)
    assert out.push_many([record] * 100) == 8
    assert out.used() == out.capacity
    assert out.push(b"") is False
    assert out.push_many([b""]) == 0
    assert out.reserve(0) is None
    assert len(into.take_many(ALL, ALL)) == 8
    assert out.push(b"") is False, "taken is not yet released"
    into.release()
    assert out.push(b"") is True


@pairs
def test_every_free_byte_can_be_used(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    record = b"r" * (512 - RECORD_HEADER)
    out.push_many([record] * 8)
    for _ in range(20):
        assert into.take_many(1, ALL) == [record]
        assert out.push(record) is False
        into.release()
        assert out.push(record) is True, "it fits exactly, once the head is looked at again"
        assert out.used() == out.capacity


@each
def test_push_many_takes_any_iterable_and_says_how_many(name: str) -> None:
    buffer = new_ring()
    ring = RINGS[name](buffer)
    assert ring.push_many(()) == ring.push_many(iter([])) == 0
    assert ring.push_many(iter([b"one", bytearray(b"two")])) == 2
    assert ring.push_many((b"three", memoryview(b"four"))) == 2
    assert RINGS[name](buffer).take_many(ALL, ALL) == [b"one", b"two", b"three", b"four"]


@each
def test_record_too_large_is_the_callers_fault_and_leaves_the_ring_as_it_was(name: str) -> None:
    ring = RINGS[name](new_ring())
    limit = ring.max_record
    assert limit == ring.capacity // 2 - RECORD_HEADER
    for call in (
        lambda: ring.push(b"x" * (limit + 1)),
        lambda: ring.push(b"x" * limit, b"y"),
        lambda: ring.push_many([b"fits", b"x" * (limit + 1)]),
        lambda: ring.reserve(limit + 1),
    ):
        with pytest.raises(RecordTooLarge) as caught:
            call()
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        assert ring.used() == 0
    assert ring.push(b"x" * limit)


@each
def test_the_largest_record_fits_into_an_empty_ring_at_every_index(name: str) -> None:
    buffer = new_ring()
    ring, other = RINGS[name](buffer), RINGS[name](buffer)
    for _ in range(2 * ring.capacity // 8):
        assert ring.push(b"L" * ring.max_record)
        assert [len(record) for record in other.take_many(ALL, ALL)] == [ring.max_record]
        other.release()
        assert ring.push(b"")
        assert other.take_many(ALL, ALL) == [b""]
        other.release()


@pairs
def test_reserved_room_is_written_in_place_and_visible_at_commit(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    view = out.reserve(5)
    view[:] = b"hello"
    assert into.take_many(ALL, ALL) == []
    out.commit()
    assert into.take_many(ALL, ALL) == [b"hello"]
    with pytest.raises(ValueError):
        view[0] = 1


@pairs
def test_reservations_stand_behind_each_other_and_become_visible_one_by_one(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    size = 1000
    assert out.push(b"?" * out.max_record)
    into.take_many(ALL, ALL)
    into.release()
    views = [out.reserve(size) for _ in range(3)]  # two before the end of the data, one at its beginning
    assert out.reserve(2 * size) is None
    for number, view in enumerate(views):
        view[:] = bytes([number]) * size
    assert into.take_many(ALL, ALL) == []
    for number in range(3):
        out.commit()
        assert into.take_many(ALL, ALL) == [bytes([number]) * size]


@pairs
def test_the_last_reservation_is_the_one_that_is_given_up(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    first, last = out.reserve(10), out.reserve(20)
    first[:] = b"0123456789"
    out.abandon()
    with pytest.raises(ValueError):
        last[0] = 0
    out.reserve(3)[:] = b"new"
    out.commit()
    out.commit()
    assert into.take_many(ALL, ALL) == [b"0123456789", b"new"]


@each
def test_so_many_reservations_and_no_more(name: str) -> None:
    ring = RINGS[name](new_ring())
    for _ in range(2):  # around the end of whatever they are kept in
        assert [ring.reserve(1) is None for _ in range(MOST_RESERVED + 2)] == [False] * MOST_RESERVED + [True, True]
        with pytest.raises(RecordTooLarge):
            ring.reserve(ring.max_record + 1)
        for _ in range(MOST_RESERVED // 2):
            ring.commit()
        for _ in range(MOST_RESERVED // 2):
            ring.abandon()
        with pytest.raises(RuntimeError, match="nothing is reserved"):
            ring.abandon()


@each
def test_nothing_is_pushed_past_a_reservation(name: str) -> None:
    buffer = new_ring()
    ring = RINGS[name](buffer)
    with pytest.raises(RuntimeError):
        ring.commit()
    with pytest.raises(RuntimeError):
        ring.abandon()
    with pytest.raises(ValueError):
        ring.reserve(-1)
    ring.reserve(7)
    ring.reserve(3)
    for call in (lambda: ring.push(b"x"), lambda: ring.push_many([b"x"])):
        with pytest.raises(RuntimeError, match="10 bytes are reserved"):
            call()
    ring.abandon()
    ring.abandon()
    assert ring.used() == 0
    assert ring.push(b"after")
    assert RINGS[name](buffer).take_many(ALL, ALL) == [b"after"]


@each
def test_an_exported_reservation_can_be_neither_committed_nor_closed(name: str) -> None:
    ring = RINGS[name](new_ring())
    held = PickleBuffer(ring.reserve(8))
    for call in (ring.commit, ring.abandon, ring.close):
        with pytest.raises(BufferError):
            call()
    assert ring.used() == 0
    ring.reserve(1)
    with pytest.raises(BufferError):
        ring.commit()
    ring.abandon()
    held.release()
    ring.commit()
    assert ring.used() == 16


@pairs
def test_take_many_keeps_its_bounds_but_always_takes_one(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer)
    out.push_many([b"12345678"] * 10)
    assert len(into.take_many(3, ALL)) == 3
    assert len(into.take_many(ALL, 23)) == 2
    assert len(into.take_many(ALL, 24)) == 3
    assert len(into.take_many(1, 0)) == 1
    assert into.take_many(0, ALL) == []
    assert into.take_many(-1, ALL) == []
    assert len(into.take_many(ALL, -5)) == 1
    assert into.take_many(ALL, ALL) == []


@pairs
def test_views_are_the_records_themselves_and_read_only(producer: str, consumer: str) -> None:
    out, into, buffer = ends(producer, consumer)
    sent = [b"", b"a", b"12345678", b"x" * 1000]
    assert out.push_many(sent) == 4
    views = into.take_views(ALL, ALL)
    assert [bytes(view) for view in views] == sent
    assert all(view.readonly for view in views)
    at = bytes(buffer).index(b"12345678")
    buffer[at] = ord("9")
    assert bytes(views[2]) == b"92345678"
    assert into.take_views(ALL, ALL) == into.take_many(ALL, ALL) == []
    into.rewind()
    assert [bytes(record) for record in into.take_many(ALL, ALL)] == [*sent[:2], b"92345678", sent[3]]


@pairs
def test_views_keep_the_bounds_of_take_many_and_come_at_most_256_at_a_time(producer: str, consumer: str) -> None:
    out, into, _ = ends(producer, consumer, 1 << 14)
    assert out.push_many([b"12345678"] * 600) == 600
    assert [len(into.take_views(*bounds)) for bounds in ((3, ALL), (ALL, 23), (ALL, 24), (ALL, 0))] == [3, 2, 3, 1]
    assert [len(into.take_views(ALL, ALL)) for _ in range(4)] == [256, 256, 79, 0]


@each
def test_views_of_a_damaged_ring_are_refused_behind_those_that_are_whole(name: str) -> None:
    buffer = new_ring(4096)
    ring = RINGS[name](buffer)
    assert ring.push_many([b"good", b"damaged"]) == 2
    buffer[HEADER_SIZE + framed(4) + 4] = 7
    other = RINGS[name](buffer)
    assert [bytes(view) for view in other.take_views(ALL, ALL)] == [b"good"]
    with pytest.raises(RingCorrupt):
        other.take_views(ALL, ALL)
    assert other.get(Cell.HEAD) == 0


@pairs
def test_head_moves_only_at_release_and_rewind_shows_everything_again(producer: str, consumer: str) -> None:
    out, into, buffer = ends(producer, consumer)
    out.push_many([b"a", b"b", b"c"])
    assert into.take_many(2, ALL) == [b"a", b"b"]
    assert cell_of(buffer, Cell.HEAD) == 0
    into.rewind()
    assert into.take_many(1, ALL) == [b"a"]
    into.release()
    assert cell_of(buffer, Cell.HEAD) == framed(1)
    assert into.take_many(ALL, ALL) == [b"b", b"c"]
    into.rewind()
    assert into.take_many(ALL, ALL) == [b"b", b"c"]
    assert out.used() == 2 * framed(1)


@pairs
def test_a_new_consumer_sees_all_that_was_not_released(producer: str, consumer: str) -> None:
    out, into, buffer = ends(producer, consumer)
    out.push_many([b"a", b"b", b"c"])
    into.take_many(1, ALL)
    into.release()
    into.take_many(1, ALL)
    assert RINGS[producer](buffer).take_many(ALL, ALL) == [b"b", b"c"]


@pairs
def test_a_new_producer_goes_on_where_the_old_one_published(producer: str, consumer: str) -> None:
    out, into, buffer = ends(producer, consumer)
    out.push(b"old")
    out.reserve(100)[:] = b"?" * 100  # its owner dies here
    assert RINGS[consumer](buffer).push(b"new")
    assert into.take_many(ALL, ALL) == [b"old", b"new"]


@each
def test_pending_and_used_count_framed_bytes(name: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    out.push_many([b"", b"12345678", b"123456789"])
    assert into.pending() == into.used() == out.used() == 8 + 16 + 24
    into.take_many(1, ALL)
    assert (into.pending(), into.used()) == (40, 48)
    into.release()
    assert (into.pending(), into.used()) == (40, 40)


@pairs
def test_cells_are_shared_and_hold_64_bits(producer: str, consumer: str) -> None:
    out, into, buffer = ends(producer, consumer)
    assert out.get(Cell.RESUME) == bus.UNKNOWN
    for cell in Cell:
        if cell in {Cell.TAIL, Cell.HEAD}:
            continue
        out.set(cell, 2**64 - 1 - cell)
    for cell in Cell:
        if cell in {Cell.TAIL, Cell.HEAD}:
            continue
        assert into.get(cell) == cell_of(buffer, cell) == 2**64 - 1 - cell
    assert into.take_many(ALL, ALL) == []


@each
def test_only_cells_can_be_read_and_set(name: str) -> None:
    ring = RINGS[name](new_ring())
    for cell in (-1, RingIdentity.EPOCH, Cell.TAIL - 1, HEADER_SIZE // 8, 2**70):
        with pytest.raises(IndexError):
            ring.get(cell)
        with pytest.raises(IndexError):
            ring.set(cell, 0)
    for value in (-1, 2**64):
        with pytest.raises(ValueError):
            ring.set(Cell.ACK, value)
    with pytest.raises(TypeError):
        ring.set(Cell.ACK, "1")


@each
def test_a_closed_ring_is_of_no_use_and_holds_nothing(name: str) -> None:
    buffer = new_ring()
    ring = RINGS[name](buffer)
    view, other = ring.reserve(3), ring.reserve(3)
    ring.close()
    ring.close()
    for one in (view, other):
        with pytest.raises(ValueError):
            one[0] = 0
    for call in (
        lambda: ring.push(b""),
        lambda: ring.push(b"two", b"parts"),
        lambda: ring.push_many([b"x"]),
        lambda: ring.push_many([]),
        lambda: ring.reserve(1),
        ring.commit,
        ring.abandon,
        lambda: ring.take_many(1, 1),
        ring.release,
        ring.rewind,
        ring.pending,
        ring.used,
        lambda: ring.get(Cell.ACK),
        lambda: ring.set(Cell.ACK, 1),
    ):
        with pytest.raises(ValueError, match="the ring is closed"):
            call()
    assert ring.capacity == 4096
    buffer.append(0)  # BufferError if anything were still exported


@each
def test_a_forgotten_ring_lets_go_of_its_buffer(name: str) -> None:
    buffer = new_ring()
    ring = RINGS[name](buffer)
    ring.push(b"x")
    view, other = ring.reserve(3), ring.reserve(3)
    del ring, view, other
    buffer.append(0)


@each
def test_capacity_and_epoch_are_read_from_the_segment(name: str) -> None:
    ring = RINGS[name](new_ring(8192, epoch=77))
    assert (ring.capacity, ring.epoch, ring.max_record) == (8192, 77, 4088)


@each
def test_any_writable_buffer_will_do_and_others_are_refused(name: str) -> None:
    buffer = new_ring()
    assert RINGS[name](memoryview(buffer).cast("Q")).push(b"x")
    assert RINGS[name](memoryview(buffer + bytes(100))).used() == framed(1)
    with pytest.raises(BufferError):
        RINGS[name](bytes(buffer))
    with pytest.raises(TypeError):
        RINGS[name]("text")
    shifted = bytearray(len(buffer) + 1)
    shifted[1:] = buffer
    with pytest.raises(LayoutError, match="address of the buffer"):
        RINGS[name](memoryview(shifted)[1:])
    shifted.append(0)


@each
def test_what_is_not_a_ring_is_refused_with_the_value_at_fault(name: str) -> None:
    good = new_ring()
    cases: list[tuple[int, int, str]] = [
        (RingIdentity.MAGIC, 0, "magic"),
        (RingIdentity.VERSION, 0, "version"),
        (RingIdentity.VERSION, 2, "version"),
        (RingIdentity.CAPACITY, 0, "capacity"),
        (RingIdentity.CAPACITY, 5000, "capacity"),
        (RingIdentity.CAPACITY, 8192, "capacity"),
        (RingIdentity.CAPACITY, 2**63, "capacity"),
    ]
    for cell, value, field in cases:
        buffer = bytearray(good)
        set_cell(buffer, cell, value)
        with pytest.raises(LayoutError) as caught:
            RINGS[name](buffer)
        assert (caught.value.field, caught.value.value) == (field, value)
        buffer.append(0)
    for size in (0, 8, HEADER_SIZE - 1, HEADER_SIZE, len(good) - 1):
        with pytest.raises(LayoutError):
            RINGS[name](good[:size])


@each
@pytest.mark.parametrize("bad", [1, 2**63, 2**64 - 8])
@pytest.mark.parametrize("cell", [Cell.HEAD, Cell.TAIL])
def test_a_cell_that_is_no_position_is_corrupt(name: str, cell: int, bad: int) -> None:
    buffer = new_ring()
    ring = RINGS[name](buffer)
    set_cell(buffer, cell, bad)
    for call in (
        lambda: RINGS[name](buffer),
        ring.used,
        lambda: ring.push(b"x") if cell == Cell.HEAD else ring.pending(),
    ):
        with pytest.raises(RingCorrupt, match="is not a position") as caught:
            call()
        assert caught.value.value == bad


@each
def test_a_tail_out_of_reach_is_corrupt_for_the_consumer(name: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    for _ in range(3):
        out.push(b"x")
        into.take_many(ALL, ALL)
        into.release()
    for bad in (8, 48 + 4096 + 8):
        set_cell(buffer, Cell.TAIL, bad)
        for call in (lambda: into.take_many(1, 1), into.pending):
            with pytest.raises(RingCorrupt, match="within one capacity") as caught:
                call()
            assert (caught.value.position, caught.value.value) == (48, bad)
    set_cell(buffer, Cell.TAIL, 8)
    with pytest.raises(RingCorrupt, match="before the head"):
        into.used()
    set_cell(buffer, Cell.TAIL, 48 + 8192)
    assert into.used() == 4096, "an observer may see a tail that moved on since it read the head"


@each
def test_a_head_out_of_reach_is_corrupt_for_the_producer(name: str) -> None:
    buffer = new_ring()
    set_cell(buffer, Cell.TAIL, 8192)
    for bad in (8200, 8192 - 4096 - 8):
        set_cell(buffer, Cell.HEAD, bad)
        ring = RINGS[name](buffer)
        for method, argument in ((ring.push, b"x"), (ring.push_many, [b"x"]), (ring.reserve, 1)):
            with pytest.raises(RingCorrupt, match="within one capacity of the tail") as caught:
                method(argument)
            assert (caught.value.position, caught.value.value) == (8192, bad)
    assert cell_of(buffer, Cell.TAIL) == 8192


def header_word(length: int, kind: int) -> int:
    return length | kind << 32


@each
@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (header_word(8, 0), 0, "unknown kind"),
        (header_word(8, 3), 3, "unknown kind"),
        (header_word(2**32 - 1, 2**32 - 1), 2**32 - 1, "unknown kind"),
        (header_word(2041, 1), 2041, "longer than the limit"),
        (header_word(2**32 - 1, 1), 2**32 - 1, "longer than the limit"),
        (header_word(1025, 1), 1025, "past the end of the data"),
        (header_word(17, 1), 17, "past the tail"),
        (header_word(1024 - 8, 2), 1016, "past the tail"),
        (header_word(16, 2), 16, "padding does not end"),
        (header_word(1019, 2), 1019, "padding does not end"),
        (header_word(2**32 - 1, 2), 2**32 - 1, "padding does not end"),
    ],
)
def test_a_record_header_that_cannot_be_is_corrupt(name: str, word: int, value: int, reason: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    start = 4096 - 1024  # where the record begins
    for _ in range(2):
        out.push(b"x" * (start // 2 - RECORD_HEADER))
        into.take_many(ALL, ALL)
        into.release()
    out.push(b"y" * 16)
    set_cell(buffer, (HEADER_SIZE + start) // 8, word)
    with pytest.raises(RingCorrupt, match=reason) as caught:
        into.take_many(ALL, ALL)
    assert (caught.value.position, caught.value.value) == (start, value)
    assert into.pending() == 24, "nothing has moved"


@each
def test_a_record_longer_than_the_limit_is_corrupt_even_where_it_would_fit(name: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    out.push_many([b"x" * 2040] * 2)
    set_cell(buffer, HEADER_SIZE // 8, header_word(2041, 1))
    with pytest.raises(RingCorrupt, match="longer than the limit") as caught:
        into.take_many(ALL, ALL)
    assert (caught.value.position, caught.value.value) == (0, 2041)


@each
@pytest.mark.parametrize(
    ("length", "kind", "reason"),
    [
        (1016 - 1, 2, "padding does not end"),
        (1016 - 7, 2, "padding does not end"),
        (1016 + 8, 2, "padding does not end"),
        (1016 + 1, 1, "past the end of the data"),
    ],
)
def test_what_does_not_end_with_the_data_is_corrupt(name: str, length: int, kind: int, reason: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    for _ in range(2):
        out.push(b"x" * (1536 - RECORD_HEADER))
        into.take_many(ALL, ALL)
        into.release()
    out.push(b"y" * 2040)
    at = (HEADER_SIZE + 3072) // 8
    assert cell_of(buffer, at) == header_word(1016, 2)
    set_cell(buffer, at, header_word(length, kind))
    with pytest.raises(RingCorrupt, match=reason) as caught:
        into.take_many(ALL, ALL)
    assert (caught.value.position, caught.value.value) == (3072, length)
    set_cell(buffer, at, header_word(1016, 2))
    assert into.take_many(ALL, ALL) == [b"y" * 2040]


@each
def test_records_before_a_damaged_one_are_handed_out_first(name: str) -> None:
    buffer = new_ring()
    out, into = RINGS[name](buffer), RINGS[name](buffer)
    out.push_many([b"good", b"also", b"bad"])
    set_cell(buffer, (HEADER_SIZE + 32) // 8, 0)
    assert into.take_many(ALL, ALL) == [b"good", b"also"]
    with pytest.raises(RingCorrupt) as caught:
        into.take_many(ALL, ALL)
    assert caught.value.position == 32
    into.rewind()
    assert into.take_many(1, ALL) == [b"good"]


@needs_c
def test_both_implementations_have_the_same_methods_with_the_same_arguments() -> None:
    for classes in (RINGS, DOORBELLS):
        plain, fast = classes["python"], classes["c"]
        public = {name for name in dir(plain) if not name.startswith("_")}
        assert public == {name for name in dir(fast) if not name.startswith("_")}
        for name in public:
            if callable(getattr(plain, name)):
                ours, theirs = (
                    [(p.name, p.kind) for p in list(signature(getattr(cls, name)).parameters.values())[1:]]
                    for cls in (plain, fast)
                )
                assert ours == theirs, name


@needs_c
def test_the_c_ring_was_built_for_this_layout() -> None:
    from bus import _ring, layout

    names = ("RING_VERSION", "HEADER_SIZE", "RECORD_HEADER", "WORD", "RECORD", "PADDING", "MIN_CAPACITY")
    assert {name: getattr(_ring, name) for name in names} == {name: getattr(layout, name) for name in names}
    cells = ("TAIL", "HEAD", "ACK", "RESEND_ASKED")
    assert {name: getattr(_ring, name) for name in cells} == {name: getattr(Cell, name) for name in cells}


@pairs
def test_both_implementations_leave_the_same_bytes(producer: str, consumer: str) -> None:
    buffers = []
    for name in (producer, consumer):
        buffer = new_ring()
        out, into = RINGS[name](buffer), RINGS[name](buffer)
        for size in itertools.islice(itertools.cycle([0, 1, 7, 8, 9, 500, 2040]), 200):
            out.push(bytes([size & 255]) * size)
            into.take_many(ALL, ALL)
            into.release()
        buffers.append(buffer)
    assert buffers[0] == buffers[1]


def test_where_stores_are_not_ordered_a_fence_stands_between_data_and_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = new_ring()
    out, into = PyRing(buffer), PyRing(buffer)
    seen: list[tuple[int, bytes]] = []
    monkeypatch.setattr(bus.ring, "STRONGLY_ORDERED", False)
    monkeypatch.setattr(bus.ring, "fence", lambda: seen.append((cell_of(buffer, Cell.TAIL), bytes(buffer[520:524]))))
    assert out.push(b"data")
    assert seen[-1] == (0, b"data")
    assert cell_of(buffer, Cell.TAIL) == framed(4)
    del seen[:]
    assert into.take_many(1, ALL) == [b"data"]
    assert len(seen) == 1
