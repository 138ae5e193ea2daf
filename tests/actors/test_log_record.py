"""Packets, lines and text: what a record may not do on its way."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.log_record import (
    PACKET,
    Line,
    Packet,
    Sent,
    decode,
    decode_line,
    encode,
    encode_line,
    harmless,
    level_number,
    line_of,
    plain,
    text_of,
)


def sent(message: str = "hello", **values: object) -> Sent:
    record = Sent("app", 30, "WARNING", message, 1700000000.25, 7, 8, "MainThread", "/src/app.py", 12, "on_trade")
    return msgspec.structs.replace(record, **values)


def test_a_packet_comes_out_as_it_went_in() -> None:
    packet = Packet(3, sent(extra={"n": 1, "who": ["a", None, 2.5]}, traceback="Traceback", handler="averager"))
    assert decode(encode(packet)) == packet


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"hello", encode(Packet(0, sent()))[:-1]])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_a_record_that_is_too_large_is_cut_with_a_mark() -> None:
    whole = Packet(1, sent("m" * 200_000, traceback="t" * 200_000 + "ValueError: end", extra={"keep": 1}))
    data = encode(whole)
    assert len(data) <= PACKET
    record = decode(data).record
    assert record is not None
    assert record.message.startswith("mmm")
    assert "bytes were too many]" in record.message
    assert record.traceback.endswith("ValueError: end")
    assert record.extra == {"keep": 1}


def test_values_of_extra_go_when_they_are_what_is_too_large() -> None:
    record = decode(encode(Packet(0, sent(extra={"big": "x" * PACKET})))).record
    assert record is not None
    assert record.message == "hello"
    assert list(record.extra) == ["cut"]


texts = st.text(st.characters(codec=None, exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary() | st.builds(object),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers() | texts, inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(texts, texts, st.dictionaries(texts, values, max_size=5), st.sampled_from([1, 1, 1, 20_000]))
def test_whatever_is_said_becomes_a_packet_and_a_line(message: str, trace: str, extra: dict, times: int) -> None:
    plain_extra = {str(plain(key)): plain(value) for key, value in extra.items()}
    data = encode(Packet(0, sent(message * times, traceback=trace * times, extra=plain_extra)))
    assert len(data) <= PACKET
    record = decode(data).record
    assert record is not None
    line = encode_line(line_of(record, "stats"))
    assert line.count(b"\n") == 1
    assert decode_line(line) is not None
    assert "\x1b" not in text_of(line_of(record, "stats"))


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("not now")


def test_values_that_are_no_plain_data_travel_as_their_repr() -> None:
    assert plain({1: (1, 2), "x": {3}}) == {"1": [1, 2], "x": "{3}"}
    assert plain(1 << 70) == str(1 << 70)
    assert plain({"a": {"\ud800": "\udfff"}}) == {"a": {"\\ud800": "\\udfff"}}
    assert plain(float("nan")) == "nan"
    assert plain(Shy()) == "<Shy>"
    assert len(plain(bytearray(5000))) < 300
    loop: list = []
    loop.append(loop)
    assert encode(Packet(0, sent(extra={"loop": plain(loop)})))


def test_a_line_is_json_with_stable_keys() -> None:
    line = line_of(sent(traceback="Traceback", stack="Stack", handler="averager", message_id="ingest/3"), "stats")
    assert json.loads(encode_line(line)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "WARNING",
        "logger": "app",
        "worker": "stats",
        "handler": "averager",
        "message_id": "ingest/3",
        "pid": 7,
        "message": "hello",
        "traceback": "Traceback\nStack",
        "extra": {},
    }


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", encode_line(line_of(sent(), "w"))[:-5]])
def test_a_torn_line_is_no_line(data: bytes) -> None:
    assert decode_line(data) is None


def test_text_is_one_line_and_what_follows_is_indented() -> None:
    line = line_of(
        sent("first\n12:00:00.000 ERROR stats: forged", handler="averager", message_id="ingest/3", traceback="Tr\n  x"),
        "stats",
    )
    first, *rest = text_of(line).split("\n")
    assert first.endswith("WARNING stats/averager ingest/3: first")
    assert rest == ["    12:00:00.000 ERROR stats: forged", "    Tr", "      x"]


def test_text_carries_no_control_characters_to_a_terminal() -> None:
    line = line_of(sent("a\x1b[2J", name="b\x1b", handler="c\x1b", traceback="d\x1b", level_name="e\x1b"), "f\x1b")
    text = text_of(line)
    assert "\x1b" not in text
    assert text.count("\\x1b") == 5


def test_text_has_the_date_where_it_is_another_day() -> None:
    line = line_of(sent(), "stats")
    assert " 22:13:20" not in text_of(line, datetime.fromtimestamp(1700000000, UTC))
    assert text_of(line, datetime.fromtimestamp(1800000000, UTC)).startswith("2023-11-1")


def test_text_names_the_supervisor_or_the_logger_where_there_is_no_worker() -> None:
    assert "INFO supervisor: x" in text_of(Line(time="?", level="INFO", logger="ringleader", message="x"))
    assert "INFO app.db: x" in text_of(Line(time="?", level="INFO", logger="app.db", message="x"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\rb", "a\\rb"), ("\u202ea", "\\u202ea"), ("a\r\nb\tc", "a\nb\tc"), ("é", "é")],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_levels_have_names_and_numbers() -> None:
    assert [level_number(text) for text in ("debug", "WARNING", " error", "35")] == [10, 30, 40, 35]
    with pytest.raises(ValueError, match="'loud' is no level"):
        level_number("loud")
    numbers = [Line(time="", level=name, logger="").number for name in ("INFO", "Level 25", "NOTICE")]
    assert numbers == [20, 25, 30]
