"""Power fails at every operation of a journal's life: nothing synced is lost, and nothing is ever misread.

Together these tests judge more than 14,000 different states; each says how many there are of it at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from persist import Journal
from persist import format as layout
from persist import journal as journal_module
from persist import reader as reader_module
from persist import writer as writer_module
from persist.format import segment_name
from persist.retention import Retain
from persist.writer import Writer
from tests.persist.building import snapshots
from tests.persist.power_lives import POWER, PROCESS, Life, Trial, Violation, numbered, opened, script
from tests.persist.power_loss import PAGE, SECTOR, Disk, PowerDirectory, PowerFile


class NoLock:
    """One process at a time is what these tests see to themselves."""

    def __init__(self, path: str, descriptor: int) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "DirectoryLock", NoLock)
    monkeypatch.setattr(writer_module, "AHEAD_BYTES", 2048)


@pytest.mark.parametrize("name", POWER)
def test_nothing_synced_is_lost_and_no_power_loss_makes_recovery_refuse(name: str) -> None:
    trial = Trial(most=60).of(Life("power", POWER[name]))
    assert trial.states >= 500
    assert trial.refused == 0
    assert trial.cut >= 150


@pytest.mark.parametrize("seed", range(12))
def test_neither_in_any_other_life(seed: int) -> None:
    trial = Trial(seed=seed).of(Life("power", script("power", seed, 24)))
    assert trial.states >= 350
    assert trial.refused == 0


@pytest.mark.parametrize("retain", [Retain(bytes=3000), Retain(age=1e9)], ids=["bytes", "age"])
def test_retained_history_changes_nothing_of_that(retain: Retain) -> None:
    trial = Trial(seed=1).of(Life("power", POWER["trimming"], retain=retain))
    assert trial.states >= 400
    assert trial.refused == 0


@pytest.mark.parametrize("begun", [None, 0, 20, 80], ids=["torn tail", "empty", "header cut", "snapshot cut"])
def test_what_older_software_left_half_done_is_cut_off_for_good(begun: int | None) -> None:
    """It appended without space reserved, and gave a segment its name before its head."""
    before = Life("process", "open append append append close")
    before.live(Random(0))
    first = before.disk.contents()[segment_name(1)]
    first = layout.encode_segment_header(1, 0, version=1) + first[32:]
    second = layout.encode_segment_header(2, len(first) - 32, version=1) + first[32:80]
    left = {segment_name(1): first + b"torn off"}
    if begun is not None:
        left = {segment_name(1): first, segment_name(2): second[:begun]}
    life = Life("power", "open append sync append rotate append sync close open append", Disk.holding(left))
    life.promises = replace(before.promises, safe=3)
    trial = Trial(seed=2).of(life)
    assert trial.states >= 150
    assert trial.refused == 0


@pytest.mark.parametrize("name", PROCESS)
def test_at_level_process_nothing_is_lost_by_deaths_and_nothing_is_misread_after_power_loss(name: str) -> None:
    trial = Trial(most=40).of(Life("process", PROCESS[name]))
    assert trial.states >= 600
    assert trial.refused > 50


@pytest.mark.parametrize("seed", range(4))
def test_neither_in_any_other_life_at_level_process(seed: int) -> None:
    trial = Trial(seed=seed).of(Life("process", script("process", seed, 24)))
    assert trial.states >= 750


# ------------------------------------------------------------------------------------- what was on the disk before that


def image(epoch: int, moved: int) -> bytes:
    """A segment of another journal; the frames behind its snapshot are from `moved` bytes further on."""
    data = layout.encode_segment_header(2, 0)
    buffer = bytearray()
    encode = vars(writer_module)["encode_frame"]  # as it is now: a test may have patched it
    begun = snapshots(level="power")(None, epoch)
    begun.time_ns = 1
    layout.encode_frame(buffer, layout.SNAPSHOT, epoch, 0, begun)
    data += buffer
    for number in range(1, 9):
        encode(buffer, layout.TRANSACTION, epoch, len(data) - 32 + moved, numbered(number))
        data += buffer
    return data


def leftovers(found: bytes) -> Callable[[Random, int], bytes]:
    """It stands, as a whole or but for its first blocks, where there are files now."""

    def stale(random: Random, size: int) -> bytes:
        return found[random.choice((0, 0, SECTOR, PAGE)) :][:size].ljust(size, b"\0")

    return stale


@pytest.mark.parametrize(("epoch", "moved"), [(1, 8192), (7, 0)], ids=["position", "epoch"])
@pytest.mark.parametrize("level", ["power", "process"])
def test_what_another_file_left_on_the_disk_is_never_taken_for_a_frame(level: str, epoch: int, moved: int) -> None:
    """Some file systems show it, after a power loss, where space was reserved and not written to. One thing of it is
    another: the epoch, or the part of the journal's life."""
    trial = Trial(most=20, stale=leftovers(image(epoch, moved)))
    trial.of(Life(level, "open append append append sync append rotate append killed open append sync append"))
    assert trial.states >= 300


