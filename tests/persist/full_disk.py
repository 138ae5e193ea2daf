"""What test_disk_full does on a file system that is really full: run as a program, in a directory of 4 MiB.

python -m tests.persist.full_disk DIRECTORY          everything; fails with an AssertionError
python -m tests.persist.full_disk DIRECTORY fill     fill the journal, say how far that went, wait to be killed
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from persist import Journal, JournalFull, Send, Transaction, check, read
from persist.writer import RESERVE_BYTES
from tests.persist.building import after, meaning, open_journal, series, transaction

BULK = bytes(10_000)


def sending(number: int) -> Transaction:
    made = transaction(number)
    made.sends = [Send(0, 1, 0, [(0, number)], BULK)]
    return made


def send_until_full(journal: Journal, number: int) -> int:
    """The last number that found room. What finds none changes nothing and is refused again."""
    while True:
        try:
            journal.append(sending(number + 1))
        except JournalFull:
            break
        number += 1
    position, before = journal.position, contents(Path(journal._directory.path))
    for _ in range(3):
        with pytest.raises(JournalFull) as full:
            journal.append(sending(number + 1))
        assert full.value.needed > len(BULK)
    assert journal.full
    assert (journal.position, contents(Path(journal._directory.path))) == (position, before)
    return number


def consume_until_full(journal: Journal, number: int) -> int:
    """Transactions without sends, as many as find room; how many bytes that were."""
    begin = journal.position
    try:
        while True:
            journal.append(Transaction(consumed=[(0, number)], keys=[(1, b"key %d" % (number % 3), b"%d" % number)]))
    except JournalFull:
        return journal.position - begin


def contents(directory: Path) -> dict[str, bytes]:
    """Without the zeros that are only reserved."""
    return {path.name: path.read_bytes().rstrip(b"\0") for path in directory.iterdir() if path.name != "lock"}


def stuff(directory: Path) -> Path:
    """Take what is left of the disk, to the last byte."""
    filler = directory.parent / "filler"
    size = 1 << 20
    with filler.open("ab", buffering=0) as file:
        while size:
            try:
                if not file.write(bytes(size)):
                    break
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return filler


def fill(directory: Path) -> None:
    journal, _ = open_journal(directory)
    number = send_until_full(journal, 0)
    stuff(directory)
    used = consume_until_full(journal, number)
    assert used > 0.4 * RESERVE_BYTES, f"the reserve had only {used} bytes"
    print(number, flush=True)
    signal.pause()


def everything(directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.persist.full_disk", str(directory), "fill"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        child.kill()
    assert line, "see above"
    number = int(line)
    filler = directory.parent / "filler"
    assert number > 100

    # Recovery needs no room: the spare becomes the next segment.
    assert os.statvfs(directory).f_bavail == 0
    assert meaning(read(directory)) == series(number)
    journal, recovered = open_journal(directory)
    assert meaning(recovered) == series(number)
    stuff(directory)  # with what it has given back
    assert len(list(journal.sends(0, 0, 0))) == number
    number = send_until_full(journal, number)  # what consumes may have half of the reserve

    # Whoever acknowledges frees the room that sending needs.
    assert not journal.relieves({0: number - 1})
    assert journal.relieves({0: number})
    assert journal.trim({0: number}) == 1
    assert send_until_full(journal, number) > number + 100
    number = journal._assigned[0]
    stuff(directory)
    before = contents(directory)
    with pytest.raises(JournalFull):
        journal.rotate(after(number, states=[(0, bytes(RESERVE_BYTES + 5000))]))
    assert contents(directory) == before
    assert journal.relieves({0: number})
    journal.rotate(after(number, [(0, number)]))
    assert journal.trim({0: number}) == 1
    journal.append(sending(number + 1))
    journal.rotate(after(number + 1, states=[(0, bytes(RESERVE_BYTES + 5000))]))
    journal.close()
    assert not check(directory).faults

    # Without spare and room nothing can be opened, and nothing is changed.
    (directory / "spare").unlink()
    stuff(directory)
    before = contents(directory)
    with pytest.raises(JournalFull):
        open_journal(directory)
    after_that = contents(directory)
    assert not after_that.pop("spare", b"")
    assert after_that == before
    filler.unlink()
    journal, recovered = open_journal(directory)
    assert recovered.assigned["left"] == number + 1
    journal.close()


if __name__ == "__main__":
    (fill if sys.argv[2:] else everything)(Path(sys.argv[1]))
