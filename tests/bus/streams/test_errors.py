"""Errors of the stream transports carry their values, say them, and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from bus.errors import BusError
from bus.streams import errors as transport_errors
from bus.streams.errors import HandshakeFailed, Refusal, TransportClosed

SAMPLES = {
    "TransportClosed": (),
    "WrongKey": (),
    "AddressInUse": ("unix:/run/a.sock",),
    "InsecureAddress": ("tcp:0.0.0.0:99", "listen at"),
    "UnusableSocketFile": ("/run/a.sock", "no such directory"),
    "FrameTooLarge": (77, 66),
    "FrameTooLong": (77, 66),
    "FrameForged": (77,),
    "PeerSilent": (7.5,),
    "ConnectionLost": ("reset",),
    "CannotAccept": ("too many open files",),
    "Replaced": ("bob",),
    "MalformedHandshake": ("no greeting",),
    "VersionMismatch": (1, 2),
    "SecurityMismatch": ("with a key", "without a key"),
    "WrongPeer": ("alice", 77),
    "SameId": ("alice", True),
    "FrameLimitMismatch": (77, 66),
    "AlreadyConnected": ("bob",),
    "TooManyPeers": (77,),
    "RefusedByPeer": (4,),
    "ForeignUser": (77, 66),
    "BeyondLoopback": ("tcp:printer:99",),
    "HandshakeTimedOut": (7.5,),
    "PushedOut": (77,),
    "TlsFailed": ("CERTIFICATE_VERIFY_FAILED",),
}
FAMILIES = {"TransportError", "StreamFault", "HandshakeFailed"}


def test_every_error_is_looked_at_here():
    there = {
        name
        for name, found in vars(transport_errors).items()
        if isinstance(found, type) and issubclass(found, BusError) and found is not BusError
    }
    assert there == SAMPLES.keys() | FAMILIES


@pytest.mark.parametrize("name", SAMPLES)
def test_it_survives_pickling_and_says_what_it_carries(name):
    error = getattr(transport_errors, name)(*SAMPLES[name])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    for value in SAMPLES[name]:
        assert isinstance(value, bool) or name == "RefusedByPeer" or str(value) in str(error)


def test_each_refusal_is_told_by_exactly_one_fault():
    kinds = [getattr(transport_errors, name) for name in SAMPLES]
    told = [kind.refusal for kind in kinds if issubclass(kind, HandshakeFailed) and kind.refusal is not None]
    assert sorted(told) == sorted(Refusal)


@pytest.mark.parametrize(("code", "text"), [(Refusal.WRONG_KEY, "wrong key"), (200, "reason 200")])
def test_what_the_other_end_refuses_for_is_named(code, text):
    assert str(transport_errors.RefusedByPeer(code)).endswith(text)


def test_a_closed_transport_is_known_by_a_class_of_the_standard_library():
    assert issubclass(TransportClosed, ConnectionError)
