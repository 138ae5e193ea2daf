"""Repair: what it does to every kind of damage, what it refuses, and that the original is always kept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from persist import (
    DamagedJournal,
    DeadLetter,
    DirectoryLock,
    Inbound,
    JournalLocked,
    JournalPoisoned,
    Kind,
    NewerFormat,
    NotAJournal,
    Recovered,
    Send,
    Transaction,
    check,
    read,
)
from persist.files import Directory, File
from persist.format import SEGMENT_HEADER, TRANSACTION, encode_frame, encode_segment_header
from persist.history import LOST, Record, replay
from persist.history_errors import CannotRepair, DiscardNeeded
from persist.repair import Elsewhere, Repair, repair
from persist.salvage import behind, examine
from persist.setting_aside import MARKER

from .building import PEERS, after, filled, in_segments, meaning, open_journal, path_of, series, transaction

ROOT = Path(__file__).parents[2]

Files = dict[str, bytes]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def files(directory: Path | str) -> Files:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.name != "lock"}


def restore(directory: Path, content: Files) -> None:
    for path in directory.iterdir():
        if path.name != "lock":
            path.unlink()
    for name, data in content.items():
        (directory / name).write_bytes(data)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x41
    path.write_bytes(data)


def first_position(directory: Path, number: int) -> int:
    return int.from_bytes(path_of(directory, number).read_bytes()[24:32], "little")


def frames(directory: Path) -> Iterator[tuple[Path, int, int, int]]:
    """(segment, offset, size of the body, number of the last transaction before it) of every frame."""
    last = 0
    for path in sorted(directory.glob("*.journal")):
        data, offset = path.read_bytes(), SEGMENT_HEADER
        while offset < len(data):
            length = int.from_bytes(data[offset + 4 : offset + 8], "little")
            yield path, offset, length, last
            last += data[offset + 8] == TRANSACTION
            offset += 16 + length + (-length & 7)


def outbox(directory: Path, peer: str = "left") -> tuple[Recovered, list[Send]]:
    """What is pending for a peer, as a worker that starts finds it."""
    opened, recovered = open_journal(directory)
    try:
        from_position = recovered.unacked_from.get(peer)
        index = ("left", "right").index(peer)
        if from_position is None:
            return recovered, []
        return recovered, [send for _, send in opened.sends(index, recovered.acked.get(peer, 0), from_position)]
    finally:
        opened.close()


def assert_link_is_right(directory: Path, had: int, contents: Mapping[int, bytes]) -> int:
    """A receiver that has everything up to `had` gets all that is pending, without a gap, and never one message in
    place of another. Returns the last number."""
    recovered, sends = outbox(directory)
    inbound = Inbound(had)
    for send in sends:
        ((_, first),) = send.edges
        verdict = inbound.admit(first, send.count)
        assert verdict.kind is not Kind.GAP, f"{first} after {inbound.seen}"
        if verdict.kind is Kind.NEW:
            assert not send.flags & LOST
            assert send.body == contents[first]
            inbound.stage(first + send.count - 1)
    assert inbound.seen == recovered.assigned.get("left", 0), "what comes next is new to it"
    return inbound.seen


def assert_sound(directory: Path) -> None:
    report = check(directory)
    assert report.ok, [*report.faults, *report.gaps]
    assert not (directory / MARKER).exists()


# ------------------------------------------------------------------------------------------------------- nothing to do
def test_a_good_journal_is_left_alone(journal: Path) -> None:
    in_segments(journal, 2, 2)
    before = files(journal)
    assert repair(journal) == Repair(str(journal), "nothing")
    assert files(journal) == before
    assert [path.name for path in journal.parent.iterdir()] == ["journal"]


def test_a_torn_tail_is_left_to_recovery(journal: Path) -> None:
    in_segments(journal, 2, 2)
    path = path_of(journal, 2)
    path.write_bytes(path.read_bytes()[:-20])
    before = files(journal)
    found = repair(journal, discard=True)
    assert found.action == "nothing"
    assert found.torn is not None
    assert found.torn.file == str(path)
    path.write_bytes(path.read_bytes()[:40])
    assert repair(journal, discard=True).action == "nothing"
    assert files(journal).keys() == before.keys()


def test_the_beginning_of_a_segment_that_a_crash_left_behind_damage_does_not_stay(journal: Path) -> None:
    in_segments(journal, 3, 3)
    offset = [offset for path, offset, *_ in frames(journal) if path == path_of(journal, 2)][2]
    flip(path_of(journal, 2), offset + 20)
    header = encode_segment_header(3, read_end(journal))
    path_of(journal, 3).write_bytes(header + bytes(500))
    damaged = files(journal)
    found = repair(journal, discard=True)
    assert found.action == "back"
    assert files(found.original) == damaged
    assert_sound(journal)
    assert outbox(journal)[0].watermarks == {"left": 4}


def read_end(directory: Path) -> int:
    """Where the second and last segment ends."""
    return first_position(directory, 2) + path_of(directory, 2).stat().st_size - SEGMENT_HEADER


def test_an_empty_directory_is_a_journal_that_was_never_written(journal: Path) -> None:
    journal.mkdir(mode=0o700)
    assert repair(journal).action == "nothing"


# ------------------------------------------------------------------------------------------------------- every frame
def test_every_damaged_frame_is_refused_or_costs_nothing_and_with_discard_all_before_it_stays(journal: Path) -> None:
    in_segments(journal, 3, 3, 3)
    whole, records = files(journal), list(replay(journal))
    contents = {record.consumed["left"]: record.sends[0].body for record in records}
    actions = []
    for path, offset, length, last in list(frames(journal)):
        for at in (offset, offset + 5, offset + 13, offset + 16 + length // 2):
            restore(journal, whole)
            flip(path, at)
            damaged = files(journal)
            refused = None
            try:
                found = repair(journal)
            except DiscardNeeded as error:
                refused = error
                assert files(journal) == damaged
                found = repair(journal, discard=True)
            if refused is not None:
                assert path.name in refused.damage
                assert refused.losses == found.losses
            assert_sound(journal)
            actions.append((int(path.name[:20]), offset == SEGMENT_HEADER, found.action))
            if found.action == "nothing":
                assert found.torn is not None
                assert last == 8, "the very last frame: a torn tail"
                continue
            assert files(found.original) == damaged
            if found.action == "front":
                assert (path, offset) == (path_of(journal, 1), SEGMENT_HEADER), "the only frame with nothing before it"
                assert found.losses == ("messages 1 to 3 to left, if not received by it",)
                assert meaning(read(journal)) == series(9)
                continue
            kept = list(replay(journal))[:last]
            assert kept == records[:last]
            if refused is None:
                assert meaning(read(journal)) == series(9)
                assert assert_link_is_right(journal, 0, contents) == 9
            else:
                assert (read(journal).states, read(journal).tables) == series(last)[:2]
                assert read(journal).watermarks.get("left", 0) == last
    assert set(actions) == {
        (1, True, "front"),
        (2, True, "forward"),
        (3, True, "back"),
        (1, False, "back"),
        (2, False, "back"),
        (3, False, "back"),
        (3, False, "nothing"),
    }


@pytest.mark.parametrize("had", [0, 2, 4, 7, 9])
def test_with_what_the_receiver_has_no_number_is_used_twice_and_none_is_missed(journal: Path, had: int) -> None:
    in_segments(journal, 3, 3, 3)
    whole, records = files(journal), list(replay(journal))
    contents = {record.consumed["left"]: record.sends[0].body for record in records}
    for path, offset, _, last in list(frames(journal)):
        restore(journal, whole)
        flip(path, offset + 17)
        if path == path_of(journal, 3) and last == 8:
            continue  # a torn tail
        released = min(9, had + 1)
        found = repair(journal, discard=True, elsewhere={"left": Elsewhere(received=had, released=released)})
        assert_sound(journal)
        if found.action == "front" and found.losses:
            assert had < 3, "nothing that the receiver has can be lost"
            continue
        end = assert_link_is_right(journal, had, contents)
        assert end == (9 if found.action != "back" else max(last, had))
        watermark = read(journal).watermarks["left"]
        assert watermark == (9 if found.action != "back" else max(last, released)), "the sender no longer has those"


def test_without_it_the_numbers_go_on_where_they_were(journal: Path) -> None:
    in_segments(journal, 3, 3, 3)
    contents = {record.consumed["left"]: record.sends[0].body for record in replay(journal)}
    offset = next(offset for _, offset, _, last in frames(journal) if last == 4)
    flip(path_of(journal, 2), offset + 20)
    with pytest.raises(DiscardNeeded) as caught:
        repair(journal)
    assert caught.value.losses == (
        caught.value.damage,
        "1 transaction of segment 2",
        "3 transactions of segment 3",
        "what messages 5 to 9 from left did; left must send them again",
        "messages 1 to 5 to left, if not received by it",
    )
    repair(journal, discard=True)
    recovered, sends = outbox(journal)
    assert recovered.assigned["left"] == 9
    assert {send.edges[0][1]: send.body for send in sends} == {n: contents[n] for n in range(6, 10)}
    inbound = Inbound(9)
    assert inbound.admit(10, 1).kind is Kind.NEW, "who had it all goes on"
    assert Inbound(3).admit(6, 1).kind is Kind.GAP, "who had not reports it"
    (lost,) = [run for record in replay(journal) for run in record.sends if run.flags & LOST]
    assert (lost.edges, lost.count, lost.body) == ({"left": 5}, 1, b"")


class Worker:
    """A journal with a random past: two receivers, several incarnations, what they acknowledged, what was trimmed."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.bodies: dict[str, dict[int, tuple[int, bytes]]] = {"left": {}, "right": {}}
        self.assigned, self.acked = {"left": 0, "right": 0}, {"left": 0, "right": 0}
        number = 0
        for _ in range(chance.randint(1, 3)):
            journal, _ = open_journal(directory)
            for _ in range(chance.randint(0, 12)):
                number += 1
                journal.append(self.transaction(number, chance))
                if chance.random() < 0.25:
                    for peer, last in self.assigned.items():
                        self.acked[peer] = chance.randint(self.acked[peer], last)
                    numbers = [[(i, table[p]) for i, p in enumerate(PEERS)] for table in (self.assigned, self.acked)]
                    journal.rotate(after(number, numbers[1], assigned=numbers[0], watermarks=[(0, number)]))
                if chance.random() < 0.1:
                    journal.trim({0: self.acked["left"], 1: self.acked["right"]})
            journal.close()
        self.number = number

    def transaction(self, number: int, chance: random.Random) -> Transaction:
        sends = []
        for run in range(chance.randint(0, 3)):
            peers = chance.choice([["left"], ["right"], ["left", "right"]])
            count, body = chance.randint(1, 3), b"%d.%d" % (number, run)
            sends.append(Send(0, count, 0, [(PEERS.index(peer), self.assigned[peer] + 1) for peer in peers], body))
            for peer in peers:
                self.bodies[peer][self.assigned[peer] + 1] = (count, body)
                self.assigned[peer] += count
        made = transaction(number)
        made.sends = sends
        return made

    def damage(self, chance: random.Random) -> Path:
        path = chance.choice(sorted(self.directory.glob("*.journal")) or [self.directory])
        if path == self.directory:
            return path
        size = path.stat().st_size
        kind = chance.random()
        if kind < 0.1:
            path.unlink()
        elif kind < 0.2:
            path.write_bytes(path.read_bytes()[: chance.randrange(8, size)])
        elif kind < 0.3:
            at = chance.randrange(8, size)
            path.write_bytes(path.read_bytes()[:at] + bytes(size - at))
        else:
            flip(path, chance.randrange(8, size))
        return path


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_damaged_the_links_are_right_afterwards(journal: Path, seed: int) -> None:
    chance = random.Random(seed)
    worker = Worker(journal, chance)
    end = max(journal.glob("*.journal"))
    touched = [worker.damage(chance) for _ in range(chance.choice([1, 1, 2]))]
    damaged = files(journal)
    had = {peer: chance.randint(worker.acked[peer], last) for peer, last in worker.assigned.items()}
    released = chance.randint(0, worker.number)
    known = {peer: Elsewhere(last, released if peer == "left" else 0) for peer, last in had.items()}
    try:
        found = repair(journal, discard=True, elsewhere=known)
    except CannotRepair:
        assert files(journal) == damaged
        assert os.listdir(journal.parent) == ["journal"]
        return
    assert_sound(journal)
    assert files(journal if found.action == "nothing" else found.original) == damaged
    lost = [loss for loss in found.losses if loss.endswith("if not received by it")]
    for peer, last in had.items():
        recovered, sends = outbox(journal, peer)
        inbound = Inbound(last)
        for send in sends:
            first = send.edges[0][1]
            verdict = inbound.admit(first, send.count)
            if verdict.kind is Kind.GAP:
                assert any(f" to {peer}," in loss for loss in lost), f"a silent gap: {first} after {inbound.seen}"
                inbound = Inbound(first - 1)
            elif verdict.kind is Kind.NEW:
                assert (send.count, send.body) == worker.bodies[peer][first]
                inbound.stage(first + send.count - 1)
        if not lost:
            assert inbound.seen == recovered.assigned.get(peer, 0), "what comes next is new to it"
    if not found.losses and end not in touched:  # what is missing at the very end leaves no trace
        assert meaning(read(journal))[:3] == series(worker.number)[:3]


