"""Frames byte by byte: every record comes back, and what is no frame is a WireError and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import persist.ilm
from persist.ilm import wire
from persist.ilm.errors import WireError
from persist.ilm.message import MAX_ID, PeerId
from persist.ilm.wire import (
    Acknowledgement,
    Frame,
    Message,
    Poll,
    contents,
    decode,
    encode,
    message_frame,
    run_body,
    split,
)

PAGE = Path(persist.ilm.__file__).with_name("WIRE.md")

stores = st.integers(1, MAX_ID)
numbers = st.integers(0, wire.MAX_NUMBER)
peers: st.SearchStrategy[PeerId] = st.one_of(
    st.integers(0, MAX_ID), st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
)
polls = st.builds(
    Poll, stores, st.integers(0, MAX_ID), numbers, numbers, stores, st.integers(0, MAX_ID), peers, peers,
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
acknowledgements = st.builds(Acknowledgement, stores, stores, numbers, numbers)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    several = draw(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
    number = draw(st.integers(1, wire.MAX_NUMBER - 5))
    first_id = draw(st.integers(number, MAX_ID - 5))
    body = run_body(first_id, several)
    return message_frame(draw(stores), draw(stores), number, draw(numbers), len(several), [body])


frames = st.one_of(polls.map(encode), acknowledgements.map(encode), messages())


def write(frame: Frame) -> bytes:
    if isinstance(frame, Message):
        body = run_body(frame.first_id, frame.contents())
        return message_frame(frame.sender, frame.receiver, frame.number, frame.known, frame.count, [body])
    return encode(frame)


@given(st.one_of(polls, acknowledgements))
def test_records_come_back(frame: Poll | Acknowledgement) -> None:
    assert decode(encode(frame)) == frame


@given(stores, stores, st.integers(1, 2**60), numbers, st.lists(st.binary(max_size=50), min_size=1, max_size=20))
def test_messages_come_back(sender: int, receiver: int, number: int, known: int, several: list[bytes]) -> None:
    frame = decode(message_frame(sender, receiver, number, known, len(several), [run_body(number + 7, several)]))
    assert isinstance(frame, Message)
    assert (frame.sender, frame.receiver, frame.number, frame.known) == (sender, receiver, number, known)
    assert (frame.count, frame.first_id, frame.contents()) == (len(several), number + 7, several)
    assert frame.contents(1) == several[1:]


def test_runs_that_follow_each_other_are_one_frame() -> None:
    first, second = run_body(5, [b"a", b"bc"]), run_body(7, [b""])
    frame = decode(message_frame(1, 2, 5, 0, 3, [first, second[wire.RUN_HEAD_BYTES :]]))
    assert isinstance(frame, Message)
    assert frame.contents() == [b"a", b"bc", b""]


@given(st.binary(max_size=120))
def test_any_bytes_are_a_frame_or_a_wire_error(data: bytes) -> None:
    read_and_write(data)


@given(frames, st.data())
def test_a_damaged_frame_is_a_frame_or_a_wire_error(frame: bytes, data: st.DataObject) -> None:
    damaged = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 255])))
    read_and_write(bytes(damaged))


def read_and_write(data: bytes) -> None:
    """What is read is written again as the same bytes: there is one encoding only."""
    try:
        frame = decode(data)
    except WireError:
        return
    assert write(frame) == data


@given(frames, st.integers(0, 200))
def test_a_frame_that_is_cut_off_is_an_error(frame: bytes, keep: int) -> None:
    with pytest.raises(WireError):
        decode(frame[: min(keep, len(frame) - 1)])


@given(frames, st.binary(min_size=1, max_size=9))
def test_a_frame_with_something_behind_it_is_an_error(frame: bytes, more: bytes) -> None:
    with pytest.raises(WireError):
        decode(frame + more)


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


LARGE = b"\xff" * 8
MESSAGE = message_frame(1, 2, 3, 0, 2, [run_body(3, [b"one", b"two"])])
ACK = encode(Acknowledgement(1, 2, 3, 0))
POLL = encode(Poll(1, 2, 3, 0, 9, 8, "ann", 7))


@pytest.mark.parametrize(
    ("frame", "reason", "value"),
    [
        (b"", "shorter than magic", 0),
        (changed(ACK, 0, b"\x50"), "magic", 0x50),
        (changed(ACK, 1, b"\x02"), "version", 2),
        (b"\x4c\x02", "version", 2),
        (changed(ACK, 2, b"\x00"), "kind", 0),
        (changed(ACK, 2, b"\x04"), "kind", 4),
        (changed(ACK, 3, b"\x01"), "flags", 1),
        (changed(MESSAGE, 3, b"\x01"), "flags", 1),
        (changed(POLL, 3, b"\x08"), "flags", 8),
        (changed(ACK, 4, b"\x01"), "count", 1),
        (changed(POLL, 4, b"\x01"), "count", 1),
        (changed(ACK, 8, bytes(8)), "sender names no store", 0),
        (changed(ACK, 16, bytes(8)), "no receiver's store", 0),
        (changed(MESSAGE, 16, bytes(8)), "no receiver's store", 0),
        (changed(ACK, 24, LARGE), "number", MAX_ID),
        (changed(ACK, 32, LARGE), "number", MAX_ID),
        (changed(MESSAGE, 24, bytes(8)), "numbers of a run", 2),
        (changed(MESSAGE, 4, bytes(4)), "numbers of a run", 3),
        (changed(MESSAGE, 24, b"\xfe" + LARGE[1:]), "numbers of a run", MAX_ID + 1),
        (changed(MESSAGE, 4, b"\xff" * 4), "shorter than its messages", len(MESSAGE)),
        (changed(MESSAGE, 4, b"\x01"), "length", len(MESSAGE)),
        (changed(MESSAGE, 4, b"\x03"), "cut off", len(MESSAGE)),
        (changed(MESSAGE, 40, b"\x02"), "ids of a run", 2),
        (changed(MESSAGE, 40, LARGE), "ids of a run", MAX_ID),
        (changed(MESSAGE, 48, b"\xff" * 4), "cut off", len(MESSAGE)),
        (changed(MESSAGE, 48, b"\x04"), "length", len(MESSAGE)),
        (changed(POLL, 40, bytes(8)), "nonce", 0),
        (POLL[:50], "shorter than a greeting", 50),
        (changed(POLL, 56, b"\x02"), "kind of a peer's id", 2),
        (changed(POLL, 56, b"\x00"), "length of a peer's number", 3),
        (changed(POLL, 57, b"\x00"), "length of a peer's name", 0),
        (changed(POLL, 57, b"\xff"), "cut off", len(POLL)),
        (changed(POLL, 58, b"\xff"), "not UTF-8", 0),
        (POLL[:-10], "head of a peer's id", len(POLL) - 10),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_wrong_is_said(frame: bytes, reason: str, value: int) -> None:
    with pytest.raises(WireError) as found:
        decode(frame)
    assert reason in found.value.reason
    assert found.value.value == value


@given(peers)
def test_ids_of_peers_come_back(peer: PeerId) -> None:
    data = wire.encode_peer(peer)
    found, end = wire.decode_peer(b"." + data + b".", 1)
    assert (found, type(found), end) == (peer, type(peer), 1 + len(data))


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=20), st.integers(9, 100))
def test_a_run_is_split_into_runs_that_fit(several: list[bytes], room: int) -> None:
    parts = split(11, len(several), run_body(100, several), room)
    found = []
    expected = 11
    for first, count, body in parts:
        assert (first, count > 0) == (expected, True)
        assert wire.RUN_HEAD.unpack_from(body)[0] == 100 + first - 11
        assert len(body) <= room or count == 1
        found += contents(body, wire.RUN_HEAD_BYTES, count)
        expected += count
    assert found == several


def examples() -> list[bytes]:
    """The hex dumps of the page."""
    dumps: list[bytes] = []
    for line in PAGE.read_text().splitlines():
        dump = re.fullmatch(r"    ([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", line)
        if dump:
            if int(dump[1], 16) == 0:
                dumps.append(b"")
            assert len(dumps[-1]) == int(dump[1], 16)
            dumps[-1] += bytes.fromhex(dump[2])
    return dumps


def test_the_page_is_true() -> None:
    message, acknowledgement, poll = examples()
    found = decode(message)
    assert isinstance(found, Message)
    assert (found.sender, found.receiver, found.number, found.known) == (0x1111, 0x2222, 4, 3)
    assert (found.first_id, found.contents()) == (104, [b"hi", b"all"])
    assert decode(acknowledgement) == Acknowledgement(0x2222, 0x1111, 5, 0)
    assert decode(poll) == Poll(0x1111, 0, 0, 0, 9, 0, "ann", 7, ask=True)
