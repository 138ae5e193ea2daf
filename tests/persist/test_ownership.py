"""Directories of another user: when they count, what counts in them, and how they change hands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from persist import JournalLocked, UnsafeDirectory
from persist.files import Directory
from persist.lock import DirectoryLock
from persist.ownership import hand_over

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have directories of other users")

THEIRS, NEXT, STRANGER = 54_321, 54_322, 54_323


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Of the user THEIRS, in a folder of ours that nobody else may enter."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    path = private / "theirs"
    path.mkdir(mode=0o700)
    (path / "file").write_text("text")
    for one in (path, path / "file"):
        os.chown(one, THEIRS, THEIRS)
    return path


def give(path: Path, uid: int, *known: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        hand_over(descriptor, str(path), uid, uid, known)
    finally:
        os.close(descriptor)


def all_owners(path: Path) -> set[int]:
    return {one.lstat().st_uid for one in (path, *path.iterdir())}


def test_one_that_only_we_can_have_put_there_counts(theirs: Path) -> None:
    directory = Directory(theirs, create=False)
    file = directory.open("file")
    assert file.read(4, 0) == b"text"
    file.close()
    directory.close()


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o704, 0o755])
def test_one_where_others_come_near_does_not(theirs: Path, mode: int) -> None:
    theirs.parent.chmod(mode)
    with pytest.raises(UnsafeDirectory, match=f"belongs to user {THEIRS}"):
        Directory(theirs, create=False)


def test_one_in_a_folder_of_its_owner_does_not(theirs: Path) -> None:
    os.chown(theirs.parent, THEIRS, 0)
    with pytest.raises(UnsafeDirectory, match=f"belongs to user {THEIRS}"):
        Directory(theirs, create=False)


def test_one_that_others_may_write_to_does_not(theirs: Path) -> None:
    theirs.chmod(0o770)
    with pytest.raises(UnsafeDirectory, match="0770"):
        Directory(theirs, create=False)


def test_what_we_make_there_is_theirs(theirs: Path) -> None:
    directory = Directory(theirs, create=False)
    directory.create("new").close()
    DirectoryLock(str(theirs), directory.descriptor).release()
    directory.close()
    assert all_owners(theirs) == {THEIRS}
    assert (theirs / "new").stat().st_mode & 0o777 == 0o600


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_link_to_their_own(path: Path) -> None:
    target = path.parent.with_name("elsewhere")
    target.touch()
    os.chown(target, THEIRS, 0)
    path.symlink_to(target)


def a_hard_link(path: Path) -> None:
    os.link(path.with_name("file"), path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)
    os.chown(path, THEIRS, 0)


def a_file_of_ours(path: Path) -> None:
    path.write_text("moved here")


def a_file_of_a_stranger(path: Path) -> None:
    path.touch()
    os.chown(path, STRANGER, 0)


Plant = Callable[[Path], None]
PLANTED = pytest.mark.parametrize(
    "plant",
    [a_link, a_link_to_their_own, a_hard_link, a_pipe, a_file_of_ours, a_file_of_a_stranger],
    ids=lambda plant: plant.__name__,
)


@PLANTED
def test_only_a_plain_file_of_their_own_is_opened(theirs: Path, plant: Plant) -> None:
    plant(theirs / "lock")
    directory = Directory(theirs, create=False)
    for writable in (False, True):
        with pytest.raises((UnsafeDirectory, OSError)):
            directory.open("lock", writable=writable)
    with pytest.raises((UnsafeDirectory, OSError)) as refused:
        DirectoryLock(str(theirs), directory.descriptor)
    assert not isinstance(refused.value, JournalLocked)
    directory.close()


@PLANTED
def test_nothing_else_changes_hands(theirs: Path, plant: Plant) -> None:
    plant(theirs / "planted")
    before = (theirs / "planted").lstat().st_uid
    with pytest.raises(UnsafeDirectory):
        give(theirs, NEXT, THEIRS)
    assert (theirs / "planted").lstat().st_uid == before
    assert Path("/etc/passwd").stat().st_uid == 0


def test_all_of_it_changes_hands_and_back(theirs: Path) -> None:
    give(theirs, NEXT, THEIRS)
    assert all_owners(theirs) == {NEXT}
    give(theirs, 0, NEXT)
    assert all_owners(theirs) == {0}
    give(theirs, THEIRS, 0)
    assert all_owners(theirs) == {THEIRS}


def test_one_of_a_stranger_does_not_change_hands(theirs: Path) -> None:
    with pytest.raises(UnsafeDirectory, match=f"belongs to user {THEIRS}"):
        give(theirs, NEXT, STRANGER)
    assert all_owners(theirs) == {THEIRS}


def test_a_crash_in_between_is_seen_through(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fchown, [0]

    def crash(descriptor: int, uid: int, gid: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(descriptor, uid, gid)

    monkeypatch.setattr(os, "fchown", crash)
    with pytest.raises(KeyboardInterrupt):
        give(theirs, NEXT, THEIRS)
    monkeypatch.undo()
    assert all_owners(theirs) == {THEIRS, NEXT}
    (theirs / "made by root").touch()  # and there it stopped
    give(theirs, STRANGER, THEIRS, NEXT)
    assert all_owners(theirs) == {STRANGER}


def test_a_directory_is_made_durable_once_and_needs_nothing_above_it_then(theirs: Path) -> None:
    directory = Directory(theirs, create=False)
    directory.anchor()
    theirs.parent.rename(theirs.parent.with_name("moved"))
    directory.anchor()
    directory.close()