# ------------------------------------------------------------------------------------------------------- front
def acknowledged(journal: Path, acked: int) -> list[Record]:
    """Three segments; the last one knows of what was acknowledged."""
    opened, _ = open_journal(journal)
    for number in range(1, 10):
        opened.append(transaction(number))
        if number in {3, 6}:
            opened.rotate(after(number, [(0, acked if number == 6 else 0)]))
    opened.close()
    return list(replay(journal))


def test_damage_in_history_that_nobody_needs_is_set_aside_without_asking(journal: Path) -> None:
    records = acknowledged(journal, 6)
    for number, offset in ((2, 0), (2, 60), (1, 300), (2, -10)):
        whole = files(journal)
        flip(path_of(journal, number), offset)
        damaged = files(journal)
        found = repair(journal)
        assert (found.action, found.losses) == ("front", ())
        assert found.history
        assert files(found.original) == damaged
        assert_sound(journal)
        assert meaning(read(journal)) == series(9)
        kept = [record for record in records if record.segment > number]
        assert list(replay(journal)) == kept, "with their positions"
        restore(journal, whole)


def test_a_missing_segment_is_damage_like_any_other(journal: Path) -> None:
    acknowledged(journal, 6)
    path_of(journal, 2).unlink()
    assert repair(journal).action == "front"
    assert_sound(journal)
    assert meaning(read(journal)) == series(9)


