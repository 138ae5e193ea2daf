"""Frames are cut the same however the stream was, cost no memory before they come, and seals hold."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.streams.errors import FrameForged, FrameTooLong
from bus.streams.frames import HEADER_BYTES, INITIAL_BYTES, FrameBuffer, Seal, frame

LIMIT = 1 << 14


def feed(buffer: FrameBuffer, data: bytes, pieces: list[int]) -> list[bytes]:
    """What comes out if the data comes in pieces of these sizes, over and over."""
    found, at, turn = [], 0, 0
    while at < len(data):
        room = buffer.room()
        assert len(room), "no room for what is still to come"
        size = min(len(room), pieces[turn % len(pieces)], len(data) - at)
        room[:size] = data[at : at + size]
        buffer.filled(size)
        at, turn = at + size, turn + 1
        while (contents := buffer.take()) is not None:
            found.append(contents)
    return found


sizes = st.one_of(st.integers(0, 40), st.sampled_from([INITIAL_BYTES - 4, INITIAL_BYTES, INITIAL_BYTES + 1, LIMIT]))


@settings(deadline=None)
@given(st.lists(sizes, max_size=5), st.lists(st.integers(1, 9000), min_size=1, max_size=8), st.integers(1, 1 << 15))
def test_frames_come_out_as_they_went_in_however_they_are_cut(lengths, pieces, usual):
    contents = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    buffer = FrameBuffer(LIMIT, usual)
    assert feed(buffer, b"".join(map(frame, contents)), pieces) == contents


def test_one_byte_at_a_time_is_enough():
    contents = [b"", b"one", b"x" * 300, b"", b"last"]
    assert feed(FrameBuffer(LIMIT), b"".join(map(frame, contents)), [1]) == contents


def test_a_frame_over_the_limit_is_refused_by_its_length_alone():
    buffer = FrameBuffer(LIMIT)
    assert feed(buffer, frame(b"fine"), [100]) == [b"fine"]
    before = buffer.allotted
    with pytest.raises(FrameTooLong) as caught:
        feed(buffer, (LIMIT + 1).to_bytes(4, "little"), [1])
    assert (caught.value.length, caught.value.limit) == (LIMIT + 1, LIMIT)
    assert buffer.allotted == before


@given(st.binary(min_size=1, max_size=400), st.integers(1, 64))
def test_whatever_comes_is_frames_or_one_fault(data, limit):
    buffer, found = FrameBuffer(limit), []
    with contextlib.suppress(FrameTooLong):
        found = feed(buffer, data, [7])
    assert all(len(contents) <= limit for contents in found)
    assert sum(len(contents) + HEADER_BYTES for contents in found) <= len(data)


def test_memory_is_taken_as_bytes_come_and_given_back_after():
    buffer = FrameBuffer(1 << 20)
    announced = (1 << 20).to_bytes(4, "little")
    feed(buffer, announced + bytes(1000), [500])
    assert buffer.allotted == INITIAL_BYTES
    assert len(feed(buffer, bytes((1 << 20) - 1000), [4096])) == 1
    buffer.room()
    assert buffer.allotted == INITIAL_BYTES


def test_the_limit_may_change_between_frames():
    buffer = FrameBuffer(10)
    assert feed(buffer, frame(b"short"), [100]) == [b"short"]
    buffer.limit = 1000
    assert feed(buffer, frame(b"l" * 1000), [100]) == [b"l" * 1000]


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_sealed_contents_come_out_as_they_went_in(contents):
    sender, receiver = Seal(b"k"), Seal(b"k")
    assert [receiver.open(sender.close(one)) for one in contents] == contents


@given(st.binary(max_size=50), st.data())
def test_a_changed_frame_is_refused(contents, data):
    sealed = bytearray(Seal(b"k").close(contents))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameForged):
        Seal(b"k").open(bytes(sealed))


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2]], ids=["reordered", "doubled", "left out"])
def test_a_frame_that_is_not_the_next_is_refused(order):
    sender, receiver = Seal(b"k"), Seal(b"k")
    sealed = [sender.close(b"%d" % number) for number in range(3)]
    *fine, last = order
    for number in fine:
        receiver.open(sealed[number])
    with pytest.raises(FrameForged) as caught:
        receiver.open(sealed[last])
    assert caught.value.number == len(fine)


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(16)])
def test_what_cannot_hold_a_seal_is_refused(sealed):
    with pytest.raises(FrameForged):
        Seal(b"k").open(sealed)
