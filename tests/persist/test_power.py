"""At level "power" nothing is said to be durable before the calls that make it so, in that order."""

from __future__ import annotations

from pathlib import Path

from persist.files import Directory, File
from tests.persist.building import after, filled, open_journal, path_of, transaction

Calls = list[tuple[str, str]]


class RecordingFile(File):
    def __init__(self, file: File, calls: Calls) -> None:
        super().__init__(file._descriptor, file.path)
        self.calls = calls

    def _record(self, call: str) -> None:
        self.calls.append((call, Path(self.path).name.lstrip("0")))

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        self._record("write")
        return super().write(data, offset)

    def fdatasync(self) -> None:
        self._record("fdatasync")

    def truncate(self, size: int) -> None:
        self._record("truncate")
        super().truncate(size)


class RecordingDirectory(Directory):
    def __init__(self, path: str, calls: Calls) -> None:
        super().__init__(path)
        self.calls = calls

    def create(self, name: str) -> File:
        self.calls.append(("create", name.lstrip("0")))
        return RecordingFile(super().create(name), self.calls)

    def open(self, name: str, *, writable: bool = False) -> File:
        return RecordingFile(super().open(name, writable=writable), self.calls)

    def rename(self, old: str, new: str) -> None:
        self.calls.append(("rename", f"{old} {new.lstrip('0')}"))
        super().rename(old, new)

    def unlink(self, name: str) -> None:
        self.calls.append(("unlink", name.lstrip("0")))
        super().unlink(name)

    def sync(self) -> None:
        self.calls.append(("sync", "directory"))

    def anchor(self) -> None:
        self.calls.append(("sync", "parent"))


SYNC_NAMES = [("sync", "directory")]


def begun(number: int) -> Calls:
    """Head, then name."""
    return [("write", "spare"), ("fdatasync", "spare"), ("rename", f"spare {number}.journal"), *SYNC_NAMES]


SPARE = ("create", "spare")  # space for the head of the segment after it


def test_new_segment_and_its_name_are_synced_before_it_is_used(tmp_path: Path) -> None:
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    assert calls == [*SYNC_NAMES, ("sync", "parent"), SPARE, *begun(1), SPARE]
    journal.close()


def test_appends_are_synced_together_and_only_when_there_is_something(tmp_path: Path) -> None:
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    calls.clear()
    journal.sync()
    for number in (1, 2, 3):
        journal.append(transaction(number))
    journal.sync()
    journal.sync()
    assert calls == [("write", "1.journal")] * 3 + [("fdatasync", "1.journal")]
    journal.close()


def test_old_segment_is_synced_before_the_next_one_exists(tmp_path: Path) -> None:
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    journal.append(transaction(1))
    calls.clear()
    journal.rotate(after(1))
    assert calls == [("fdatasync", "1.journal"), *begun(2), ("truncate", "1.journal"), SPARE]
    calls.clear()
    journal.rotate(after(1))
    assert calls == [*begun(3), ("truncate", "2.journal"), SPARE]
    journal.close()


def test_recovered_content_is_synced_and_the_torn_tail_cut_before_anything_is_written(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(3))
    journal.close()
    with path_of(tmp_path, 2).open("ab") as file:
        file.write(b"torn")
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    recovery = [("fdatasync", "1.journal"), ("truncate", "2.journal"), ("fdatasync", "2.journal")]
    assert calls == [*recovery, *SYNC_NAMES, ("sync", "parent"), *begun(3), SPARE]
    journal.close()


def test_unfinished_segment_is_gone_for_good_before_its_number_is_used_again(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path_of(tmp_path, 2).write_bytes(b"")
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    assert calls[:3] == [("unlink", "2.journal"), ("fdatasync", "1.journal"), ("sync", "directory")]
    assert calls[4:] == [*begun(2), SPARE]
    journal.close()


def test_segments_are_deleted_one_by_one(tmp_path: Path) -> None:
    """Were the second gone and the first back after a power loss, the journal would have a hole."""
    calls: Calls = []
    journal, _ = open_journal(tmp_path, level="power", files=lambda path: RecordingDirectory(path, calls))
    for number in (1, 2):
        journal.append(transaction(number))
        journal.rotate(after(number))
    calls.clear()
    assert journal.trim({0: 2}) == 2
    assert calls == [("unlink", "1.journal"), *SYNC_NAMES, ("unlink", "2.journal"), *SYNC_NAMES]
    journal.close()


def test_level_process_syncs_only_when_asked(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    calls: Calls = []
    journal, _ = open_journal(tmp_path, files=lambda path: RecordingDirectory(path, calls))
    journal.append(transaction(2))
    journal.rotate(after(2))
    journal.trim({0: 2})
    assert not [call for call, _ in calls if "sync" in call]
    journal.append(transaction(3))
    journal.sync()
    assert calls[-1] == ("fdatasync", "3.journal")
    journal.close()


def test_parents_of_a_new_directory_are_made_durable(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "a" / "b" / "c")
    assert directory._made_in == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    directory.anchor()
    directory.close()
    directory = Directory(tmp_path / "a" / "b" / "c")
    assert directory._made_in == []
    directory.anchor()
    directory.close()
