"""Files that were written by each format version, byte for byte as they were, are read to what they mean for ever.

golden/version_N/ has one journal per directory, each file as hexadecimal text:
    segments  two incarnations, the first with two segments, and names that were added; from version 3 on, with attempts
              that are counted, and with a dead letter that is removed
    torn      the last frame is cut short
    outage    level "power": the power failed, and of three frames that were not synced the second was not on the disk
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from msgspec.structs import replace

from persist import Journal, NamedDeadLetter, NewerFormat, Recovered, Send, TornTail, Transaction, check, read
from persist import format as layout
from persist.files import Directory
from persist.format import decode_segment_header
from persist.history import Record, SentRun, replay
from persist.reader import survey
from tests.persist.building import path_of, snapshots

GOLDEN = Path(__file__).parent / "golden"

TICK, ROW = ("counter", "Tick"), ("table", "Row")
OLD_ROUTES = (TICK, ROW)
ROUTES = (*OLD_ROUTES, ("table", "Extra"))
PEERS = ("right", "left", "third")
POISON = NamedDeadLetter(
    peer="left",
    seq=3,
    route=ROW,
    handler="table",
    type="Row",
    reason="ValueError",
    detail="no good",
    attempts=3,
    time_ns=1_700_000_000_000_000_000,
    body=b"poison",
)
ONE: dict[str, Any] = {
    "consumed": {"left": 3},
    "sends": [SentRun(TICK, 2, 0, {"left": 1, "right": 1}, b"two for both")],
    "states": {"counter": b"one"},
    "keys": [("table", b"a", b"1"), ("table", b"b", b"2")],
}
TWO: dict[str, Any] = {
    "consumed": {"right": 1},
    "sends": [SentRun(ROW, 1, 1, {"right": 3}, b"for right")],
    "keys": [("table", b"a", None)],
    "dead": [POISON],
}
THREE: dict[str, Any] = {
    "consumed": {"left": 4},
    "sends": [SentRun(TICK, 3, 0, {"left": 3}, b"three for left")],
    "states": {"counter": b"two"},
}
FOUR: dict[str, Any] = {
    "sends": [SentRun(("table", "Extra"), 1, 0, {"third": 1}, b"for third")],
    "keys": [("table", b"c", b"3")],
}
COUNTED: list[dict[str, Any]] = [
    TWO | {"attempts": {("left", 4): 1}},
    THREE | {"attempts": {("left", 5): 2}},
    FOUR | {"attempts": {("left", 5): 3}, "removed": [("left", 3)]},
]
UNSYNCED: dict[str, Any] = {"consumed": {"left": 4}, "states": {"counter": b"two"}}

# (version, journal) -> where each record stands, its segment and epoch, and what it is
RECORDS: dict[tuple[int, str], list[tuple[int, int, int, int, dict[str, Any]]]] = {
    (1, "segments"): [(96, 176, 1, 5, ONE), (176, 280, 1, 5, TWO), (464, 520, 2, 5, THREE), (720, 776, 3, 6, FOUR)],
    (2, "segments"): [(112, 192, 1, 5, ONE), (192, 296, 1, 5, TWO), (512, 568, 2, 5, THREE), (776, 832, 3, 6, FOUR)],
    (3, "segments"): [
        (112, 192, 1, 5, ONE),
        (192, 304, 1, 5, COUNTED[0]),
        (520, 584, 2, 5, COUNTED[1]),
        (800, 864, 3, 6, COUNTED[2]),
    ],
    (1, "torn"): [(96, 176, 1, 5, ONE)],
    (2, "torn"): [(112, 192, 1, 5, ONE)],
    (3, "torn"): [(112, 192, 1, 5, ONE)],
    (2, "outage"): [(112, 192, 1, 5, ONE), (192, 296, 1, 5, TWO), (296, 328, 1, 5, UNSYNCED)],
}

_SEGMENTS = Recovered(
    epoch=6,
    level="process",
    fingerprint="golden",
    states={"counter": b"two"},
    tables={"table": {b"b": b"2", b"c": b"3"}},
    watermarks={"left": 4, "right": 1},
    assigned={"left": 5, "right": 3, "third": 1},
    acked={"left": 1},
    unacked_from={"left": 96, "right": 96, "third": 720},
    unacked_bytes={"left": 26, "right": 21, "third": 9},
    dead=[POISON],
    routes={1: OLD_ROUTES, 2: OLD_ROUTES, 3: ROUTES},
    position=776,
)
_TORN = Recovered(
    epoch=5,
    level="process",
    fingerprint="golden",
    states={"counter": b"one"},
    tables={"table": {b"a": b"1", b"b": b"2"}},
    watermarks={"left": 3},
    assigned={"left": 2, "right": 2},
    unacked_from={"left": 96, "right": 96},
    unacked_bytes={"left": 12, "right": 12},
    routes={1: OLD_ROUTES},
    position=176,
    torn=TornTail("", 208, 64, "the frame's body is cut short"),
)
_TORN_2 = replace(
    _TORN,
    unacked_from={"left": 112, "right": 112},
    position=192,
    torn=TornTail("", 224, 64, "the frame's body is cut short"),
)
RECOVERED: dict[tuple[int, str], Recovered] = {
    (1, "segments"): _SEGMENTS,
    (2, "segments"): replace(
        _SEGMENTS,
        unacked_from={"left": 112, "right": 112, "third": 776},
        routes={1: OLD_ROUTES, 2: ROUTES, 3: ROUTES},
        position=832,
    ),
    (3, "segments"): replace(
        _SEGMENTS,
        unacked_from={"left": 112, "right": 112, "third": 800},
        attempts={("left", 5): 3},
        dead=[],
        routes={1: OLD_ROUTES, 2: ROUTES, 3: ROUTES},
        position=864,
    ),
    (1, "torn"): _TORN,
    (2, "torn"): _TORN_2,
    (3, "torn"): _TORN_2,
    (2, "outage"): Recovered(
        epoch=5,
        level="power",
        fingerprint="golden",
        states={"counter": b"two"},
        tables={"table": {b"b": b"2"}},
        watermarks={"left": 4, "right": 1},
        assigned={"left": 2, "right": 3},
        unacked_from={"left": 112, "right": 112},
        unacked_bytes={"left": 12, "right": 21},
        dead=[POISON],
        routes={1: OLD_ROUTES},
        position=328,
        torn=TornTail("", 360, 208, "zeros where a frame should be"),
    ),
}
EVERY = sorted(RECOVERED)


def golden(version: int, name: str, directory: Path) -> Path:
    """A copy that can be written to."""
    directory.mkdir(mode=0o700)
    for source in (GOLDEN / f"version_{version}" / name).iterdir():
        (directory / source.stem).write_bytes(bytes.fromhex(source.read_text()))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def versions(directory: Path) -> list[int]:
    headers = [decode_segment_header(path.read_bytes()[:32]) for path in sorted(directory.glob("*.journal"))]
    return [header.version if header else 0 for header in headers]


def anywhere(recovered: Recovered) -> Recovered:
    """Without the path."""
    torn = recovered.torn
    return replace(recovered, torn=torn and TornTail("", torn.offset, torn.bytes_dropped, torn.reason))


def again(directory: Path, level: str) -> tuple[Journal, Recovered]:
    made = snapshots(PEERS, ("counter", "table"), ROUTES, level)
    return Journal.open(directory, epoch=0, level=level, make_snapshot=made)


def test_every_golden_journal_is_known() -> None:
    there = [path for path in GOLDEN.glob("version_*/*") if path.is_dir()]
    assert sorted((int(path.parent.name.removeprefix("version_")), path.name) for path in there) == EVERY
    assert RECORDS.keys() == RECOVERED.keys()
    assert {version for version, _ in EVERY} == set(layout.READABLE)


@pytest.mark.parametrize(("version", "name"), EVERY)
def test_what_was_written_is_read_for_ever(version: int, name: str, tmp_path: Path) -> None:
    directory = golden(version, name, tmp_path / "journal")
    before = contents(directory)
    assert set(versions(directory)) == {version}
    assert anywhere(read(directory)) == RECOVERED[version, name]
    assert list(replay(directory)) == [
        Record(position=position, end=end, segment=segment, epoch=epoch, **what)
        for position, end, segment, epoch, what in RECORDS[version, name]
    ]
    assert check(directory).ok
    assert contents(directory) == before


def test_time_and_checksum_are_read_of_those_that_have_them(tmp_path: Path) -> None:
    found = {}
    for version in layout.READABLE:
        directory = Directory(golden(version, "segments", tmp_path / str(version)))
        found[version] = [segment.snapshot for segment in survey(directory, []).segments]
        directory.close()
    assert [(one.time_ns, one.previous_crc) for one in found[1]] == [(0, 0)] * 3
    first = crc32(path_of(tmp_path / "2", 1).read_bytes())
    assert [(one.time_ns, one.previous_crc) for one in found[2]] == [(POISON.time_ns, crc) for crc in (0, first, 0)]


@pytest.mark.parametrize("level", ["process", "power"])
@pytest.mark.parametrize(("version", "name"), EVERY)
def test_journal_goes_on_in_the_present_version(version: int, name: str, level: str, tmp_path: Path) -> None:
    directory = golden(version, name, tmp_path / "journal")
    expected = RECOVERED[version, name]
    older = len(versions(directory))
    untouched = {path: data for path, data in contents(directory).items() if path.endswith(".journal")}
    journal, recovered = again(directory, level)
    assert anywhere(recovered) == expected
    left = expected.assigned["left"]
    pending = [(send.edges, send.count) for _, send in journal.sends(1, 0, 0)]
    assert [edge for edges, _ in pending for edge in edges] == [(1, n) for n in (1, 3)[: len(pending)]]
    journal.append(Transaction(sends=[Send(0, 1, 0, [(1, left + 1)], b"new")], states=[(0, b"new")]))
    journal.close()
    assert versions(directory) == [version] * older + [layout.VERSION]
    for path, data in untouched.items():
        assert data.startswith((directory / path).read_bytes()), "cut to its size at most"
    found = read(directory)
    assert found.assigned == expected.assigned | {"left": left + 1}
    assert found.states == {"counter": b"new"}
    assert (found.tables, found.watermarks, found.dead) == (expected.tables, expected.watermarks, expected.dead)
    assert found.unacked_from["left"] == expected.unacked_from["left"]
    assert check(directory).ok


@pytest.mark.parametrize(("version", "name"), EVERY)
def test_newer_one_is_refused_and_left_as_it_is(version: int, name: str, tmp_path: Path) -> None:
    directory = golden(version, name, tmp_path / "journal")
    last = sorted(directory.glob("*.journal"))[-1]
    header = decode_segment_header(last.read_bytes()[:32])
    assert header is not None
    newer = layout.encode_segment_header(header.number, header.first_position, layout.VERSION + 1)
    last.write_bytes(newer + b"what it likes" + last.read_bytes()[45:])
    before = contents(directory)
    for refuses in (lambda: read(directory), lambda: again(directory, "process"), lambda: list(replay(directory))):
        with pytest.raises(NewerFormat) as refused:
            refuses()
        assert (refused.value.version, refused.value.supported) == (layout.VERSION + 1, layout.VERSION)
        assert refused.value.path == str(last)
    after = contents(directory)
    after.pop("lock", None)
    assert after == before


def test_older_segments_go_when_everything_in_them_is_acknowledged(tmp_path: Path) -> None:
    directory = golden(1, "segments", tmp_path / "journal")
    journal, _ = again(directory, "process")
    assert journal.segments == 4
    assert journal.trim({0: 3, 1: 5}) == 2
    assert journal.trim({0: 3, 1: 5, 2: 1}) == 1
    journal.close()
    assert path_of(directory, 4).exists()
    assert versions(directory) == [layout.VERSION]