def test_what_is_pending_in_front_of_the_damage_is_kept(journal: Path) -> None:
    """The damage holds nothing that is pending, but something older does."""
    opened, _ = open_journal(journal)
    opened.append(Transaction(sends=[Send(1, 1, 0, [(1, 1)], b"to right")]))
    for number in range(1, 10):
        opened.append(transaction(number))
        if number % 3 == 0:
            opened.rotate(after(number, [(0, number)], assigned=[(0, number), (1, 1)]))
    opened.close()
    for offset in (SEGMENT_HEADER + 20, -30):
        whole = files(journal)
        flip(path_of(journal, 2), offset)
        found = repair(journal)
        assert (found.action, found.losses) == ("forward", ())
        assert_sound(journal)
        recovered = read(journal)
        assert recovered.watermarks == {"left": 9}
        assert (recovered.states, recovered.tables) == series(9)[:2]
        _, sends = outbox(journal, "right")
        assert [(send.edges, send.body) for send in sends] == [([(1, 1)], b"to right")]
        assert outbox(journal)[1] == []
        assert outbox(journal)[0].assigned["left"] == 9
        restore(journal, whole)


def test_the_newest_state_is_kept_where_there_is_nothing_to_go_back_to(journal: Path) -> None:
    opened, _ = open_journal(journal)
    for number in range(1, 13):
        opened.append(transaction(number))
        if number % 3 == 0:
            opened.rotate(after(number, [(0, 3)]))
    opened.trim({0: 3})
    opened.close()
    flip(path_of(journal, 2), 40)
    flip(path_of(journal, 4), [o for p, o, _, last in frames(journal) if p == path_of(journal, 4)][2] + 20)
    with pytest.raises(DiscardNeeded) as caught:
        repair(journal)
    assert "messages 4 to 6 to left, if not received by it" in caught.value.losses
    repair(journal, discard=True)
    assert_sound(journal)
    assert [record.consumed.get("left") for record in replay(journal)][:4] == [7, 8, 9, 10]
    assert (read(journal).states, read(journal).tables) == series(10)[:2]


