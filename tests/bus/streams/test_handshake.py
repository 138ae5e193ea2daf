"""Both ends learn who the other is, or both learn that they do not; whoever lacks the key learns nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.streams.errors import (
    AlreadyConnected,
    FrameForged,
    FrameLimitMismatch,
    HandshakeFailed,
    MalformedHandshake,
    Refusal,
    RefusedByPeer,
    SameId,
    SecurityMismatch,
    VersionMismatch,
    WrongKey,
    WrongPeer,
)
from bus.streams.frames import Seal
from bus.streams.handshake import (
    IDENTITY,
    LIMIT,
    NONCE_BYTES,
    PROOF,
    VERSION,
    acceptor,
    check_id,
    connector,
    decode_id,
    encode_id,
    refusal,
)
from tests.bus.streams.building import KEY, terms

ONE, TWO = bytes(range(NONCE_BYTES)), bytes(range(100, 100 + NONCE_BYTES))
ALICE, BOB = terms("alice", key=KEY), terms("bob", key=KEY)


class End:
    """One side of a handshake that is carried on by hand."""

    def __init__(self, dialogue):
        self._dialogue = dialogue
        self.session: Any = None
        self.fault: Any = None
        self.first = self.tell(None)

    def tell(self, message):
        """What it says to that; empty if nothing, and once it has ended."""
        try:
            return next(self._dialogue) if message is None else self._dialogue.send(message)
        except StopIteration as done:
            self.session, last = done.value
            return last
        except HandshakeFailed as fault:
            self.fault = fault
            return refusal(fault)

    @property
    def over(self):
        return self.session is not None or self.fault is not None


def connecting(mine=BOB, wanted="alice", nonce=ONE):
    return End(connector(mine, nonce, wanted))


def accepting(mine=ALICE, nonce=TWO, decide=lambda session: None):
    return End(acceptor(mine, nonce, decide))


def shake(left, right, change=lambda message: message):
    """Carries messages to and fro until nobody has any; returns all that passed."""
    passed, message, ends = [], left.first, [right, left]
    while message and not ends[0].over:
        passed.append(message)
        message = ends[0].tell(change(message))
        ends.reverse()
    return passed


ids = st.one_of(st.integers(0, 2**64 - 1), st.text(min_size=1, max_size=60).filter(lambda text: _encodable(text)))


def _encodable(text):
    try:
        return len(text.encode()) <= 255
    except UnicodeEncodeError:
        return False


@given(ids, ids, st.booleans(), st.booleans())
def test_two_ends_with_one_key_learn_who_the_other_is(left, right, keyed, sealed):
    key = KEY if keyed else b""
    mine, theirs = terms(left, key=key, sealed=sealed), terms(right, key=key, sealed=sealed, heartbeat_ms=123)
    one, other = End(connector(mine, ONE, right)), End(acceptor(theirs, TWO, lambda session: None))
    passed = shake(one, other)
    if encode_id(left) == encode_id(right):
        assert isinstance(one.fault, SameId)
        return
    assert all(len(message) <= LIMIT for message in passed)
    assert (one.session.peer, one.session.instance, one.session.outgoing) == (right, theirs.instance, True)
    assert (other.session.peer, other.session.instance, other.session.outgoing) == (left, mine.instance, False)
    assert one.session.heartbeat_ms == 123
    assert bool(one.session.send_seal) == sealed
    assert one.session.send_seal == other.session.receive_seal
    assert other.session.send_seal == one.session.receive_seal
    if sealed:
        assert one.session.send_seal != one.session.receive_seal


@given(ids)
def test_ids_are_encoded_and_decoded_again(peer):
    assert decode_id(encode_id(peer)) == peer
    assert type(decode_id(encode_id(peer))) is type(peer)


@pytest.mark.parametrize("encoded", [b"", b"\0", b"\0" + bytes(7), b"\1", b"\1\xff", b"\1" + b"x" * 256, b"\2abc"])
def test_what_is_no_id_is_refused(encoded):
    with pytest.raises(MalformedHandshake):
        decode_id(encoded)


@pytest.mark.parametrize("peer", [-1, 2**64, "", "x" * 256, True, None, b"bob", 1.0, "\ud800"])
def test_what_cannot_be_an_id_is_named(peer):
    with pytest.raises(ValueError, match=r"id|surrogates"):
        check_id(peer)


def test_a_wrong_key_is_noticed_by_both_ends():
    one, other = connecting(terms("bob", key=b"another secret!!")), accepting()
    shake(one, other)
    assert isinstance(other.fault, WrongKey)
    assert isinstance(one.fault, RefusedByPeer)
    assert one.fault.code == Refusal.WRONG_KEY
    assert one.fault.lasting


def test_an_acceptor_without_the_key_learns_neither_who_connects_nor_whom_they_want():
    one = connecting()
    impostor = accepting(terms("alice", key=b"not that secret!"))
    shown = [one.first]
    hello = impostor.tell(one.first)
    shown.append(one.tell(hello))
    # It cannot check the proof, and makes up an identity.
    made_up = bytes([IDENTITY]) + bytes(32 + 16) + encode_id("alice")
    shown.append(one.tell(made_up))
    assert isinstance(one.fault, WrongKey)
    assert not any(b"bob" in message or b"alice" in message for message in shown)
    assert [len(message) for message in shown] == [40, 33, 2]


def test_a_connector_without_the_key_learns_nothing_but_the_version():
    other = accepting()
    hello = other.tell(connecting().first)
    assert len(hello) == 40
    assert other.tell(bytes([PROOF]) + bytes(32)) == refusal(WrongKey())
    assert isinstance(other.fault, WrongKey)


def test_what_was_heard_once_is_of_no_use_again():
    passed = shake(connecting(), accepting())
    other = accepting(nonce=bytes(NONCE_BYTES))
    assert other.tell(passed[0])
    other.tell(passed[2])
    assert isinstance(other.fault, WrongKey)
    one = connecting(nonce=bytes(NONCE_BYTES))
    assert one.tell(passed[1])
    one.tell(passed[3])
    assert isinstance(one.fault, WrongKey)


def test_an_end_that_hears_itself_is_not_taken_in():
    one = connecting()
    one.tell(one.first)
    assert isinstance(one.fault, MalformedHandshake)
    as_acceptor = one.first[:6] + b"\2" + one.first[7:]
    one = connecting()
    proof = one.tell(as_acceptor)  # the mirrored greeting passes: it is public
    one.tell(proof)
    assert isinstance(one.fault, MalformedHandshake)
    one = connecting()
    proof = one.tell(as_acceptor)
    one.tell(bytes([IDENTITY]) + proof[1:] + bytes(16) + encode_id("alice"))
    assert isinstance(one.fault, WrongKey)


def test_a_relay_cannot_say_anything_of_its_own_in_sealed_frames():
    mine, theirs = replace(BOB, sealed=True), replace(ALICE, sealed=True)
    one, other = connecting(mine), accepting(theirs)
    shake(one, other)  # as it passes through the relay, which sees all of it
    sealed = Seal(one.session.send_seal).close(b"true")
    assert Seal(other.session.receive_seal).open(sealed) == b"true"
    with pytest.raises(FrameForged):
        Seal(other.session.receive_seal).open(b"false" + sealed[-16:])


def test_another_than_the_wanted_peer_is_not_told_who_asks():
    one, other = connecting(wanted="carol"), accepting()
    passed = shake(one, other)
    assert isinstance(one.fault, WrongPeer)
    assert (one.fault.wanted, one.fault.found) == ("carol", "alice")
    assert isinstance(other.fault, RefusedByPeer)
    assert not any(b"bob" in message for message in passed)


@pytest.mark.parametrize("itself", [True, False])
def test_the_own_id_at_the_other_end_is_refused(itself):
    namesake = ALICE if itself else terms("alice", key=KEY)
    one, other = connecting(namesake, wanted="alice"), accepting()
    shake(one, other)
    assert isinstance(one.fault, SameId)
    assert one.fault.itself is itself


def test_a_number_and_the_name_that_looks_like_it_are_two():
    one, other = End(connector(terms(7), ONE, "7")), End(acceptor(terms("7"), TWO, lambda session: None))
    shake(one, other)
    assert (one.session.peer, other.session.peer) == ("7", 7)


@pytest.mark.parametrize("version", [0, VERSION + 1, 65535])
def test_another_version_is_refused_by_name_whatever_follows_in_it(version):
    hello = b"RLST" + version.to_bytes(2, "little") + b"\1\0" + b"something quite different"
    other = accepting()
    assert other.tell(hello) == bytes([4, Refusal.VERSION])
    assert isinstance(other.fault, VersionMismatch)
    assert (other.fault.ours, other.fault.theirs) == (VERSION, version)


def test_a_key_at_one_end_only_is_refused():
    one, other = connecting(terms("bob")), accepting()
    shake(one, other)
    assert isinstance(other.fault, SecurityMismatch)
    assert one.fault.code == Refusal.SECURITY
    one = connecting()
    one.tell(accepting(terms("alice")).tell(connecting(terms("bob")).first))
    assert isinstance(one.fault, SecurityMismatch), "a connector with a key gave in to an acceptor without"


def test_different_frame_limits_are_refused():
    one, other = connecting(replace(BOB, max_frame_bytes=5000)), accepting()
    shake(one, other)
    assert isinstance(one.fault, FrameLimitMismatch)
    assert (one.fault.ours, one.fault.theirs) == (5000, 1 << 20)


def test_who_connects_is_asked_about_before_being_welcomed():
    asked = []

    def decide(session):
        asked.append(session)
        raise AlreadyConnected(session.peer)

    one, other = connecting(), accepting(decide=decide)
    shake(one, other)
    assert [session.peer for session in asked] == ["bob"]
    assert isinstance(other.fault, AlreadyConnected)
    assert one.session is None
    assert (one.fault.code, one.fault.lasting) == (Refusal.ALREADY_CONNECTED, False)


@given(st.integers(0, 4), st.data())
def test_one_changed_byte_anywhere_never_makes_a_session_with_others(turn, data):
    number = -1

    def change(message):
        nonlocal number
        number += 1
        if number != turn:
            return message
        changed = bytearray(message)
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] ^= data.draw(st.integers(1, 255))
        return bytes(changed)

    one, other = connecting(), accepting()
    shake(one, other, change)
    assert one.session is None
    assert other.session is None


def replaced_at(target, garbage, passing, message):
    return garbage if next(passing) == target else message


@given(st.integers(0, 2), st.binary(max_size=200), st.booleans())
def test_garbage_at_any_turn_is_a_fault_and_nothing_else(turn, garbage, keyed):
    mine, theirs = (BOB, ALICE) if keyed else (terms("bob"), terms("alice"))
    for listens in (0, 1):
        passing = itertools.count()
        target = 2 * turn + listens
        one, other = connecting(mine), accepting(theirs)
        shake(one, other, partial(replaced_at, target, garbage, passing))
        told = other if listens == 0 else one
        if next(passing) > target:
            assert isinstance(told.fault, HandshakeFailed) or garbage == b"\x03"
