"""When to try again, who is dead, and which of two connections stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.streams.policy import Pulse, Tie, Timing, failures_after, newer_stays, retry_delay, silence_limit

TIMING = Timing(heartbeat=2.0, missed=4, retry_first=0.1, retry_longest=5.0, steady=1.0)


@pytest.mark.parametrize(("failures", "delay"), [(0, 0.1), (1, 0.1), (2, 0.2), (6, 3.2), (7, 5.0), (10**6, 5.0)])
def test_the_delay_doubles_with_every_failure_up_to_the_longest(failures, delay):
    assert retry_delay(TIMING, failures, False, 1.0) == pytest.approx(delay)


@given(st.integers(0, 100), st.booleans(), st.floats(0, 1))
def test_the_delay_is_scattered_over_its_upper_half(failures, lasting, dice):
    whole = retry_delay(TIMING, failures, lasting, 1.0)
    assert retry_delay(TIMING, failures, lasting, dice) == pytest.approx(whole * (1 + dice) / 2)


def test_what_somebody_has_to_mend_is_not_tried_soon():
    assert retry_delay(TIMING, 1, True, 1.0) == 5.0


def test_a_connection_that_stood_for_a_while_ends_the_row_of_failures():
    assert failures_after(TIMING, 7, 0.9) == 8
    assert failures_after(TIMING, 7, 1.0) == 1


@pytest.mark.parametrize("wrong", [{"heartbeat": 0}, {"heartbeat": 61}, {"handshake": -1}, {"missed": 0}])
def test_times_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Timing(**wrong)


def test_a_peer_may_be_silent_as_long_as_the_heartbeats_it_announced_may_be_missing():
    assert silence_limit(TIMING, 1.0) == 5.0
    assert silence_limit(TIMING, 10**6) == 300.0, "who announces a heartbeat a month is not believed"


def looks(pulse, until, every=0.5, deaf=False):
    """The time and length of the first silence that is too long."""
    now = pulse.looked
    while now < until:
        now += every
        silent = pulse.look(now, every, deaf)
        if silent is not None:
            return now, silent
    return None


def test_a_silent_peer_is_dead_after_the_limit_and_not_before():
    assert looks(Pulse(5.0, 0.0, 0.0), 5.0) is None
    assert looks(Pulse(5.0, 0.0, 0.0), 9.0) == (5.5, 5.5)


def test_a_peer_that_is_not_read_from_is_not_silent():
    pulse = Pulse(5.0, 0.0, 0.0)
    assert looks(pulse, 60.0, deaf=True) is None
    assert looks(pulse, 65.0) is None, "what came meanwhile must be read first"


def test_a_process_that_stood_still_itself_does_not_take_others_for_dead():
    pulse = Pulse(5.0, 0.0, 0.0)
    assert pulse.look(100.0, 0.5, False) is None
    assert looks(pulse, 105.0) is None
    assert looks(pulse, 106.0) is not None


def test_a_suspect_must_be_heard_within_the_grace_once():
    pulse = Pulse(5.0, 0.0, 0.0)
    pulse.suspect(0.0, 1.0)
    assert looks(pulse, 1.0) is None
    assert looks(pulse, 2.0) == (1.5, 5.5)
    pulse = Pulse(5.0, 0.0, 0.0)
    pulse.suspect(0.0, 1.0)
    pulse.heard = 0.5
    assert looks(pulse, 5.0) is None


def test_suspicion_does_not_lengthen_a_silence():
    pulse = Pulse(5.0, 0.0, 4.5)
    pulse.suspect(4.5, 3.0)
    assert looks(pulse, 9.0) == (5.5, 5.5)


peers = st.one_of(st.integers(0, 9), st.sampled_from(["a", "b", "ab", "1"]))


@given(peers, peers)
def test_of_two_crossing_connections_both_ends_keep_the_same(left, right):
    if left == right:
        return
    from_left = (Tie(1, True), Tie(2, False))  # as left sees it, as right sees it: the peers' instances are 1 and 2
    from_right = (Tie(1, False), Tie(2, True))
    # The ends may come to know of the two in different order.
    keeps_left = not newer_stays(left, right, from_left[0], from_right[0])
    assert keeps_left == newer_stays(left, right, from_right[0], from_left[0])
    assert keeps_left == newer_stays(right, left, from_right[1], from_left[1])
    assert keeps_left == (not newer_stays(right, left, from_left[1], from_right[1]))


@given(peers, peers, st.booleans(), st.booleans())
def test_a_peer_that_was_opened_anew_has_no_use_for_its_older_connection(left, right, one, other):
    assert newer_stays(left, right, Tie(1, one), Tie(2, other))


@given(peers, peers, st.booleans())
def test_who_connects_again_has_given_up_the_older_connection(left, right, outgoing):
    assert newer_stays(left, right, Tie(1, outgoing), Tie(1, outgoing))