def test_a_journal_of_which_no_snapshot_is_left_cannot_be_repaired(journal: Path) -> None:
    filled(journal, 3)
    flip(path_of(journal, 1), 60)
    before = files(journal)
    with pytest.raises(CannotRepair) as caught:
        repair(journal, discard=True)
    assert caught.value.original == ""
    assert files(journal) == before


# ------------------------------------------------------------------------------------------------------- afterwards
def test_the_next_incarnation_goes_on_above_all_epochs_and_segments(journal: Path) -> None:
    for start in range(4):
        opened, _ = open_journal(journal)
        opened.append(transaction(start + 1))
        opened.close()
    offset = next(offset for path, offset, _, last in frames(journal) if path == path_of(journal, 2) and last == 1)
    flip(path_of(journal, 2), offset + 20)
    repair(journal, discard=True)
    opened, recovered = open_journal(journal)
    assert opened.epoch > 4
    assert recovered.states == {"counter": b"1"}
    opened.append(Transaction(sends=[Send(0, 1, 0, [(0, recovered.assigned["left"] + 1)], b"new")]))
    opened.close()
    assert_sound(journal)


def test_a_removed_key_and_another_handler_survive_the_bridge(journal: Path) -> None:
    opened, _ = open_journal(journal)
    opened.append(Transaction(keys=[(1, b"gone", b"1"), (1, b"stays", b"1"), (0, b"only", b"1")]))
    opened.append(Transaction(sends=[Send(0, 1, 0, [(1, 1)], b"pending")]))
    opened.append(Transaction(keys=[(1, b"gone", None), (0, b"only", None)], states=[(1, b"s")]))
    opened.append(Transaction(consumed=[(0, 4)]))
    opened.close()
    opened, _ = open_journal(journal)
    opened.close()
    offsets = [offset for path, offset, *_ in frames(journal) if path == path_of(journal, 1)]
    flip(path_of(journal, 1), offsets[3] + 20)
    state = meaning(read_last(journal))
    assert repair(journal).action == "forward"
    assert_sound(journal)
    assert meaning(read(journal)) == state
    assert [send.body for send in outbox(journal, "right")[1]] == [b"pending"]


