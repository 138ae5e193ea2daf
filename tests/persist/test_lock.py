"""One writer per journal, whoever dies how; told by real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from persist import DirectoryLock, JournalLocked, read
from tests.persist.building import meaning, open_journal, series

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60

HOLDER = """
import sys
from pathlib import Path
from tests.persist.building import open_journal, transaction
journal, _ = open_journal(Path(sys.argv[1]))
journal.append(transaction(1))
"""

WAITS = 'print("ready", flush=True)\nsys.stdin.read()\n'

FORKS = """
import os
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""


@contextmanager
def process(script: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child that runs the script, and the line with which it says that it is ready."""
    command = [sys.executable, "-c", script, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline().strip()
            assert line, "the child died before it was ready"
            yield child, line
        finally:
            child.kill()
            child.wait(DEADLINE)


def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], DEADLINE)[0]
    finally:
        os.close(descriptor)


def test_second_opener_is_told_who_holds_the_journal(tmp_path: Path) -> None:
    with process(HOLDER + WAITS, tmp_path) as (child, _):
        for _ in range(2):
            with pytest.raises(JournalLocked) as refusal:
                open_journal(tmp_path)
            assert (refusal.value.pid, refusal.value.directory) == (child.pid, str(tmp_path))
        assert meaning(read(tmp_path)) == series(1), "reading needs no lock"


def test_lock_goes_with_its_holder(tmp_path: Path) -> None:
    with process(HOLDER + WAITS, tmp_path) as (child, _):
        child.send_signal(signal.SIGKILL)
        child.wait(DEADLINE)
        journal, recovered = open_journal(tmp_path)
        assert meaning(recovered) == series(1)
        journal.close()


def test_lock_is_not_inherited_by_a_forked_grandchild(tmp_path: Path) -> None:
    with process(HOLDER + FORKS, tmp_path) as (child, line):
        grandchild = int(line)
        with pytest.raises(JournalLocked) as refusal:
            open_journal(tmp_path)
        assert refusal.value.pid == child.pid
        child.send_signal(signal.SIGKILL)
        child.wait(DEADLINE)
        os.kill(grandchild, 0)  # it lives, and has all of the holder's descriptors
        journal, _ = open_journal(tmp_path)
        journal.close()
        os.kill(grandchild, signal.SIGKILL)
        gone(grandchild)


def test_same_process_cannot_open_twice_and_the_attempt_does_not_drop_the_lock(tmp_path: Path) -> None:
    """POSIX locks do not exclude within a process, and closing any descriptor of the file would drop them."""
    journal, _ = open_journal(tmp_path)
    with pytest.raises(JournalLocked) as refusal:
        open_journal(tmp_path)
    assert refusal.value.pid == os.getpid()
    script = HOLDER.replace("journal, _", "from persist import JournalLocked\ntry:\n    journal, _", 1).replace(
        "journal.append(transaction(1))", "except JournalLocked as refusal:\n    print(refusal.pid, flush=True)"
    )
    with process(script, tmp_path) as (_, line):
        assert int(line) == os.getpid()
    journal.close()
    journal, _ = open_journal(tmp_path)
    journal.close()


def test_forked_child_cannot_use_its_parents_journal(tmp_path: Path) -> None:
    script = """
import os
from persist import JournalClosed
child = os.fork()
if child == 0:
    try:
        journal.append(transaction(2))
    except JournalClosed as refusal:
        print(refusal.reason, flush=True)
    journal.close()
    os._exit(0)
os.waitpid(child, 0)
journal.append(transaction(2))
print("ready", flush=True)
sys.stdin.read()
"""
    with process(HOLDER + script, tmp_path) as (child, line):
        assert line == "it belongs to the process that this one was forked from"
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(JournalLocked):
            open_journal(tmp_path)
    assert meaning(read(tmp_path)) == series(2)


def test_lock_file_of_a_full_disk_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process number is only for the message: that it cannot be written does not matter."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    descriptor = os.open(tmp_path, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr("persist.lock.os.pwrite", full)
        lock = DirectoryLock(str(tmp_path), descriptor)
    assert (tmp_path / "lock").read_bytes() == b""
    with pytest.raises(JournalLocked):
        DirectoryLock(str(tmp_path), descriptor)
    lock.release()
    os.close(descriptor)
