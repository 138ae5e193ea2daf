"""What a worker may rely on when it opens, appends, rotates, trims and reads back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from persist import (
    DamagedJournal,
    Journal,
    JournalClosed,
    Recovered,
    Send,
    SequenceBroken,
    Transaction,
    UnknownName,
    UnsafeDirectory,
    check,
    read,
    snapshot_of,
)
from tests.persist.building import (
    HANDLERS,
    PEERS,
    ROUTES,
    after,
    filled,
    in_segments,
    meaning,
    open_journal,
    path_of,
    series,
    snapshots,
    transaction,
    written,
)


def numbers(journal: Journal, peer: int = 0, after_seq: int = 0, position: int = 0) -> list[int]:
    return [send.edges[0][1] for _, send in journal.sends(peer, after_seq, position)]


def test_new_journal_is_empty_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    journal, recovered = open_journal(directory)
    assert meaning(recovered) == series(0)
    assert (recovered.epoch, journal.epoch, journal.segments) == (0, 1, 1)
    assert journal.bytes <= path_of(directory, 1).stat().st_size
    assert journal.bytes - 8 < written(directory) <= journal.bytes
    assert directory.stat().st_mode & 0o777 == 0o700
    assert path_of(directory, 1).stat().st_mode & 0o777 == 0o600
    assert (directory / "lock").stat().st_mode & 0o777 == 0o600
    journal.close()


def test_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(UnsafeDirectory, match="0770"):
        open_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persist.files.os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UnsafeDirectory, match="belongs to user"):
        open_journal(tmp_path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    filled(tmp_path / "journal", 1)
    path = path_of(tmp_path / "journal", 1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        open_journal(tmp_path / "journal")


@pytest.mark.parametrize("level", ["memory", "", "Power"])
def test_level_without_a_journal_is_refused(level: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="process, power"):
        open_journal(tmp_path, level=level)


@pytest.mark.parametrize("level", ["process", "power"])
def test_everything_appended_is_recovered(level: str, tmp_path: Path) -> None:
    filled(tmp_path, 7, level=level)
    journal, recovered = open_journal(tmp_path, level=level)
    assert meaning(recovered) == series(7)
    assert (recovered.level, recovered.fingerprint) == (level, "f")
    journal.close()


def test_epoch_is_above_the_journals_and_the_callers(tmp_path: Path) -> None:
    epochs = []
    for given in (0, 0, 10, 3):
        seen: list[int] = []
        journal, recovered = open_journal(
            tmp_path, epoch=given, make_snapshot=lambda found, epoch, seen=seen: seen.append(epoch) or after(0)
        )
        epochs.append((recovered.epoch, journal.epoch))
        assert seen == [journal.epoch]
        journal.close()
    assert epochs == [(0, 1), (1, 2), (2, 11), (11, 12)]


def test_every_incarnation_begins_a_segment(tmp_path: Path) -> None:
    for incarnation in range(1, 4):
        filled(tmp_path, 0)
        assert len(list(tmp_path.glob("*.journal"))) == incarnation


def test_positions_grow_over_segments_and_incarnations(tmp_path: Path) -> None:
    positions = []
    for incarnation in range(3):
        journal, _ = open_journal(tmp_path)
        for number in (1, 2):
            positions.append(journal.append(transaction(2 * incarnation + number)))
        journal.rotate(after(2 * incarnation + 2))
        journal.close()
    assert positions == sorted(set(positions))
    assert check(tmp_path).ok


def test_run_is_numbered_by_message(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1, count=10))
    journal.append(Transaction(sends=[Send(0, 5, 0, [(0, 11), (1, 1)], b"to both"), Send(1, 1, 0, [(0, 16)], b"")]))
    journal.close()
    assert read(tmp_path).assigned == {"left": 16, "right": 5}


@pytest.mark.parametrize(
    ("sends", "peer", "expected", "got"),
    [
        ([Send(0, 1, 0, [(0, 3)], b"")], "left", 2, 3),
        ([Send(0, 1, 0, [(0, 1)], b"")], "left", 2, 1),
        ([Send(0, 1, 0, [(1, 0)], b"")], "right", 1, 0),
        ([Send(0, 2, 0, [(0, 2)], b""), Send(0, 1, 0, [(0, 3)], b"")], "left", 2, 3),
        ([Send(0, 1, 0, [(2, 1)], b"")], "peer 2 of 2", 1, 1),
        ([Send(0, 1, 0, [(-1, 1)], b"")], "peer -1 of 2", 1, 1),
        ([Send(0, 0, 0, [(0, 2)], b"")], "left", 2, 2),
    ],
)
def test_sequence_numbers_that_do_not_continue_are_refused(
    sends: list[Send], peer: str, expected: int, got: int, tmp_path: Path
) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    size = journal.bytes
    with pytest.raises(SequenceBroken) as refusal:
        journal.append(Transaction(sends=sends))
    assert (refusal.value.peer, refusal.value.expected, refusal.value.got) == (peer, expected, got)
    assert journal.bytes == size
    journal.append(transaction(2))
    journal.close()
    assert meaning(read(tmp_path)) == series(2)


def append_until_due(journal: Journal, number: int) -> int:
    while not journal.due:
        number += 1
        journal.append(transaction(number))
    return number


def test_rotation_is_due_after_a_segment_or_twice_the_snapshot(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_bytes=1000)
    number = append_until_due(journal, 0)
    assert 1000 < journal.bytes < 1000 + 300
    journal.rotate(after(number, states=[(0, bytes(5000))]))
    begin = journal.bytes
    assert append_until_due(journal, number) > number
    assert 2 * 5000 < journal.bytes - begin < 2 * 5000 + 800
    journal.close()


def test_rotation_changes_nothing_that_is_recovered(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 31):
        journal.append(transaction(number))
        if number % 7 == 0:
            journal.rotate(after(number))
    assert journal.segments == 5
    assert numbers(journal) == list(range(1, 31))
    size = journal.bytes
    journal.close()
    assert size == sum(path.stat().st_size for path in tmp_path.glob("*.journal"))
    report = check(tmp_path)
    assert report.ok
    assert report.frames == 30 + 5
    assert meaning(read(tmp_path)) == series(30)


@pytest.mark.parametrize("assigned", [[], [(0, 2)], [(0, 4)], [(0, 3), (1, 1)]])
def test_snapshot_with_other_sequence_numbers_is_refused(assigned: list[tuple[int, int]], tmp_path: Path) -> None:
    """Numbers that are assigned and not yet committed do not belong into a snapshot, nor may any be forgotten."""
    journal, _ = open_journal(tmp_path)
    for number in (1, 2, 3):
        journal.append(transaction(number))
    with pytest.raises(SequenceBroken):
        journal.rotate(after(3, assigned=assigned))
    assert journal.segments == 1
    journal.sync()
    journal.close()
    with pytest.raises(SequenceBroken):
        open_journal(tmp_path, make_snapshot=lambda recovered, epoch: after(3, assigned=assigned))
    with pytest.raises(SequenceBroken):
        open_journal(tmp_path, make_snapshot=lambda recovered, epoch: after(3, watermarks=[(0, 2)]))
    assert len(list(tmp_path.glob("*.journal"))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"states": [(2, b"")]},
        {"watermarks": [(5, 1)]},
        {"tables": [(-1, b"", b"")]},
        {"attempts": [(9, 1, 1)]},
        {"peers": ["left", "left"]},
    ],
)
def test_snapshot_that_could_not_be_recovered_from_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    with pytest.raises(ValueError, match=r"snapshot|names"):
        journal.rotate(after(0, **wrong))
    journal.append(transaction(1))
    journal.close()
    with pytest.raises(ValueError, match=r"snapshot|names"):
        open_journal(tmp_path, make_snapshot=lambda recovered, epoch: after(1, **wrong))
    assert meaning(read(tmp_path)) == series(1)


def test_names_change_only_at_the_opening(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    with pytest.raises(ValueError, match="differ"):
        journal.rotate(after(0, peers=["right", "left"]))
    journal.close()


def test_callers_lists_are_its_own_again(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    made = after(1)
    journal.rotate(made)
    for table in (made.peers, made.handlers, made.routes, made.assigned):
        table.clear()
    journal.append(transaction(2))
    assert numbers(journal) == [1, 2]
    journal.rotate(after(2))
    journal.close()


def test_segments_go_from_the_front_when_every_send_in_them_is_acknowledged(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    for number in range(1, 10):
        journal.append(transaction(number))
        if number % 3 == 0:
            journal.rotate(after(number))
    assert journal.segments == 4
    assert journal.trim({0: 2}) == 0
    assert journal.trim({1: 99}) == 0
    assert journal.trim({0: 3}) == 1
    assert not path_of(tmp_path, 1).exists()
    assert journal.trim({0: 8}) == 1
    assert journal.trim({0: 9}) == 1
    assert journal.trim({0: 9}) == 0
    assert journal.segments == 1
    size = journal.bytes
    journal.close()
    assert size == path_of(tmp_path, 4).stat().st_size
    assert meaning(read(tmp_path)) == series(9)
    assert check(tmp_path).ok


def test_what_was_in_deleted_segments_is_acknowledged_whatever_the_last_snapshot_knew(tmp_path: Path) -> None:
    """Else a worker that crashed after a trim would look for messages that are gone."""
    in_segments(tmp_path, 3, 3)
    journal, recovered = open_journal(tmp_path)
    assert recovered.acked == {}
    position = recovered.unacked_from["left"]
    journal.append(transaction(7))
    assert journal.trim({0: 5}) == 1
    journal.close()
    journal, recovered = open_journal(tmp_path)
    assert recovered.acked == {"left": 3}
    assert recovered.unacked_from["left"] is not None
    assert position is not None
    assert recovered.unacked_from["left"] > position
    assert recovered.unacked_bytes == {"left": 4 * len(b"body 4")}
    assert numbers(journal, 0, 3, recovered.unacked_from["left"]) == [4, 5, 6, 7]
    journal.close()


def test_one_unacknowledged_send_keeps_its_segment_and_all_behind_it(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(sends=[Send(0, 1, 0, [(1, 1)], b"slow")]))
    journal.rotate(after(0, assigned=[(1, 1)]))
    for number in (1, 2):
        journal.append(transaction(number))
        journal.rotate(after(number, assigned=[(0, number), (1, 1)]))
    assert journal.trim({0: 2}) == 0
    assert journal.trim({0: 2, 1: 1}) == 3
    journal.close()


def test_segment_without_sends_goes_at_once(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(consumed=[(0, 1)]))
    journal.rotate(after(0, watermarks=[(0, 1)]))
    assert journal.trim({}) == 1
    journal.close()


def test_segments_of_earlier_incarnations_are_trimmed_too(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(4))
    assert journal.trim({0: 2}) == 0
    assert journal.trim({0: 3}) == 1
    journal.close()
    journal, _ = open_journal(tmp_path, make_snapshot=lambda recovered, epoch: after(4, acked=[(0, 4)]))
    assert journal.trim({}) == 1
    assert journal.segments == 1
    journal.close()


def test_sends_are_read_back_from_any_number_and_position(tmp_path: Path) -> None:
    positions = in_segments(tmp_path, 3, 3, 3)
    journal, recovered = open_journal(tmp_path)
    assert recovered.unacked_from == {"left": positions[0]}
    for begin in range(9):
        assert numbers(journal, 0, 0, positions[begin]) == list(range(begin + 1, 10))
        assert numbers(journal, 0, begin, 0) == list(range(begin + 1, 10))
    assert [position for position, _ in journal.sends(0, 0, 0)] == positions
    assert list(journal.sends(1, 0, 0)) == []
    assert list(journal.sends(0, 9, journal.position)) == []
    journal.close()


def test_run_that_is_acknowledged_in_part_is_read_back_whole(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1, count=10))
    journal.append(transaction(2, first=11))
    assert numbers(journal, 0, 9) == [1, 11]
    assert numbers(journal, 0, 10) == [11]
    journal.close()


def test_each_peer_reads_its_own_sends(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    sends = [Send(0, 1, 7, [(0, 1), (1, 1)], b"both"), Send(1, 1, 8, [(1, 2)], b"right")]
    position = journal.append(Transaction(sends=sends))
    assert list(journal.sends(0, 0, 0)) == [(position, Send(0, 1, 7, [(0, 1)], b"both"))]
    assert list(journal.sends(1, 0, 0)) == [
        (position, Send(0, 1, 7, [(1, 1)], b"both")),
        (position, Send(1, 1, 8, [(1, 2)], b"right")),
    ]
    journal.close()


def test_sends_are_read_back_while_the_journal_is_written(tmp_path: Path) -> None:
    """An iterator in use sees what is appended behind it, over a rotation and a trim, up to the end at that moment.
    What was trimmed in between is acknowledged, and passed over."""
    journal, _ = open_journal(tmp_path)
    for number in (1, 2, 3):
        journal.append(transaction(number))
    reading = journal.sends(0, 0, 0)
    seen = [next(reading)[1].edges[0][1]]
    journal.append(transaction(4))
    journal.rotate(after(4, acked=[(0, 3)]))
    journal.append(transaction(5))
    assert journal.trim({0: 4}) == 1
    seen += [send.edges[0][1] for _, send in reading]
    assert seen == [1, 2, 3, 5]
    assert numbers(journal, 0, 4, 0) == [5]
    journal.append(transaction(6))
    assert numbers(journal, 0, 4, 0) == [5, 6]
    journal.close()


def test_damage_met_while_reading_back_is_refused(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    positions = [journal.append(transaction(number)) for number in (1, 2, 3)]
    data = bytearray(path_of(tmp_path, 1).read_bytes())
    data[positions[1] + 32 + 20] ^= 1
    path_of(tmp_path, 1).write_bytes(data)
    reading = journal.sends(0, 0, 0)
    assert next(reading)[0] == positions[0]
    with pytest.raises(DamagedJournal) as refusal:
        next(reading)
    assert refusal.value.offset == positions[1] + 32
    journal.close()


def test_sends_of_older_segments_come_under_the_current_names(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(sends=[Send(0, 1, 0, [(0, 1)], b"a"), Send(1, 1, 0, [(1, 1), (0, 2)], b"b")]))
    journal.close()
    other = snapshots(("new", "right", "left"), ("new", *HANDLERS), (("new", "New"), ROUTES[1], ROUTES[0]))
    journal, recovered = open_journal(tmp_path, make_snapshot=other)
    assert [send for _, send in journal.sends(2, 0, 0)] == [
        Send(2, 1, 0, [(2, 1)], b"a"),
        Send(1, 1, 0, [(2, 2)], b"b"),
    ]
    assert [send for _, send in journal.sends(1, 0, 0)] == [Send(1, 1, 0, [(1, 1)], b"b")]
    assert list(journal.sends(0, 0, 0)) == []
    assert journal.trim({2: 2}) == 0
    assert journal.trim({2: 2, 1: 1}) == 1
    assert recovered.routes == {1: ROUTES}
    journal.close()


@pytest.mark.parametrize(
    ("peers", "routes", "names"),
    [
        (("right",), ROUTES, {"peer left": 5}),
        (PEERS, ROUTES[1:], {"route counter -> Tick": 3}),
        (("right",), ROUTES[1:], {"peer left": 5, "route counter -> Tick": 3}),
    ],
)
def test_journal_with_messages_pending_for_what_is_gone_is_refused(
    peers: tuple[str, ...], routes: tuple[tuple[str, str], ...], names: dict[str, int], tmp_path: Path
) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(Transaction(sends=[Send(0, 3, 0, [(0, 1)], b"")]))
    journal.rotate(after(0, assigned=[(0, 3)]))
    journal.append(Transaction(sends=[Send(1, 2, 0, [(0, 4), (1, 1)], b"")]))
    journal.close()
    with path_of(tmp_path, 2).open("ab") as file:
        file.write(b"torn")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.journal")}
    with pytest.raises(UnknownName) as refusal:
        open_journal(tmp_path, make_snapshot=snapshots(peers, HANDLERS, routes))
    assert refusal.value.names == names
    assert {path: path.read_bytes() for path in tmp_path.glob("*.journal")} == before
    journal, recovered = open_journal(tmp_path)
    assert recovered.assigned == {"left": 5, "right": 2}
    journal.close()


def test_what_is_gone_may_go_once_everything_is_acknowledged(tmp_path: Path) -> None:
    filled(tmp_path, 3)

    def later(recovered: Recovered | None, epoch: int) -> object:
        assert recovered is not None
        recovered.acked["left"] = 3
        return snapshots(("right",), HANDLERS, ROUTES[1:])(recovered, epoch)

    journal, _ = open_journal(tmp_path, make_snapshot=later)
    assert journal.trim({}) == 1
    with pytest.raises(IndexError):
        next(journal.sends(7, 0, 0))
    journal.close()


def test_reading_back_acknowledged_sends_of_a_route_that_is_gone_names_it(tmp_path: Path) -> None:
    filled(tmp_path, 3)

    def later(recovered: Recovered | None, epoch: int) -> object:
        assert recovered is not None
        recovered.acked["left"] = 3
        return snapshots(PEERS, HANDLERS, ROUTES[1:])(recovered, epoch)

    journal, _ = open_journal(tmp_path, make_snapshot=later)
    with pytest.raises(UnknownName, match="counter -> Tick"):
        list(journal.sends(0, 0, 0))
    journal.close()


def test_what_retired_names_carry_outlives_rotations_and_comes_back(tmp_path: Path) -> None:
    """State, watermark and numbers of a handler and peers that went away are there again when they return."""
    filled(tmp_path, 3)
    fewer = ("right",), ("table",), ROUTES

    def without(recovered: Recovered | None, epoch: int) -> object:
        assert recovered is not None
        recovered.acked["left"] = 3
        made = snapshot_of(
            recovered, level="process", fingerprint="g", peers=fewer[0], handlers=fewer[1], routes=ROUTES
        )
        assert (made.retired_peers, made.retired_handlers, made.retired_routes) == (1, 1, 0)
        return made

    journal, _ = open_journal(tmp_path, make_snapshot=without)
    bare = after(0, peers=["right"], handlers=["table"], tables=[(0, b"new", b"row")])
    journal.rotate(bare)
    journal.rotate(bare)
    journal.close()
    assert check(tmp_path).gaps == [
        f"{path_of(tmp_path, 3)}: the snapshot's state is not that of the frames before it"
    ]  # the row that this test changed without a transaction
    recovered = read(tmp_path)
    assert recovered.states == {"counter": b"3"}
    assert recovered.tables == {"table": {b"new": b"row"}}
    assert recovered.watermarks == {"left": 3}
    assert recovered.assigned == recovered.acked == {"left": 3}
    journal, _ = open_journal(tmp_path)
    with pytest.raises(SequenceBroken):
        journal.append(transaction(1))
    journal.append(transaction(4))
    journal.close()


def test_closed_journal_refuses_and_closing_again_is_harmless(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.close()
    journal.close()
    for call in (
        lambda: journal.append(transaction(1)),
        journal.sync,
        lambda: journal.rotate(after(0)),
        lambda: journal.trim({}),
        lambda: next(journal.sends(0, 0, 0)),
    ):
        with pytest.raises(JournalClosed):
            call()


def test_refused_opening_gives_the_lock_and_all_descriptors_back(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    before = os.listdir("/proc/self/fd")

    def refuse(recovered: Recovered | None, epoch: int) -> object:
        raise RuntimeError("not this one")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="not this one"):
            open_journal(tmp_path, make_snapshot=refuse)
    journal, _ = open_journal(tmp_path)
    journal.rotate(after(1))
    journal.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_rotation_is_due_after_as_many_frames_as_a_restart_reads_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persist.journal.SEGMENT_FRAMES", 10)
    journal, _ = open_journal(tmp_path)
    assert append_until_due(journal, 0) >= 10
    assert journal.bytes < 10_000  # far from a full segment
    journal.close()


def test_names_may_be_added_while_the_journal_is_written(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.append(transaction(1))
    grown = after(1, peers=[*PEERS, "middle"], routes=[*ROUTES, ("counter", "Tock")])
    journal.rotate(grown)
    journal.append(Transaction(sends=[Send(2, 1, 0, [(2, 1)], b"tock")]))
    assert [(send.route, bytes(send.body)) for _, send in journal.sends(2, 0, 0)] == [(2, b"tock")]
    assert numbers(journal) == [1]
    with pytest.raises(ValueError, match="names"):
        journal.rotate(after(1, assigned=[(0, 1), (2, 1)]))
    journal.close()
    recovered = read(tmp_path)
    assert recovered.assigned == {"left": 1, "middle": 1}
    assert check(tmp_path).ok
