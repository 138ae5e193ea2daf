"""What a command does to a worker's dead letters."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec import FLAG_REQUEUED, unpack_header
from actors.codec import pack_header as header
from actors.fixed_runs import elements
from actors.letter_commands import AT_ONCE, UNHANDLED, UNKNOWN, Command, commands, effect
from persist import DeadLetter

PEERS = ["gateway", "feed", "stats", "gone"]
HANDLED = {4, 5}
ME = 2


def letter(peer: int, seq: int, route: int = 4) -> DeadLetter:
    return DeadLetter(peer, seq, route, "h", "T", "why", "", 3, 7, b"\x91\x07")


def body(action: str, *letters: tuple[str, int]) -> bytes:
    return msgspec.msgpack.encode((action, letters))


DEAD = [letter(0, 1), letter(1, 1), letter(1, 2, route=9), letter(3, 8, route=5)]


def test_requeued_is_removed_and_carried_over_as_a_run_of_one_message() -> None:
    found = effect(body("requeue", ("feed", 1)), DEAD, PEERS, HANDLED, ME)
    assert (found.removed, found.problems) == ([(1, 1)], [""])
    (run,) = found.runs
    assert (run.route, run.length, run.flags, run.peers) == (4, 1, FLAG_REQUEUED, (ME,))
    assert isinstance(run.body, bytes)
    assert msgspec.msgpack.decode(run.body) == [[7]]
    assert unpack_header(header(1, run.length, run.route, run.flags)) == (1, 1, 4, FLAG_REQUEUED)


def test_dropped_is_removed_and_nothing_else() -> None:
    found = effect(body("drop", ("gone", 8), ("feed", 2)), DEAD, PEERS, HANDLED, ME)
    assert found == ([(3, 8), (1, 2)], [], ["", ""])


def test_what_is_not_there_or_no_longer_handled_is_left_as_it_is() -> None:
    wanted = [("feed", 2), ("feed", 3), ("nobody", 1), ("gateway", 1), ("gateway", 1)]
    found = effect(body("requeue", *wanted), DEAD, PEERS, HANDLED, ME)
    assert found.problems == [UNHANDLED, UNKNOWN, UNKNOWN, "", UNKNOWN]
    assert found.removed == [(0, 1)]
    assert len(found.runs) == 1


def test_rows_that_are_no_longer_handled_may_have_another_layout() -> None:
    row = next(elements(b"\x01234567" + b"a row...", 1))
    found = effect(
        body("requeue", ("feed", 2)), [msgspec.structs.replace(letter(1, 2, route=9), body=row)], PEERS, HANDLED, ME
    )
    (problem,) = found.problems
    assert problem.startswith(f"{UNHANDLED}, or in another layout: ")
    assert found.removed == []


@pytest.mark.parametrize("wrong", [b"", b"\x01", body("burn", ("feed", 1)), msgspec.msgpack.encode(("drop",))])
def test_what_is_no_command_is_refused(wrong: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        effect(wrong, DEAD, PEERS, HANDLED, ME)


@given(
    st.lists(st.tuples(st.sampled_from([*PEERS, "p" * 60]), st.integers(1, 9)), max_size=200),
    st.sampled_from([1, 100, 2000, 10**6]),
)
def test_many_letters_go_in_parts_of_bounded_size_and_in_order(wanted: list[tuple[str, int]], most: int) -> None:
    parts = list(commands("drop", wanted, most))
    assert all(len(sent) <= most or len(part) == 1 for part, sent in parts)
    assert [one for part, _ in parts for one in part] == wanted
    for part, sent in parts:
        assert 0 < len(part) <= AT_ONCE
        assert msgspec.msgpack.decode(sent, type=Command) == Command("drop", list(part))


@given(
    st.lists(st.tuples(st.sampled_from(PEERS), st.integers(1, 9)), max_size=30), st.sampled_from(["drop", "requeue"])
)
def test_every_letter_of_a_command_is_told_of_and_none_goes_twice(wanted: list[tuple[str, int]], action: str) -> None:
    found = effect(body(action, *wanted), DEAD, PEERS, HANDLED, ME)
    assert len(found.problems) == len(wanted)
    assert len(set(found.removed)) == len(found.removed) == found.problems.count("")
    assert len(found.runs) == (len(found.removed) if action == "requeue" else 0)
