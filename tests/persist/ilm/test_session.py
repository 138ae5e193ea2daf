"""One session, call by call: what it sends when, what it believes, and what it keeps."""

from __future__ import annotations

import pytest

from persist.ilm.backend import PeerState, Run
from persist.ilm.errors import LostOwnState, PeerLostState, WireError
from persist.ilm.flight import Limits
from persist.ilm.session import Session
from persist.ilm.wire import Acknowledgement, Frame, Message, Poll, contents, decode, encode, message_frame, run_body

LIMITS = Limits(window=1000, inbox=2000, frame=1024, retry_first=1.0, retry_last=8.0)
OWN, PEER = 11, 22


def session(limits: Limits = LIMITS, peer_store: int = PEER) -> Session:
    made = Session("a", "b", OWN, peer_store, 100, limits)
    made.restore(PeerState(), 0)
    return made


def frames(one: Session, now: float = 0.0) -> list[Frame]:
    found = []
    while (frame := one.next_frame(now)) is not None:
        found.append(decode(frame))
    return found


def poll(one: Session, number: int = 0, known: int = 0, *, sender: int = PEER, receiver: int = OWN, ask: bool = False,
         lost: bool = False, refuses: bool = False, echo: int | None = None) -> bytes:  # fmt: skip
    """One from the peer, which answers what the session has said last."""
    return encode(
        Poll(sender, receiver, number, known, 7, one._nonce if echo is None else echo, "b", "a", ask, lost, refuses)
    )


def greeted(limits: Limits = LIMITS) -> Session:
    one = session(limits)
    one.connected(0.0)
    frames(one)
    one.received(poll(one), 0.0)
    frames(one)
    return one


def commit(one: Session, *counts: int, size: int = 10, first_id: int | None = None) -> None:
    for count in counts:
        first = one.outbound.assigned + 1
        body = run_body(first if first_id is None else first_id, [bytes(size)] * count)
        one.committed(Run(first, count, body), first)


def message(number: int, count: int = 1, size: int = 10, known: int = 0, sender: int = PEER) -> bytes:
    return message_frame(sender, OWN, number, known, count, [run_body(number, [bytes(size)] * count)])


def ack(number: int, known: int = 0, sender: int = PEER) -> bytes:
    return encode(Acknowledgement(sender, OWN, number, known))


# ------------------------------------------------------------------------------------------------ greeting
def test_nothing_is_published_before_the_peer_has_said_what_it_has() -> None:
    one = session()
    commit(one, 3)
    assert frames(one) == []
    one.connected(0.0)
    (greeting,) = frames(one)
    assert isinstance(greeting, Poll)
    assert (greeting.ask, greeting.number, greeting.sender, greeting.receiver) == (True, 0, OWN, PEER)
    one.received(poll(one, echo=1), 0.0)  # of an earlier connection
    assert not any(isinstance(frame, Message) for frame in frames(one))
    one.received(poll(one), 0.0)
    assert [type(frame) for frame in frames(one)] == [Message]


def test_an_unknown_store_is_remembered_from_an_answer_only() -> None:
    one = session(peer_store=0)
    one.connected(0.0)
    frames(one)
    assert one.received(poll(one, receiver=0, echo=1, ask=True), 0.0).remember == 0
    (answer,) = frames(one)
    assert isinstance(answer, Poll)
    assert (answer.echo, answer.ask) == (7, True)
    found = one.received(poll(one, receiver=0), 0.0)
    assert (found.remember, found.first) == (PEER, True)
    assert one.received(poll(one), 0.0).first is False


def test_a_greeting_without_answer_is_repeated_with_delays_that_double() -> None:
    one = session()
    one.connected(0.0)
    frames(one)
    asked = []
    for tenth in range(400):
        one.tick(tenth / 10)
        asked += [tenth / 10 for frame in frames(one, tenth / 10) if isinstance(frame, Poll) and frame.ask]
    assert asked == [1.0, 3.0, 7.0, 15.0, 23.0, 31.0, 39.0]


def test_a_question_is_answered_with_the_acknowledgement() -> None:
    one = greeted()
    one.received(message(1, 3), 0.0)
    one.inbox.clear()
    one.delivered(2)
    frames(one)
    one.received(poll(one, ask=True), 0.0)
    answer, acknowledgement = frames(one)
    assert isinstance(answer, Poll)
    assert (answer.number, answer.ask) == (3, False)
    assert acknowledgement == Acknowledgement(OWN, PEER, 2, 0)


def test_a_poll_for_others_is_no_frame_for_us() -> None:
    one = greeted()
    for source, destination in (("b", "c"), ("c", "a")):
        with pytest.raises(WireError):
            one.received(encode(Poll(PEER, OWN, 0, 0, 7, 101, source, destination)), 0.0)


# ------------------------------------------------------------------------------------------------ out
def test_runs_that_follow_each_other_are_joined() -> None:
    one = greeted()
    commit(one, 1, 2, 1)
    (frame,) = frames(one)
    assert isinstance(frame, Message)
    assert (frame.number, frame.count, frame.first_id) == (1, 4, 1)


