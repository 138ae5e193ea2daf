"""What next with a message that failed: the whole grid, and what holds for any numbers."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actors import Handler
from actors.attempts import GIVE_UP, TRY, GiveUp, Tolerance, Try, Wait, next_step, source_attempts, strictest
from actors.handler import describe
from actors.handler_policy import ATTRIBUTE, ON_ERROR, HandlerPolicy, problems

DEFAULT = 3  # of the topology

policies = st.builds(
    HandlerPolicy,
    max_attempts=st.none() | st.integers(1, 9),
    on_error=st.sampled_from(ON_ERROR),
    retry_first=st.floats(0, 1e6),
    retry_max=st.floats(0, 1e6),
    ordered=st.booleans(),
)


@pytest.mark.parametrize(
    ("on_error", "max_attempts", "attempts"), list(product(ON_ERROR, (None, 1, 2, 5), range(7))), ids=str
)
def test_a_message_is_given_up_when_its_attempts_are_used_up_and_never_by_retry(
    on_error: str, max_attempts: int | None, attempts: int
) -> None:
    tolerance = strictest([HandlerPolicy(max_attempts, on_error)], DEFAULT)
    gives_up = on_error != "retry" and attempts >= (max_attempts or DEFAULT)
    assert next_step(tolerance, attempts, 0.0, 0.0) == (GIVE_UP if gives_up else TRY)
    assert tolerance.crash == (on_error == "crash")


@pytest.mark.parametrize(
    ("first", "longest", "delays"),
    [
        (0.0, 60.0, [0.0, 0.0, 0.0, 0.0]),
        (0.5, 60.0, [0.5, 1.0, 2.0, 4.0]),
        (0.5, 1.5, [0.5, 1.0, 1.5, 1.5]),
        (5.0, 1.0, [1.0, 1.0, 1.0, 1.0]),
        (1.0, 0.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_delays_double_from_the_first_up_to_the_longest(first: float, longest: float, delays: list[float]) -> None:
    policy = HandlerPolicy(on_error="retry", retry_first=first, retry_max=longest)
    tolerance = strictest([policy], DEFAULT)
    assert [tolerance.delay(n) for n in (1, 2, 3, 4)] == delays
    for n, delay in enumerate(delays, 1):
        assert next_step(tolerance, n, 100.0, 100.0) == (Wait(100.0 + delay) if delay else TRY)
        assert next_step(tolerance, n, 100.0, 100.0 + delay) == TRY


def test_the_first_attempt_never_waits() -> None:
    tolerance = strictest([HandlerPolicy(retry_first=9.0)], DEFAULT)
    assert next_step(tolerance, 0, 0.0, 0.0) == TRY


def test_giving_up_does_not_wait() -> None:
    tolerance = strictest([HandlerPolicy(max_attempts=1, retry_first=9.0)], DEFAULT)
    assert next_step(tolerance, 1, 0.0, 0.0) == GIVE_UP


def test_a_message_without_a_handler_here_is_given_up_after_the_topologys_attempts() -> None:
    assert strictest([], DEFAULT) == Tolerance(DEFAULT)


RETRY, CRASH, LETTER = (HandlerPolicy(on_error=one) for one in ("retry", "crash", "dead-letter"))


@pytest.mark.parametrize(
    ("together", "max_attempts", "crash"),
    [
        ([RETRY], None, False),
        ([RETRY, RETRY], None, False),
        ([RETRY, LETTER], 3, False),
        ([RETRY, replace(LETTER, max_attempts=7)], 7, False),
        ([replace(RETRY, max_attempts=1), LETTER], 3, False),
        ([replace(LETTER, max_attempts=7), LETTER], 3, False),
        ([replace(LETTER, max_attempts=2), LETTER], 2, False),
        ([CRASH, LETTER], 3, True),
        ([CRASH, RETRY], 3, True),
    ],
)
def test_several_handlers_are_as_strict_as_the_strictest(
    together: list[HandlerPolicy], max_attempts: int | None, crash: bool
) -> None:
    for some in (together, together[::-1]):
        found = strictest(some, DEFAULT)
        assert (found.max_attempts, found.crash) == (max_attempts, crash)


@pytest.mark.parametrize(("one", "other"), list(product([True, False], repeat=2)))
def test_order_matters_if_it_does_to_one_of_them(one: bool, other: bool) -> None:
    assert strictest([replace(LETTER, ordered=one), replace(LETTER, ordered=other)], 3).ordered == (one or other)


@given(st.lists(policies, min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 5000), st.floats(0, 1e9))
def test_nobody_is_treated_less_strictly_than_he_says(
    together: list[HandlerPolicy], default: int, attempts: int, now: float
) -> None:
    """Each one's limit holds and each one's delay is waited for, and not longer than the longest."""
    found = strictest(together, default)
    alone = [strictest([one], default) for one in together]
    step = next_step(found, attempts, now, now)
    assert isinstance(step, GiveUp) == any(isinstance(next_step(one, attempts, now, now), GiveUp) for one in alone)
    delays = [one.delay(attempts) for one in alone]
    assert found.delay(attempts) == max(delays)
    if isinstance(step, Wait):
        assert step.until == now + max(delays)
    if isinstance(step, Try) and attempts:
        assert now + max(delays) == now
    assert found.delay(attempts) <= max(one.retry_max for one in together)
    assert found.delay(attempts) <= found.delay(attempts + 1)


def of(base: type = object, /, **said: object) -> type:
    """A class that says this, as `Handler` keeps it."""
    return type("Said", (base,), {ATTRIBUTE: said})


@pytest.mark.parametrize(
    ("cls", "values", "advice"),
    [
        (of(retry_first=100, retry_max=1), ("retry_first=100", "retry_max=1:"), "say a retry_max of at least"),
        (of(retry_first=100), ("retry_first=100", "retry_max=60.0:"), "say a retry_max of at least"),
        (of(of(retry_first=2.0), retry_max=1.5), ("retry_first=2.0", "retry_max=1.5:"), "or a smaller retry_first"),
        (of(on_error="retry", max_attempts=3), ("on_error='retry'", "max_attempts=3:"), "leave max_attempts out"),
        (
            of(of(max_attempts=3), on_error="retry"),
            ("on_error='retry'", "max_attempts=3:"),
            "None, where it is inherited",
        ),
    ],
)
def test_values_that_contradict_each_other_are_both_named(cls: type, values: tuple[str, str], advice: str) -> None:
    (problem,) = problems(cls)
    assert problem.startswith(f"{values[0]} and {values[1]}")
    assert advice in problem


@pytest.mark.parametrize(
    "cls",
    [
        of(retry_first=1.0, retry_max=1.0),
        of(retry_first=60.0),
        of(retry_max=0),
        of(on_error="retry"),
        of(of(max_attempts=3), on_error="retry", max_attempts=None),
        of(on_error="crash", max_attempts=3),
    ],
)
def test_values_that_go_together_are_no_problem(cls: type) -> None:
    assert problems(cls) == []


def test_attempts_of_an_on_start_may_be_limited_where_messages_are_retried_for_ever() -> None:
    class Starts(Handler, on_error="retry", max_attempts=3):
        def on_start(self) -> None: ...

    class Receives(Handler, on_error="retry", max_attempts=3): ...

    assert describe(Starts).problems == ()
    assert describe(Receives).problems[0].startswith("on_error='retry' and max_attempts=3: ")


def test_a_value_that_is_none_is_the_only_problem_of_its_class() -> None:
    (problem,) = problems(of(retry_first="soon", retry_max=-1 + 2, on_error="retry", max_attempts=3))
    assert problem.startswith("retry_first='soon': it is a number of seconds")


@given(policies, st.integers(1, 9))
def test_a_source_may_fail_as_often_as_its_policy_says(policy: HandlerPolicy, default: int) -> None:
    expected = {"retry": None, "crash": 1, "dead-letter": policy.max_attempts or default}
    assert source_attempts(policy, default) == expected[policy.on_error]
