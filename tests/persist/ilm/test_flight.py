"""How long an answer is waited for."""

from __future__ import annotations

from persist.ilm.flight import Flight, Limits

LIMITS = Limits(1 << 20, None, 1 << 16, 0.05, 5.0)


def test_waits_double_while_nothing_comes_and_begin_anew_when_the_peer_lives() -> None:
    """Else a few lost frames would silence a link for seconds although its peer answers."""
    flight = Flight(LIMITS)
    flight.await_answer(0.0)
    waits = []
    for _ in range(10):
        now = flight.deadline or 0.0
        assert flight.tick(now)
        waits.append((flight.deadline or 0.0) - now)
    assert [round(wait, 6) for wait in waits] == [min(0.05 * 2**n, 5.0) for n in range(1, 11)]
    flight.answered(100.0, is_behind=True)
    assert flight.deadline == 100.0 + 0.05
    flight.answered(100.0, is_behind=False)
    assert flight.deadline is None
