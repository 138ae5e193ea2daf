"""Segments: really reserved, private to the user, tracked by nobody, and gone only when somebody says so."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import pytest

import bus.segment
from bus import Segment, SegmentExists, SegmentMissing, SharedMemoryFull, remove_stale
from tests.bus.implementations import ROOT, environment, new_segment, python, segment_name

SHM = Path("/dev/shm")
needs_shm = pytest.mark.skipif(not SHM.is_dir(), reason="this system does not show its segments")


def test_what_one_writes_the_other_reads_under_the_same_name() -> None:
    with new_segment(5000) as segment:
        other = Segment.attach(segment.name)
        segment.buf[4999] = 7
        assert other.buf[4999] == 7
        assert (other.name, other.size >= 5000) == (segment.name, True)
        assert bytes(segment.buf[:10]) == bytes(10)
        other.close()


@needs_shm
def test_a_segment_belongs_to_its_user_alone_and_its_space_is_reserved() -> None:
    with new_segment(1_000_000) as segment:
        status = (SHM / segment.name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_blocks * 512 >= 1_000_000


def test_an_existing_segment_is_not_taken_over() -> None:
    with new_segment(4096) as segment:
        segment.buf[0] = 9
        with pytest.raises(SegmentExists) as caught:
            Segment.create(segment.name, 4096)
        assert caught.value.name == segment.name
        assert Segment.attach(segment.name).buf[0] == 9


def test_a_missing_segment_is_named() -> None:
    name = segment_name()
    with pytest.raises(SegmentMissing, match=name) as caught:
        Segment.attach(name)
    assert caught.value.name == name


@needs_shm
def test_a_failed_attach_removes_nothing() -> None:
    """Its creator is between making it and giving it a size."""
    path = SHM / segment_name()
    path.touch(0o600)
    try:
        with pytest.raises(SegmentMissing):
            Segment.attach(path.name)
        assert path.exists()
    finally:
        path.unlink()


@needs_shm
def test_an_attach_that_cannot_be_mapped_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_segment(4096) as segment:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOMEM, "no mapping")

        monkeypatch.setattr("multiprocessing.shared_memory.mmap.mmap", refuse)
        with pytest.raises(OSError, match="no mapping"):
            Segment.attach(segment.name)
        assert (SHM / segment.name).exists()
        with pytest.raises(OSError, match="no mapping"):
            Segment.create(name := segment_name(), 4096)
        assert not (SHM / name).exists()


@pytest.mark.parametrize("size", [0, -1, 2**63])
def test_an_impossible_size_leaves_nothing(size: int) -> None:
    name = segment_name()
    with pytest.raises(ValueError, match=name):
        Segment.create(name, size)
    with pytest.raises(SegmentMissing):
        Segment.attach(name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_a_clear_error_and_leaves_nothing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    name = segment_name()
    with pytest.raises(SharedMemoryFull, match=f"{name}.*needs 70000 bytes") as caught:
        Segment.create(name, 70000)
    assert (caught.value.name, caught.value.size) == (name, 70000)
    with pytest.raises(SegmentMissing):
        Segment.attach(name)


def test_another_failure_to_reserve_is_passed_on_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    name = segment_name()
    with pytest.raises(OSError, match="broken"):
        Segment.create(name, 4096)
    with pytest.raises(SegmentMissing):
        Segment.attach(name)


FULL = """
import os, sys
from bus import Segment, SharedMemoryFull
small = Segment.create("ringleader-small", 16384)
try:
    Segment.create("ringleader-large", 65536)
except SharedMemoryFull as error:
    assert (error.name, error.size) == ("ringleader-large", 65536), error.args
    assert 0 < error.available < 65536, error.available
else:
    sys.exit("a full /dev/shm went unnoticed")
