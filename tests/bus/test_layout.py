"""The ring segment's layout is what its diagram says, and formatting completes with the version."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from bus import Cell, LayoutError, PyRing, board_size, check_board, check_ring, format_ring, max_record, ring_size
from bus.layout import HEADER_SIZE, LINE, UNKNOWN, RingIdentity, format_board, framed

PRODUCERS = (
    Cell.TAIL,
    Cell.COMMITTED,
    Cell.PUBLISHED,
    Cell.OUTBOX_BYTES,
    Cell.OLDEST_NS,
    Cell.STARVED,
    Cell.RESEND_SERVED,
)
CONSUMERS = (Cell.HEAD, Cell.ACK, Cell.RESUME, Cell.RESEND_ASKED)


def test_cells_are_where_the_diagram_shows_them() -> None:
    assert [cell * 8 for cell in RingIdentity] == [0, 8, 16, 24]
    assert [cell * 8 for cell in PRODUCERS] == [128, 136, 144, 152, 160, 168, 176]
    assert [cell * 8 for cell in CONSUMERS] == [256, 264, 272, 280]
    assert HEADER_SIZE == 512
    assert set(PRODUCERS) | set(CONSUMERS) == set(Cell)


def test_tail_head_and_data_lie_two_cache_lines_apart() -> None:
    assert Cell.TAIL * 8 - RingIdentity.EPOCH * 8 >= 64
    assert Cell.HEAD * 8 - Cell.TAIL * 8 >= LINE
    assert HEADER_SIZE - max(CONSUMERS) * 8 >= LINE


def test_framing_is_a_header_and_a_multiple_of_eight() -> None:
    assert [framed(size) for size in (0, 1, 8, 9, 2040)] == [8, 16, 16, 24, 2048]
    assert max_record(4096) == 2040


def test_formatting_makes_an_empty_ring_of_whatever_was_there() -> None:
    buffer = bytearray(b"\xff" * (ring_size(4096) + 40))
    format_ring(buffer, 4096, 2**63)
    assert check_ring(buffer) == (4096, 2**63)
    ring = PyRing(buffer)
    assert [ring.get(cell) for cell in Cell] == [UNKNOWN if cell == Cell.RESUME else 0 for cell in Cell]


def snapshots(function: Callable[..., None], buffer: bytearray, *arguments: object) -> list[bytearray]:
    """What the buffer holds before each line of the function, as if its process had died there."""
    seen: list[bytearray] = []

    def at_line(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is function.__code__:
            seen.append(bytearray(buffer))
            return at_line
        return None

    before = sys.gettrace()
    sys.settrace(at_line)
    try:
        function(buffer, *arguments)
    finally:
        sys.settrace(before)
    return seen


@pytest.mark.parametrize(
    ("formatting", "check", "size", "arguments"),
    [(format_ring, check_ring, ring_size(4096), (4096, 7)), (format_board, check_board, board_size(["a"]), (["a"],))],
)
@pytest.mark.parametrize("filler", [0, 0xFF])
def test_whatever_dies_while_formatting_leaves_something_whole_or_refused(
    formatting: Callable[..., None], check: Callable[[bytearray], object], size: int, arguments: Any, filler: int
) -> None:
    buffer = bytearray([filler]) * size
    seen = snapshots(formatting, buffer, *arguments)
    assert len([state for state in seen if state not in (seen[0], buffer)]) >= 3
    for state in seen:
        if state != buffer:
            with pytest.raises(LayoutError):
                check(state)
    assert check(buffer)


@pytest.mark.parametrize("capacity", [0, -4096, 2048, 4095, 6000, 2**32])
def test_a_capacity_that_cannot_be_is_refused(capacity: int) -> None:
    with pytest.raises(LayoutError) as caught:
        format_ring(bytearray(70000), capacity, 1)
    assert (caught.value.field, caught.value.value) == ("capacity", capacity)


def test_a_buffer_that_is_too_small_is_refused_untouched() -> None:
    buffer = bytearray(b"\xff" * (ring_size(4096) - 1))
    with pytest.raises(LayoutError) as caught:
        format_ring(buffer, 4096, 1)
    assert caught.value.value == len(buffer)
    assert set(buffer) == {0xFF}
