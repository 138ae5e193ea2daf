"""When a worker is taken for hung, and when not; with made-up times."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.hang import CONFIRM, GAP, Kind, Limits, Seen, Watch, look_at, verdict
from bus import Board, Field, WorkerState

LIMITS = Limits(hung_after=30.0, handlers=[("averager", 2.0), ("report", None)], peers=["gateway", "ingest"])
IDLE = Seen(WorkerState.RUNNING, heartbeat=100.0)
BUSY = replace(IDLE, handler=0, peer=1, seq=1234, since=100.0)
FREE = replace(BUSY, handler=1)


def watch(
    seen: Seen, until: float, letter: str = "S", step: float = 0.5, limits: Limits = LIMITS, begin: float = 100.0
):
    """Looks every `step` seconds from `begin`; the first verdict, and when."""
    watch, now = Watch(limits), begin
    while now <= until:
        if (hung := watch.look(now, seen, lambda: letter)) is not None:
            return hung, now
        now += step
    return None, now


def test_a_loop_that_does_not_beat_is_hung_after_its_time() -> None:
    hung, when = watch(IDLE, 200)
    assert hung.kind is Kind.SILENT
    assert not hung.blames
    assert 130 < when <= 131.5
    assert "loop silent for 31.0 s" in hung.reason
    assert "hung_after of 30 s" in hung.reason
    assert "asleep" in hung.reason


def test_a_handler_over_its_limit_is_hung_and_its_message_is_blamed() -> None:
    hung, when = watch(BUSY, 200)
    assert hung.kind is Kind.BUSY
    assert hung.blames
    assert 102 < when <= 103.5
    assert "handler 'averager' busy for" in hung.reason
    assert "with message ingest/1234, more than its busy_limit of 2 s" in hung.reason


def test_on_loop_and_on_start_have_the_same_limit() -> None:
    hung, _ = watch(replace(BUSY, peer=-1), 200)
    assert "outside of any message" in hung.reason
    hung, _ = watch(replace(BUSY, peer=-1, state=WorkerState.STARTING), 200)
    assert hung.kind is Kind.BUSY


def test_a_handler_without_limit_is_never_hung_by_silence() -> None:
    assert watch(FREE, 100 + 3600, step=1.0) == (None, 3701)


def test_after_a_handler_has_taken_its_time_the_loop_has_all_of_its_own() -> None:
    """What it has done is still to be committed, and the last beat is from before it began."""
    watch = Watch(LIMITS)
    for tick in range(120):
        assert watch.look(100 + tick / 2, FREE, lambda: "R") is None
    for tick in range(60):
        assert watch.look(160 + tick / 2, IDLE, lambda: "D") is None
    assert watch.look(190, IDLE, lambda: "D") is None
    hung = watch.look(190.5, IDLE, lambda: "D")
    assert hung is not None
    assert hung.kind is Kind.SILENT


@pytest.mark.parametrize("seen", [IDLE, BUSY, FREE], ids=["idle", "busy", "free"])
def test_a_traced_process_is_not_hung(seen: Seen) -> None:
    assert watch(seen, 400, letter="t")[0] is None


@pytest.mark.parametrize("seen", [IDLE, BUSY, FREE], ids=["idle", "busy", "free"])
@pytest.mark.parametrize(
    "state", [WorkerState.STARTING, WorkerState.WAITING, WorkerState.RUNNING, WorkerState.STOPPING]
)
def test_a_stopped_process_is_hung_in_every_state(seen: Seen, state: WorkerState) -> None:
    hung, when = watch(replace(seen, state=state), 200, letter="T")
    assert hung.kind is Kind.STOPPED
    assert not hung.blames
    assert 130 < when <= 133
    assert "SIGSTOP" in hung.reason


@pytest.mark.parametrize(
    "state", [WorkerState.NEW, WorkerState.STARTING, WorkerState.RECOVERING, WorkerState.WAITING, WorkerState.STOPPING]
)
def test_silence_counts_only_where_the_loop_has_to_beat(state: WorkerState) -> None:
    assert watch(replace(IDLE, state=state), 400)[0] is None


def test_being_stopped_is_counted_from_its_beginning() -> None:
    watch = Watch(LIMITS)
    letter = "S"
    for tick in range(100):  # asleep in a handler without a limit for 50 s, then stopped
        assert watch.look(100 + tick / 2, FREE, lambda: letter) is None
    letter = "T"
    for tick in range(60):
        assert watch.look(150 + tick / 2, FREE, lambda: letter) is None
    letter = "S"
    assert watch.look(180, FREE, lambda: letter) is None
    letter = "T"
    for tick in range(60):
        assert watch.look(180.5 + tick / 2, FREE, lambda: letter) is None


@pytest.mark.parametrize("limits", [LIMITS, replace(LIMITS, hung_after=1.0)])
def test_after_a_gap_in_the_looks_everyone_has_the_whole_time_again(limits: Limits) -> None:
    watch = Watch(limits)
    for tick in range(3):
        assert watch.look(100 + tick / 2, replace(IDLE, heartbeat=100 + tick / 2), lambda: "S") is None
    # An hour later, in which all were stopped: everything looks an hour old.
    assert watch.look(3700, IDLE, lambda: "S") is None
    assert watch.look(3700.5, IDLE, lambda: "S") is None
    assert watch.look(3701, replace(IDLE, heartbeat=3700.6), lambda: "S") is None


def test_a_short_gap_does_not_condemn_either() -> None:
    """One that is too short to be taken for one, with limits that are shorter still."""
    watch = Watch(replace(LIMITS, hung_after=0.5))
    assert watch.look(100, IDLE, lambda: "S") is None
    assert watch.look(100 + GAP - 0.1, IDLE, lambda: "S") is None
    assert watch.suspicious
    assert watch.look(100 + GAP - 0.1 + CONFIRM, replace(IDLE, heartbeat=101.95), lambda: "S") is None
    assert not watch.suspicious


def test_the_next_message_is_not_the_one_that_was_suspected() -> None:
    watch = Watch(LIMITS)
    assert watch.look(101, BUSY, lambda: "R") is None
    assert watch.look(102.9, BUSY, lambda: "R") is None
    assert watch.look(103.1, BUSY, lambda: "R") is None
    assert watch.suspicious
    assert watch.look(103.6, replace(BUSY, seq=1235, since=103.2), lambda: "R") is None


def test_the_kernel_is_not_asked_while_the_loop_beats() -> None:
    watch = Watch(LIMITS)
    for tick in range(100):
        now = 100 + tick / 2
        assert watch.look(now, replace(IDLE, heartbeat=now - 0.3), lambda: pytest.fail("asked")) is None


def test_times_without_end() -> None:
    endless = replace(LIMITS, hung_after=float("inf"))
    assert watch(IDLE, 10_000, limits=endless, step=1)[0] is None
    assert watch(IDLE, 10_000, letter="T", limits=endless, step=1)[0] is None
    assert watch(BUSY, 10_000, limits=endless, step=1)[0].kind is Kind.BUSY


def test_unknown_numbers_do_not_confuse() -> None:
    hung = verdict(131, replace(BUSY, handler=7), LIMITS)
    assert hung is not None
    assert hung.kind is Kind.SILENT
    hung = verdict(131, replace(BUSY, peer=9), LIMITS)
    assert hung is not None
    assert "with message 9/1234" in hung.reason


def test_cells_are_read_as_the_worker_writes_them() -> None:
    board = Board.format(bytearray(Board.size(["stats"])), ["stats"])
    block = board.block("stats")
    for field, value in {"STATE": 3, "HEARTBEAT_NS": 10**9, "BUSY_HANDLER": 1, "BUSY_PEER": 2, "BUSY_SEQ": 7}.items():
        block.set(Field[field], value)
    block.set(Field.BUSY_SINCE_NS, 2 * 10**9)
    assert look_at(block) == Seen(WorkerState.RUNNING, 1.0, 0, 1, 7, 2.0)
    block.set(Field.STATE, 99)
    assert look_at(block).state is WorkerState.NEW
    board.close()


@given(
    st.lists(st.tuples(st.floats(0.01, 5.0), st.booleans(), st.sampled_from("RSDTt")), max_size=60),
    st.sampled_from([0.5, 2.0, 30.0]),
)
def test_whoever_beats_between_looks_is_never_hung(looks: list[tuple[float, bool, str]], hung_after: float) -> None:
    """However the looks fall, whatever the kernel says: a verdict needs the same beat seen for the whole time."""
    limits, now, beat, quiet = replace(LIMITS, hung_after=hung_after), 100.0, 100.0, 0.0
    watch = Watch(limits)
    for pause, beats, letter in looks:
        now += pause
        if beats:
            beat, quiet = now, 0.0
        else:
            quiet += pause
        hung = watch.look(now, replace(IDLE, heartbeat=beat), partial(str, letter))
        assert hung is None or quiet > hung_after