@pytest.mark.parametrize("wiped", [True, False])
def test_what_a_crash_left_in_the_spare_is_wiped(wiped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stand behind the frames like a torn tail."""
    if not wiped:
        monkeypatch.setattr(journal_module, "wipe_spare", lambda directory, most: None)
    disk = Disk.holding({"spare": b"\x01" * 600})
    journal, _ = opened(disk, "power")
    journal.append(numbered(1))
    _, recovered = opened(disk, "power")
    assert (recovered.torn is None) is wiped
    journal.close()


# ------------------------------------------------------------------------------------------------ every part is needed


def skips_fdatasync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PowerFile, "fdatasync", lambda self: None)


def skips_directory_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PowerDirectory, "sync", lambda self: None)


def skips_sync_of_heads(patch: pytest.MonkeyPatch) -> None:
    """The name of a segment is durable, and what it is the name of is not."""
    put = Writer._put

    def synced(self: Writer, data: bytearray, size: int, offset: int) -> None:
        put(self, data, size, offset)
        self.synced = self.synced or offset == 0

    patch.setattr(Writer, "_put", synced)


def skips_sync_of_what_was_recovered(patch: pytest.MonkeyPatch) -> None:
    cut = Journal._cut

    def unsynced(self: Journal, found: Any, recovered: Any) -> None:
        durable, self._durable = self._durable, False
        cut(self, found, recovered)
        self._durable = durable

    patch.setattr(Journal, "_cut", unsynced)


def cuts_late(patch: pytest.MonkeyPatch) -> None:
    """The torn tail, only when the next segment is there."""
    cut, begin = Journal._cut, Journal._begin
    late: list[Any] = []

    def begin_first(self: Journal, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        while late:
            cut(self, *late.pop())

    patch.setattr(Journal, "_cut", lambda self, *given: late.append(given))
    patch.setattr(Journal, "_begin", begin_first)


def skips_checksums(patch: pytest.MonkeyPatch) -> None:
    for module in (layout, reader_module):
        patch.setattr(module, "crc32", lambda data, value=0: 0)


def ignores_positions(patch: pytest.MonkeyPatch) -> None:
    encode = layout.encode_frame
    for module in (layout, reader_module):
        patch.setattr(module, "seed", lambda position: 0)
    patch.setattr(writer_module, "encode_frame", lambda b, t, e, position, r, loose=0: encode(b, t, e, 0, r, loose))


def claims_that_all_is_synced(patch: pytest.MonkeyPatch) -> None:
    encode = layout.encode_frame
    patch.setattr(writer_module, "encode_frame", lambda b, t, e, p, r, loose=0: encode(b, t, e, p, r, 0))


def trims_backwards(patch: pytest.MonkeyPatch) -> None:
    trim, unlink, sync = Journal.trim, PowerDirectory.unlink, PowerDirectory.sync

    def backwards(self: Journal, acked: Any) -> int:
        names: list[str] = []
        directory: Any = self._directory
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(PowerDirectory, "unlink", lambda self, name: names.append(name))
            inner.setattr(PowerDirectory, "sync", lambda self: None)
            count = trim(self, acked)
        for name in reversed(names):
            unlink(directory, name)
            sync(directory)
        return count

    patch.setattr(Journal, "trim", backwards)


def trims_together(patch: pytest.MonkeyPatch) -> None:
    """One sync for several names."""
    trim = Journal.trim

    def together(self: Journal, acked: Any) -> int:
        durable, self._durable = self._durable, False
        count = trim(self, acked)
        self._durable = durable
        if durable and count:
            self._directory.sync()
        return count

    patch.setattr(Journal, "trim", together)


SABOTAGE = [
    skips_fdatasync,
    skips_directory_sync,
    skips_sync_of_heads,
    skips_sync_of_what_was_recovered,
    cuts_late,
    skips_checksums,
    ignores_positions,
    claims_that_all_is_synced,
    trims_backwards,
    trims_together,
]


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_without_it_something_would_be_lost(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    stale = leftovers(image(1, 8192)) if sabotage is ignores_positions else None
    with pytest.raises(Violation):
        _every_life(stale)


def _every_life(stale: Callable[[Random, int], bytes] | None = None) -> None:
    for life in POWER.values():
        Trial(most=20, stale=stale).of(Life("power", life))


def test_head_that_is_synced_only_after_its_renaming_would_be_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not needed, and still done: the reader forgives a last segment without a head."""
    put, sync = Writer._put, PowerDirectory.sync

    def later(self: Writer, data: bytearray, size: int, offset: int) -> None:
        put(self, data, size, offset)
        if offset == 0:
            waiting.append(self)
            self.synced = True

    def both(self: PowerDirectory) -> None:
        sync(self)
        while waiting:
            waiting.pop().flush()

    waiting: list[Writer] = []
    monkeypatch.setattr(Writer, "_put", later)
    monkeypatch.setattr(PowerDirectory, "sync", both)
    _every_life()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
@pytest.mark.parametrize("level", ["power", "process"])
def test_long_lives(level: str, seed: int) -> None:
    trial = Trial(seed=seed, most=80, nested=0.1).of(Life(level, script(level, seed, 40)))
    assert trial.states > 1000