assert os.listdir("/dev/shm") == ["ringleader-small"], os.listdir("/dev/shm")
small.buf[:] = b"x" * 16384
small.unlink()
small.close()
print("refused and clean")
"""


@needs_shm
def test_a_full_dev_shm_is_a_clear_error_and_leaves_nothing() -> None:
    """In a mount namespace of its own: the real /dev/shm is not touched."""
    unshare = shutil.which("unshare")
    private = [unshare or "unshare", "--mount", "--propagation", "private"]
    if unshare is None or subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a mount namespace (root)")
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        [*private, "sh", "-c", script, "sh", sys.executable, "-c", FULL],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused and clean\n", "")


def test_neither_creating_nor_attaching_registers_with_the_resource_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(resource_tracker, "register", lambda *what: told.append(what))
    monkeypatch.setattr(resource_tracker, "unregister", lambda *what: told.append(what))
    with new_segment(4096) as segment:
        Segment.attach(segment.name).close()
    assert told == []


def test_what_other_threads_make_meanwhile_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(resource_tracker, "register", lambda *what: told.append(what))
    monkeypatch.setattr(resource_tracker, "unregister", lambda *what: told.append(what))

    def use_tracker() -> None:
        vars(shared_memory)["resource_tracker"].register("/other", "shared_memory")
        vars(shared_memory)["resource_tracker"].unregister("/other", "shared_memory")

    with bus.segment._untracked():
        use_tracker()
        assert told == []
        thread = threading.Thread(target=use_tracker)
        thread.start()
        thread.join()
        assert told == [("/other", "shared_memory")] * 2
    assert vars(shared_memory)["resource_tracker"] is resource_tracker


ATTACH = """
import sys
from multiprocessing import resource_tracker
from bus import Segment
resource_tracker.ensure_running()
segment = Segment.attach(sys.argv[1])
print(bytes(segment.buf[:5]).decode())
"""


def test_a_segment_outlives_a_process_that_attached_and_its_resource_tracker() -> None:
    with new_segment(4096) as segment:
        segment.buf[:5] = b"alive"
        done = python("-c", ATTACH, segment.name)  # returns when its tracker, which holds stderr, is gone, too
        assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
        again = Segment.attach(segment.name)
        assert bytes(again.buf[:5]) == b"alive"
        again.close()


def test_closing_and_unlinking_twice_is_fine_and_a_closed_segment_is_of_no_use() -> None:
    segment = Segment.create(segment_name(), 4096)
    other = Segment.attach(segment.name)
    for _ in range(2):
        segment.unlink()
        other.unlink()
        segment.close()
    assert len(other.buf) == 4096, "the memory goes with its last mapping"
    other.close()
    with pytest.raises(ValueError, match="is closed"):
        segment.buf


def test_a_live_view_refuses_the_close_which_can_then_be_repeated() -> None:
    with new_segment(4096) as segment:
        view = segment.buf[10:20]
        with pytest.raises(BufferError):
            segment.close()
        view[0] = 1
        view.release()
        segment.close()


def test_a_forgotten_segment_with_a_live_view_is_quiet() -> None:
    """Warnings are errors here: an exception in a finalizer would fail this test."""
    segment = Segment.create(segment_name(), 4096)
    segment.unlink()
    view = segment.buf[:10]
    del segment
    view[0] = 1


@needs_shm
def test_segments_cost_one_descriptor_each_and_give_it_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    segments = [Segment.create(segment_name(), 4096) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) <= before + 10
    for segment in segments:
        segment.close()
        segment.unlink()
    assert len(os.listdir("/proc/self/fd")) == before


@needs_shm
def test_stale_segments_are_removed_by_prefix_and_named() -> None:
    prefix = segment_name()
    mine = [Segment.create(f"{prefix}-{n}", 4096) for n in range(3)]
    with new_segment(4096, f"{segment_name()}-not-{prefix}-0") as other:
        (SHM / f"{prefix}-link").symlink_to(SHM / other.name)
        try:
            assert remove_stale(f"{prefix}-") == [segment.name for segment in mine]
            assert remove_stale(f"{prefix}-") == []
            assert Segment.attach(other.name).size == 4096
        finally:
            (SHM / f"{prefix}-link").unlink()
    for segment in mine:
        segment.close()
        with pytest.raises(SegmentMissing):
            Segment.attach(segment.name)


def test_an_empty_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="everybody"):
        remove_stale("")


@needs_shm
def test_other_users_segments_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_segment(4096) as segment:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        assert remove_stale(segment.name) == []
        monkeypatch.undo()
        assert remove_stale(segment.name) == [segment.name]
