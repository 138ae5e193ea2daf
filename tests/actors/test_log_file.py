"""The log file: bounded, readable while it is written, and harmless on a bad disk."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.log_file import BEFORE, LOG, Follower, LogFile

Opened = list[LogFile | Follower]


@pytest.fixture
def opened() -> Iterator[Opened]:
    made: Opened = []
    yield made
    for one in made:
        one.close()


def writer(folder: Path, opened: Opened, limit: int = 1 << 20) -> LogFile:
    opened.append(one := LogFile(os.open(folder, os.O_RDONLY), limit))
    return one


def follower(folder: Path, opened: Opened) -> Follower:
    opened.append(one := Follower(os.open(folder, os.O_RDONLY)))
    return one


def numbered(n: int) -> bytes:
    return f"line {n} {'x' * (n % 50)}\n".encode()


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path, opened: Opened) -> None:
    file = writer(tmp_path, opened)
    file.write(b"one\n")
    assert (tmp_path / LOG).read_bytes() == b"one\n"
    assert stat.S_IMODE((tmp_path / LOG).stat().st_mode) == 0o600
    assert list(follower(tmp_path, opened).lines()) == [b"one"]


def test_two_files_together_stay_within_the_limit_and_have_the_newest(tmp_path: Path, opened: Opened) -> None:
    file = writer(tmp_path, opened, limit=2000)
    for n in range(500):
        file.write(numbered(n))
        sizes = [(tmp_path / name).stat().st_size for name in (LOG, BEFORE) if (tmp_path / name).exists()]
        assert sum(sizes) <= 2000
    lines = list(follower(tmp_path, opened).lines())
    assert lines == [numbered(n).rstrip(b"\n") for n in range(500 - len(lines), 500)]
    assert len(b"".join(lines)) > 800


def test_the_next_run_appends(tmp_path: Path, opened: Opened) -> None:
    for text in (b"one\n", b"two\n"):
        file = writer(tmp_path, opened)
        file.write(text)
        file.close()
    assert list(follower(tmp_path, opened).lines()) == [b"one", b"two"]


def test_a_torn_end_is_closed_before_the_next_line(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / LOG).write_bytes(b"one\ntorn")
    writer(tmp_path, opened).write(b"two\n")
    assert (tmp_path / LOG).read_bytes() == b"one\ntorn\ntwo\n"


def test_no_log_is_kept_with_a_limit_of_none(tmp_path: Path, opened: Opened) -> None:
    file = writer(tmp_path, opened, limit=0)
    file.write(b"one\n")
    assert (list(tmp_path.iterdir()), file.lost) == ([], 0)
    assert not follower(tmp_path, opened).exists


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_only_a_plain_file_is_written(tmp_path: Path, opened: Opened, kind: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_bytes(b"")
    match kind:
        case "link":
            (run / LOG).symlink_to(other)
        case "folder":
            (run / LOG).mkdir()
        case _:
            os.mkfifo(run / LOG)
    file = writer(run, opened)
    file.write(b"one\n")
    assert file.lost == 1
    assert other.read_bytes() == b""


def test_a_full_disk_loses_lines_counts_them_and_writes_on_when_there_is_room(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = writer(tmp_path, opened)
    file.write(b"one\n")
    write, room = os.write, [2]

    def full(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "no space")
        return write(fd, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    file.write(b"two\n")
    file.write(b"three\n")
    assert file.lost == 2
    monkeypatch.undo()
    file.write(b"four\n")
    assert list(follower(tmp_path, opened).lines()) == [b"one", b"tw", b"four"]


def test_a_follower_sees_every_line_once_across_rotations(tmp_path: Path, opened: Opened) -> None:
    rng = random.Random(7)
    file = writer(tmp_path, opened, limit=4000)
    reading = follower(tmp_path, opened)
    found: list[bytes] = []
    for n in range(2000):
        file.write(numbered(n))
        if rng.random() < 0.05:
            found += reading.lines()
    found += reading.lines()
    assert found == [numbered(n).rstrip(b"\n") for n in range(2000)]


def test_a_follower_misses_nothing_of_a_file_that_is_rotated_while_it_reads(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = writer(tmp_path, opened, limit=4000)
    file.write(numbered(0))
    reading = follower(tmp_path, opened)
    look, more = reading._next, iter(range(1, 100))

    def meanwhile() -> int:
        for n in more:
            file.write(numbered(n))
        return look()

    monkeypatch.setattr(reading, "_next", meanwhile)
    assert list(reading.lines()) == [numbered(n).rstrip(b"\n") for n in range(100)]
    assert (tmp_path / BEFORE).exists()


def test_a_follower_that_slept_through_rotations_goes_on_with_the_oldest_there_is(
    tmp_path: Path, opened: Opened
) -> None:
    file = writer(tmp_path, opened, limit=4000)
    reading = follower(tmp_path, opened)
    file.write(numbered(0))
    assert list(reading.lines()) == [numbered(0).rstrip(b"\n")]
    for n in range(1, 1000):
        file.write(numbered(n))
    kept = [*(tmp_path / BEFORE).read_bytes().splitlines(), *(tmp_path / LOG).read_bytes().splitlines()]
    late = list(reading.lines())
    assert late[-len(kept) :] == kept
    assert len(late) == len(set(late))


def test_a_follower_waits_for_the_first_line_and_for_the_end_of_one(tmp_path: Path, opened: Opened) -> None:
    reading = follower(tmp_path, opened)
    assert list(reading.lines()) == []
    (tmp_path / LOG).write_bytes(b"one\nhal")
    assert list(reading.lines()) == [b"one"]
    with open(tmp_path / LOG, "ab") as file:
        file.write(b"f\n")
    assert list(reading.lines()) == [b"half"]