def test_a_dead_letter_that_was_removed_behind_the_damage_stays_removed(journal: Path) -> None:
    def letter(seq: int) -> DeadLetter:
        return DeadLetter(0, seq, 0, "counter", "Tick", "why", "", 3, 7, b"poison")

    opened, _ = open_journal(journal)
    opened.append(Transaction(dead=[letter(1), letter(2)]))
    opened.append(Transaction(sends=[Send(0, 1, 0, [(1, 1)], b"pending")]))
    opened.append(Transaction(removed=[(0, 1)]))
    opened.append(Transaction(consumed=[(0, 4)]))
    opened.close()
    opened, _ = open_journal(journal)
    opened.close()
    offsets = [offset for path, offset, *_ in frames(journal) if path == path_of(journal, 1)]
    flip(path_of(journal, 1), offsets[3] + 20)
    assert repair(journal).action == "forward"
    assert_sound(journal)
    assert [one.seq for one in read(journal).dead] == [2]


def test_what_stands_behind_the_damage_is_found_also_if_it_was_never_synced(journal: Path) -> None:
    opened, _ = open_journal(journal, level="power")
    for number in range(1, 5):
        opened.append(transaction(number))
    opened.rotate(after(4, level="power"))
    opened.close()
    offset = [offset for path, offset, *_ in frames(journal)][2]
    flip(path_of(journal, 1), offset + 20)
    directory = Directory(journal, create=False)
    first, _ = examine(directory)[0]
    assert (first.records, first.behind) == (1, 2)
    assert [record.consumed["left"] for record in behind(directory, first)] == [3, 4]
    directory.close()


def read_last(directory: Path) -> Recovered:
    opened = Directory(directory, create=False)
    pieces, _ = examine(opened)
    opened.close()
    assert pieces[-1].state is not None
    return pieces[-1].state


def test_damage_within_a_segment_that_decodes_to_nonsense_is_repaired_too(journal: Path) -> None:
    positions = filled(journal, 3)
    buffer = bytearray()
    encode_frame(buffer, TRANSACTION, 1, positions[1], Transaction(consumed=[(7, 7)]))
    path = path_of(journal, 1)
    path.write_bytes(path.read_bytes()[: SEGMENT_HEADER + positions[1]] + buffer)
    with pytest.raises(DamagedJournal):
        read(journal)
    assert repair(journal, discard=True).action == "back"
    assert_sound(journal)
    assert meaning(read(journal)) == series(1)


