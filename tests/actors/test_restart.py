"""Restart decisions: OTP's grid of restart types and endings, its intensity and period, and the backoff on top."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.exits import ExitStatus, WorkerExit, describe, signal_name
from actors.restart import (
    ChildSpec,
    Death,
    Decision,
    Ending,
    Finished,
    GiveUp,
    History,
    Policy,
    Restart,
    RestartAfter,
    Strategy,
    affected,
    backoff,
    blames_message,
    decide,
)

DEATHS = {
    Ending.NORMAL: Death("w", 0, None, False, "exit code 0"),
    Ending.SHUTDOWN: Death("w", None, 9, True, "killed by SIGKILL"),
    Ending.EXCEPTION: Death("w", 1, None, False, "exit code 1"),
    Ending.SIGNAL: Death("w", None, 11, False, "killed by SIGSEGV"),
}
RESTARTED = {
    (Restart.PERMANENT, Ending.NORMAL): True,
    (Restart.PERMANENT, Ending.SHUTDOWN): True,
    (Restart.PERMANENT, Ending.EXCEPTION): True,
    (Restart.PERMANENT, Ending.SIGNAL): True,
    (Restart.TRANSIENT, Ending.NORMAL): False,
    (Restart.TRANSIENT, Ending.SHUTDOWN): False,
    (Restart.TRANSIENT, Ending.EXCEPTION): True,
    (Restart.TRANSIENT, Ending.SIGNAL): True,
    (Restart.TEMPORARY, Ending.NORMAL): False,
    (Restart.TEMPORARY, Ending.SHUTDOWN): False,
    (Restart.TEMPORARY, Ending.EXCEPTION): False,
    (Restart.TEMPORARY, Ending.SIGNAL): False,
}
SEGFAULT = DEATHS[Ending.SIGNAL]


def decide_all(policy: Policy, times: list[float], death: Death = SEGFAULT) -> list[Decision]:
    history, decisions = History(), []
    for now in times:
        decision, history = decide(ChildSpec("w"), policy, history, death, now, 0.0)
        decisions.append(decision)
    return decisions


@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("ending", Ending)
def test_grid_of_restart_types_and_endings(restart: Restart, ending: Ending) -> None:
    assert DEATHS[ending].ending is ending
    decision, history = decide(ChildSpec("w", restart), Policy(), History(), DEATHS[ending], 1.0, 0.0)
    if RESTARTED[restart, ending]:
        assert decision == RestartAfter(0.0)
        assert history == History(((1.0, "w"),))
    else:
        assert decision == Finished()
        assert history == History()


def test_launch_that_failed_is_an_abnormal_ending() -> None:
    assert Death("w", None, None, False, "could not be launched").ending is Ending.EXCEPTION


def test_one_restart_more_than_the_intensity_gives_up() -> None:
    policy = Policy(max_restarts=2, period=10)
    *allowed, last = decide_all(policy, [0, 1, 2])
    assert [type(decision) for decision in allowed] == [RestartAfter, RestartAfter]
    assert isinstance(last, GiveUp)
    assert last.status is ExitStatus.GAVE_UP
    assert "more than 2 restarts within 10 s" in last.reason
    assert "killed by SIGSEGV" in last.reason


def test_no_restart_is_allowed_with_intensity_zero() -> None:
    assert isinstance(decide_all(Policy(max_restarts=0), [0])[0], GiveUp)


def test_restart_exactly_one_period_ago_still_counts() -> None:
    policy = Policy(max_restarts=1, period=10)
    assert isinstance(decide_all(policy, [0, 10])[1], GiveUp)
    assert isinstance(decide_all(policy, [0, 10.001])[1], RestartAfter)


def test_intensity_counts_all_children_together() -> None:
    policy, history = Policy(max_restarts=1, period=10), History()
    _, history = decide(ChildSpec("a"), policy, history, SEGFAULT, 0, 0)
    decision, _ = decide(ChildSpec("b"), policy, history, SEGFAULT, 1, 0)
    assert isinstance(decision, GiveUp)


def test_what_is_not_restarted_does_not_count() -> None:
    policy, history = Policy(max_restarts=1, period=10), History()
    for now in range(5):
        decision, history = decide(ChildSpec("t", Restart.TEMPORARY), policy, history, SEGFAULT, now, 0)
        assert decision == Finished()
    assert isinstance(decide(ChildSpec("w"), policy, history, SEGFAULT, 5, 0)[0], RestartAfter)


@pytest.mark.parametrize("restart", Restart)
def test_refused_journal_is_never_tried_again(restart: Restart) -> None:
    death = Death("w", WorkerExit.JOURNAL_REFUSED, None, False, "bad frame at offset 512")
    decision, _ = decide(ChildSpec("w", restart), Policy(), History(), death, 0, 0)
    assert decision == GiveUp("bad frame at offset 512", ExitStatus.DAMAGED)


@pytest.mark.parametrize(
    ("code", "status"), [(WorkerExit.NO_SPACE, ExitStatus.NO_SPACE), (WorkerExit.START_FAILED, ExitStatus.GAVE_UP)]
)
def test_failure_of_the_first_start_is_told_at_once_a_later_one_is_a_death(code: int, status: ExitStatus) -> None:
    first = Death("w", code, None, False, "why", was_up=False)
    assert decide(ChildSpec("w"), Policy(), History(), first, 0, 0)[0] == GiveUp("why", status)
    later = Death("w", code, None, False, "why", was_up=True)
    delay = Policy().backoff_max if code == WorkerExit.NO_SPACE else 0.0
    assert decide(ChildSpec("w"), Policy(), History(), later, 0, 0)[0] == RestartAfter(delay)


def test_worker_that_waits_for_room_on_the_disk_waits_as_long_as_it_takes() -> None:
    death = Death("w", WorkerExit.NO_SPACE, None, False, "why", was_up=True)
    history = History()
    for second in range(1000):
        decision, history = decide(ChildSpec("w"), Policy(max_restarts=1), history, death, second / 100, 0.5)
        assert isinstance(decision, RestartAfter)
    assert history == History()


def test_first_restart_is_at_once_and_later_ones_back_off_up_to_a_limit() -> None:
    policy = Policy(max_restarts=10, period=100, backoff_step=0.5, backoff_factor=2, backoff_max=3)
    assert decide_all(policy, [0, 1, 2, 3, 4, 5]) == [RestartAfter(delay) for delay in (0, 0.5, 1, 2, 3, 3)]


def test_backoff_is_of_the_child_that_died_and_forgotten_after_the_period() -> None:
    policy, history = Policy(max_restarts=10, period=10), History()
    decision: Decision
    for now in range(3):
        decision, history = decide(ChildSpec("a"), policy, history, SEGFAULT, now, 0)
    assert decision == RestartAfter(0.1)
    assert decide(ChildSpec("b"), policy, history, SEGFAULT, 3, 0)[0] == RestartAfter(0.0)
    assert decide(ChildSpec("a"), policy, history, SEGFAULT, 13, 0)[0] == RestartAfter(0.0)


@given(
    nth=st.integers(1, 10_000),
    random=st.floats(0, 1, exclude_max=True),
    step=st.floats(0, 100),
    factor=st.floats(1, 1e6),
    limit=st.floats(0, 100),
    jitter=st.floats(0, 1),
)
def test_backoff_stays_within_its_bounds(nth, random, step, factor, limit, jitter) -> None:
    policy = Policy(backoff_step=step, backoff_factor=factor, backoff_max=limit, jitter=jitter)
    full = backoff(policy, nth, 0.0)
    assert full * (1 - jitter) <= backoff(policy, nth, random) <= full <= limit
    assert full <= backoff(policy, nth + 1, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_restarts", -1),
        ("period", 0),
        ("period", float("inf")),
        ("backoff_initial", -0.1),
        ("backoff_factor", 0.5),
        ("backoff_max", float("nan")),
        ("jitter", 1.5),
    ],
)
def test_senseless_policy_is_refused_with_the_value_at_fault(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} is {value!r}"):
        Policy(**{field: value})  # type: ignore[arg-type]


def test_one_for_one_affects_nobody_else() -> None:
    assert affected(Strategy.ONE_FOR_ONE, ["a", "b", "c"], "b") == ("b",)


@pytest.mark.parametrize(
    ("death", "blames"),
    [
        (Death("w", None, 9, False, ""), True),
        (Death("w", 1, None, False, ""), True),
        (Death("w", 0, None, False, ""), True),  # a handler may have ended the process
        (Death("w", None, 9, True, ""), False),
        (Death("w", WorkerExit.JOURNAL_POISONED, None, False, ""), False),
        (Death("w", WorkerExit.NO_SPACE, None, False, ""), False),
        (Death("w", WorkerExit.LOST, None, False, ""), False),
    ],
)
def test_message_is_blamed_only_where_no_other_cause_is_known(death: Death, blames: bool) -> None:
    assert blames_message(death) is blames


class WindowAgainstReference(RuleBasedStateMachine):
    """The history against a list of all restarts there ever were, counted anew each time."""

    @initialize(intensity=st.integers(0, 4), period=st.integers(1, 12))
    def set_up(self, intensity: int, period: int) -> None:
        self.policy = Policy(max_restarts=intensity, period=period, jitter=0)
        self.history, self.now, self.ever = History(), 0.0, list[tuple[float, str]]()

    @rule(quarters=st.integers(0, 40))
    def wait(self, quarters: int) -> None:
        self.now += quarters / 4  # exact in binary, so that the edge of the window is hit often

    @rule(name=st.sampled_from("ab"), restart=st.sampled_from(Restart), ending=st.sampled_from(Ending))
    def die(self, name: str, restart: Restart, ending: Ending) -> None:
        spec = ChildSpec(name, restart)
        decision, self.history = decide(spec, self.policy, self.history, DEATHS[ending], self.now, 0)
        if not RESTARTED[restart, ending]:
            assert decision == Finished()
            return
        self.ever.append((self.now, name))
        recent = [who for when, who in self.ever if when >= self.now - self.policy.period]
        if len(recent) > self.policy.max_restarts:
            assert isinstance(decision, GiveUp)
        else:
            assert decision == RestartAfter(backoff(self.policy, recent.count(name), 0))

    @invariant()
    def history_holds_the_window_and_no_more(self) -> None:
        if hasattr(self, "history"):
            assert set(self.history.restarts) <= set(self.ever)
            pruned = self.history.within(self.policy.period, self.now).restarts
            assert list(pruned) == [one for one in self.ever if one[0] >= self.now - self.policy.period]


WindowAgainstReference.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWindowAgainstReference = WindowAgainstReference.TestCase


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (65, "exit code 65 (JOURNAL_REFUSED): its journal was refused"),
        (-9, "killed by SIGKILL"),
        (-37, "killed by signal 37"),
        (None, "never started"),
    ],
)
def test_exit_codes_in_words(code: int | None, text: str) -> None:
    assert describe(code) == text


def test_signal_names() -> None:
    assert (signal_name(11), signal_name(123)) == ("SIGSEGV", "signal 123")


def test_every_status_and_code_has_a_meaning_and_its_number_is_fixed() -> None:
    assert {status.name: int(status) for status in ExitStatus} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "GAVE_UP": 3,
        "NOT_DRAINED": 4,
        "HELD": 5,
        "DAMAGED": 6,
        "NO_SPACE": 7,
    }
    assert all(status.meaning for status in ExitStatus)
    assert all(code.meaning for code in WorkerExit)


def test_records_survive_pickling() -> None:
    for record in (ChildSpec("w"), Policy(), SEGFAULT, History(((1.0, "w"),)), GiveUp("why")):
        assert pickle.loads(pickle.dumps(record)) == record