def test_runs_whose_ids_do_not_are_not() -> None:
    one = greeted()
    commit(one, 2)
    commit(one, 1, first_id=50)
    assert [(frame.number, frame.first_id) for frame in frames(one) if isinstance(frame, Message)] == [(1, 1), (3, 50)]


def test_no_more_than_the_window_is_in_flight_until_it_is_acknowledged() -> None:
    one = greeted()
    commit(one, *[1] * 10, size=300)
    assert sum(frame.count for frame in frames(one) if isinstance(frame, Message)) == 3
    one.refill(Run(number, 1, run_body(number, [bytes(300)]), number) for number in range(1, 11))
    assert frames(one) == []
    assert one.received(ack(3), 0.0).acked == 3
    assert one.received(ack(3), 0.0).acked == 0
    assert [(frame.number, frame.count) for frame in frames(one) if isinstance(frame, Message)] == [(4, 3)]


def test_one_run_may_always_be_in_flight() -> None:
    one = greeted(Limits(window=100, frame=1024))
    commit(one, 1, 1, size=500)
    assert len(frames(one)) == 1
    one.received(ack(1), 0.0)
    one.refill([Run(2, 1, run_body(2, [bytes(500)]), 2)])
    assert len(frames(one)) == 1


def test_a_run_that_does_not_fit_a_frame_goes_in_pieces() -> None:
    one = greeted(Limits(window=5000, frame=1024))
    commit(one, 10, size=300)
    found = [frame for frame in frames(one) if isinstance(frame, Message)]
    assert [(frame.number, frame.count) for frame in found] == [(1, 3), (4, 3), (7, 3), (10, 1)]
    assert all(frame.first_id == frame.number for frame in found)
    assert max(len(frame.frame) for frame in found) <= 1024


def test_what_is_not_acknowledged_is_asked_for_and_sent_again_from_where_it_is_missing() -> None:
    one = greeted()
    commit(one, 1, 1, 1)
    one.limits = Limits(window=1000, frame=120)
    frames(one)
    assert not one.tick(0.9)
    assert one.tick(1.0)
    (question,) = frames(one, 1.0)
    assert isinstance(question, Poll)
    assert question.ask
    one.received(poll(one, number=1), 1.1)
    one.refill(Run(number, 1, run_body(number, [bytes(10)]), number) for number in (1, 2, 3))
    assert [frame.number for frame in frames(one, 1.1) if isinstance(frame, Message)] == [2]


def test_an_answer_that_knows_all_that_was_asked_for_takes_nothing_back() -> None:
    one = greeted()
    commit(one, 2)
    frames(one)
    one.tick(1.0)
    frames(one, 1.0)
    commit(one, 2)
    frames(one, 1.1)
    one.received(poll(one, number=2), 1.2)
    assert frames(one, 1.2) == []
    assert one.outbound.published == 4


def test_a_peer_that_is_slow_to_acknowledge_is_asked_later() -> None:
    one = greeted()
    now = 0.0
    for _ in range(5):
        commit(one, 1)
        frames(one, now)
        now += 0.9
        one.received(ack(one.outbound.published), now)
    commit(one, 1)
    frames(one, now)
    assert one.deadline == pytest.approx(now + 4 * 0.9)


def test_no_deadline_runs_when_nothing_is_expected() -> None:
    one = greeted()
    deadlines = [one.deadline]
    commit(one, 1)
    frames(one, 5.0)
    deadlines.append(one.deadline)
    one.received(ack(1), 5.5)
    deadlines.append(one.deadline)
    commit(one, 1)
    frames(one, 7.0)
    one.lost()
    deadlines.append(one.deadline)
    assert deadlines == [None, 6.0, None, None]


# ------------------------------------------------------------------------------------------------ in
def test_a_hole_is_asked_for_once_per_interval() -> None:
    one = greeted()
    polls = []
    for tenth in range(25):
        one.received(message(3), tenth / 10)
        polls += [tenth for frame in frames(one, tenth / 10) if isinstance(frame, Poll)]
    assert polls == [0, 10, 20]
    assert list(one.inbox) == []


def test_a_duplicate_is_acknowledged_again_and_kept_once() -> None:
    one = greeted()
    one.received(message(1, 2), 0.0)
    one.delivered(2)
    assert frames(one) == [Acknowledgement(OWN, PEER, 2, 0)]
    one.received(message(1, 2), 0.0)
    assert frames(one) == [Acknowledgement(OWN, PEER, 2, 0)]
    assert len(one.inbox) == 1


def test_a_run_that_is_known_in_part_is_kept_without_that_part() -> None:
    one = greeted()
    one.received(message(1, 2), 0.0)
    one.received(message(1, 5), 0.0)
    (first, skip), (second, skip_second) = one.inbox
    assert (first.count, skip, second.count, skip_second) == (2, 0, 5, 2)
    assert len(contents(second.frame, 48, 5)[skip_second:]) == 3