# ------------------------------------------------------------------------------------------------------- untouched
def test_a_journal_in_use_a_newer_one_and_a_foreign_file_are_refused_untouched(journal: Path) -> None:
    in_segments(journal, 2, 2)
    flip(path_of(journal, 1), 120)
    before = files(journal)
    directory = Directory(journal, create=False)
    lock = DirectoryLock(directory.path, directory.descriptor)
    with pytest.raises(JournalLocked):
        repair(journal, discard=True)
    lock.release()
    directory.close()
    path = path_of(journal, 2)
    header = encode_segment_header(2, first_position(journal, 2), 99)
    path.write_bytes(header + path.read_bytes()[SEGMENT_HEADER:])
    with pytest.raises(NewerFormat):
        repair(journal, discard=True)
    path.write_bytes(b"#!/bin/sh\necho this is not a journal at all, and nobody said so\n")
    foreign = files(journal)
    with pytest.raises(NotAJournal):
        repair(journal, discard=True)
    assert files(journal) == foreign
    assert {name: data for name, data in foreign.items() if name != path.name} == {
        name: data for name, data in before.items() if name != path.name
    }
    assert [one.name for one in journal.parent.iterdir()] == ["journal"], "and nothing was copied"


def test_the_copy_goes_where_it_is_wanted_and_never_over_anything(journal: Path, tmp_path: Path) -> None:
    acknowledged(journal, 6)
    flip(path_of(journal, 2), 60)
    damaged = files(journal)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError):
        repair(journal, copy_to=tmp_path / "taken")
    assert files(journal) == damaged
    found = repair(journal, copy_to=tmp_path / "deep" / "copy")
    assert found.original == str(tmp_path / "deep" / "copy")
    assert files(found.original) == damaged
    assert os.stat(found.original).st_mode & 0o777 == 0o700


def test_a_copy_that_fails_changes_nothing_and_leaves_nothing(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged(journal, 6)
    flip(path_of(journal, 2), 60)
    damaged = files(journal)

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("persist.files.File.fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        repair(journal)
    assert files(journal) == damaged
    assert [path.name for path in journal.parent.iterdir()] == ["journal"]


# ------------------------------------------------------------------------------------------------------- interrupted
INTERRUPTED = """
import os, signal, sys
import persist.files
from persist.repair import repair

left = int(sys.argv[2])

def counted(call):
    def counting(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting

for owner, names in (
    (persist.files.File, ("write", "truncate")),
    (persist.files.Directory, ("create", "unlink", "rename")),
):
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))
repair(sys.argv[1], discard=True)
"""


def interrupted(directory: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a repair did not come to its end, because nothing worked any more from the call `step` on."""
    left = step

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(5, "Input/output error")
            return call(*arguments, **options)

        return counting

    with monkeypatch.context() as patch:
        for owner, names in ((File, ("write", "truncate")), (Directory, ("create", "unlink", "rename"))):
            for name in names:
                patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            repair(directory, discard=True)
        except (OSError, JournalPoisoned):
            return True
    return False


def test_a_repair_that_is_interrupted_at_any_step_leaves_the_original_or_a_refused_journal(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_segments(journal, 2, 2, 2)
    offset = [offset for path, offset, *_ in frames(journal) if path == path_of(journal, 2)][1]
    flip(path_of(journal, 2), offset + 20)
    damaged = files(journal)
    states = set()
    for step in range(500):
        restore(journal, damaged)
        if step % 9:
            if not interrupted(journal, step, monkeypatch):
                break
        else:
            command = [sys.executable, "-c", INTERRUPTED, str(journal), str(step)]
            child = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
            assert child.returncode in {0, -signal.SIGKILL}, child.stderr.decode()
        finished = check(journal).ok
        states.add((files(journal) == damaged, finished))
        if not finished:
            with pytest.raises((DamagedJournal, NotAJournal)):
                read(journal)
            with pytest.raises((DamagedJournal, NotAJournal)):
                open_journal(journal)
            assert repair(journal, discard=True).action == "back"
        assert_sound(journal)
        assert [record.consumed.get("left") for record in replay(journal)][:2] == [1, 2]
    else:
        pytest.fail("it never came to its end")
    assert states >= {(True, False), (False, False)}
    assert step > 20


def test_what_an_interrupted_repair_cannot_find_again_is_said(journal: Path, tmp_path: Path) -> None:
    in_segments(journal, 2, 2)
    (journal / MARKER).write_bytes(os.fsencode(tmp_path / "moved"))
    with pytest.raises(CannotRepair, match="moved"):
        repair(journal, discard=True)
    assert (journal / MARKER).exists()
