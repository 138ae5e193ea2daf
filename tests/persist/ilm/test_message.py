"""Who can be a peer, and as what."""

from __future__ import annotations

from enum import Enum

import pytest

from bus.streams.handshake import check_id
from persist.ilm.message import check_peer

Name = Enum("Name", {"BOB": "bob"}, type=str)
Number = Enum("Number", {"SEVEN": 7}, type=int)


@pytest.mark.parametrize("check", [check_peer, check_id])
@pytest.mark.parametrize(
    ("given", "plain"), [(Name.BOB, "bob"), (Number.SEVEN, 7), ("bob", "bob"), (2**64 - 1, 2**64 - 1)]
)
def test_peers_are_plain_whatever_they_were_given_as(check, given, plain) -> None:
    """They become names in storage and bytes on the wire, and must be the same peer in both."""
    found = check(given)
    assert (type(found), found, str(found)) == (type(plain), plain, str(plain))


@pytest.mark.parametrize("check", [check_peer, check_id])
@pytest.mark.parametrize("wrong", [True, -1, 2**64, "", "x" * 256, "\ud800", 1.0, None, b"bob"])
def test_what_cannot_be_a_peer_is_refused_by_name(check, wrong) -> None:
    with pytest.raises(ValueError):
        check(wrong)