def test_what_does_not_fit_the_inbox_is_asked_for_when_there_is_room() -> None:
    one = greeted()
    for number in range(1, 6):
        one.received(message(number, size=600), 0.0)
    assert [frame.number for frame, _ in one.inbox] == [1, 2, 3]
    assert one.inbox_bytes <= 2000
    for left in (2, 1):
        assert frames(one) == [], f"there was no room for more than {left}"
        frame, _ = one.inbox.popleft()
        one.took(frame)
    (request,) = frames(one)
    assert isinstance(request, Poll)
    assert (request.number, request.ask) == (3, False)


def test_one_frame_fits_an_empty_inbox_however_long_it_is() -> None:
    one = greeted(Limits(inbox=100))
    assert one.received(message(1, size=5000), 0.0).arrived


def test_nothing_is_acknowledged_before_it_is_delivered() -> None:
    one = greeted()
    one.received(message(1, 5), 0.0)
    assert frames(one) == []
    with pytest.raises(ValueError, match="only 5 arrived"):
        one.delivered(6)
    one.delivered(4)
    assert frames(one) == [Acknowledgement(OWN, PEER, 4, 0)]


def test_frames_of_other_stores_are_answered_now_and_then_and_ignored() -> None:
    one = greeted()
    for _ in range(10):
        one.received(message(1, sender=33), 0.0)
        one.received(ack(1, sender=33), 0.0)
    (answer,) = frames(one)
    assert isinstance(answer, Poll)
    assert not one.inbox


# ------------------------------------------------------------------------------------------------ lost state
def test_another_store_is_a_peer_that_lost_its_state() -> None:
    one = greeted()
    found = one.received(poll(one, sender=33), 0.0).problem
    assert isinstance(found, PeerLostState)
    assert (found.what, found.expected, found.found) == ("store", PEER, 33)
    (told,) = frames(one)
    assert isinstance(told, Poll)
    assert (told.refuses, told.ask) == (True, False)
    commit(one, 1)
    one.received(message(1), 1.0)
    assert not one.inbox
    assert not any(isinstance(frame, Message) for frame in frames(one, 1.0))
    assert one.deadline is None


def test_a_late_poll_proves_nothing() -> None:
    one = greeted()
    for late in ({"sender": 33}, {"receiver": 44}, {"lost": True}, {"number": 9}, {"known": 9}):
        assert one.received(poll(one, echo=55, **late), 0.0).problem is None


@pytest.mark.parametrize(
    ("said", "what", "expected", "found"),
    [
        ({"receiver": 44}, "store", 44, OWN),
        ({"number": 9}, "sent", 9, 0),
        ({"known": 9}, "received", 9, 0),
        ({"refuses": True}, "state", 0, 0),
    ],
)
def test_a_peer_that_remembers_more_means_that_we_lost_ours(
    said: dict[str, int], what: str, expected: int, found: int
) -> None:
    one = greeted()
    problem = one.received(poll(one, **said), 0.0).problem  # type: ignore[arg-type]
    assert isinstance(problem, LostOwnState)
    assert (problem.what, problem.expected, problem.found) == (what, expected, found)


def test_any_frame_tells_that_deliveries_were_lost_here() -> None:
    one = greeted()
    problem = one.received(message(5, known=4), 0.0).problem
    assert isinstance(problem, LostOwnState)
    one = greeted()
    assert isinstance(one.received(ack(0, known=4), 0.0).problem, LostOwnState)


def test_an_acknowledgement_of_what_was_never_sent_means_that_we_lost_ours() -> None:
    one = greeted()
    commit(one, 3)
    frames(one)
    assert isinstance(one.received(ack(4), 0.0).problem, LostOwnState)


def test_numbers_that_were_committed_before_the_greeting_do_not_count_as_sent() -> None:
    """The storage went back from 8 to 5; three others were committed before the peer, which has 8, could say so."""
    one = session()
    one.restore(PeerState(5, 5, 0, None), 5)
    commit(one, 3)
    one.connected(0.0)
    problem = one.received(poll(one, number=8), 0.0).problem
    assert isinstance(problem, LostOwnState)
    assert (problem.what, problem.expected, problem.found) == ("sent", 8, 5)


def test_what_only_the_peer_says_ends_when_it_says_so_no_more() -> None:
    one = greeted()
    assert isinstance(one.received(poll(one, lost=True), 0.0).problem, PeerLostState)
    assert not one.received(poll(one, lost=True), 0.0).healed
    assert one.received(poll(one), 0.0).healed
    assert one.problem is None


def test_what_was_to_be_remembered_and_could_not_be_is_learned_again() -> None:
    one = session(peer_store=0)
    one.connected(0.0)
    found = one.received(poll(one, receiver=0), 0.0)
    one.unlearn(found)
    assert (one.peer_store, one.is_connected) == (0, False)
    one.connected(1.0)
    again = one.received(poll(one, receiver=0), 1.0)
    assert (again.remember, again.first) == (PEER, True)
