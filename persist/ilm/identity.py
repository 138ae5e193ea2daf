"""What ILM remembers in keyed values: whose storage this is, and with which storage of each peer it has to do.

ilm/local                  the local id
ilm/store                  the identity of this storage: random, not 0, made when it was first used
ilm/peer/<id>/own          the identity of this storage towards one peer, once that was forgotten: until then ilm/store
ilm/peer/<id>/store        the identity of the peer's storage
ilm/peer/<id>/offset       id of a message to it, less its number; never shrinks
ilm/peer/<id>/reach        last number to it that may have been published, while nothing behind that has been: written
                           by an opening, removed before anything is published
ilm/peer/<id>/forgetting   the peer is being forgotten: an opening that finds this goes on with it

An <id> is "i" and the number, or "s" and the name. Integers are u64, little endian. What cannot be is BackendFailed:
nothing is made up in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persist.ilm.backend import Backend, Change, PeerState
from persist.ilm.errors import BackendFailed, WireError, WrongBackend
from persist.ilm.message import PeerId
from persist.ilm.wire import decode_peer, encode_peer

LOCAL = "ilm/local"
STORE = "ilm/store"
USER = "user/"


def peer_key(peer: PeerId, what: str) -> str:
    """The key of what is remembered of one peer."""
    tagged = f"i{peer}" if isinstance(peer, int) else f"s{peer}"
    return f"ilm/peer/{tagged}/{what}"


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


@dataclass(slots=True)
class Remembered:
    """Of one peer. `store` is 0 as long as nothing was exchanged under `own`."""

    own: int
    store: int
    offset: int
    reach: int = 0


def adopt(backend: Backend, local: PeerId, make_store: Callable[[], int]) -> int:
    """The identity of the storage, which is made if this is its first use. WrongBackend if it belongs to another."""
    found = backend.get(LOCAL)
    if found is None:
        if backend.get(STORE) is not None:
            raise BackendFailed(f"{STORE} is there and {LOCAL} is not")
        store = make_store()
        backend.commit(Change(values=((LOCAL, encode_peer(local)), (STORE, number(store)))))
        return store
    try:
        owner, end = decode_peer(found)
    except WireError as error:
        raise BackendFailed(f"{LOCAL}: {error}") from error
    if end != len(found):
        raise BackendFailed(f"{LOCAL} has {len(found)} bytes, not {end}")
    if owner != local:
        raise WrongBackend(local, owner)
    own = _read(backend, STORE)
    if own == 0:
        raise BackendFailed(f"{STORE} is missing or 0")
    return own


def recall(backend: Backend, peer: PeerId, own: int, state: PeerState) -> Remembered:
    """What is known of a peer, whose session begins now; `state` is what the backend recovered of it."""
    own = _read(backend, peer_key(peer, "own")) or own
    store = _read(backend, peer_key(peer, "store"))
    if store == 0 and (state.acked or state.watermark):
        raise BackendFailed(f"messages were exchanged with {peer!r}, but {peer_key(peer, 'store')} is missing")
    offset = _read(backend, peer_key(peer, "offset"))
    if store == 0:
        return Remembered(own, store, offset, 0)
    reach_key = peer_key(peer, "reach")
    if backend.get(reach_key) is None:
        backend.commit(Change(values=((reach_key, number(state.assigned)),)))
    return Remembered(own, store, offset, _read(backend, reach_key))


def learned(peer: PeerId, remember: int, first: bool) -> Change:
    """What a session wants remembered."""
    values: list[tuple[str, bytes | None]] = []
    if remember:
        values.append((peer_key(peer, "store"), number(remember)))
    values.append((peer_key(peer, "reach"), None if first else number(0)))  # to an unknown store nothing was published
    return Change(values=values)


def is_being_forgotten(backend: Backend, peer: PeerId) -> bool:
    return backend.get(peer_key(peer, "forgetting")) is not None


def forgetting(peer: PeerId, remembered: Remembered, own: int, last_id: int) -> Change:
    """Begins to forget: from here on this end is another one to the peer. Ids go on behind `last_id`."""
    values: list[tuple[str, bytes | None]] = [
        (peer_key(peer, "offset"), number(last_id)),
        (peer_key(peer, "forgetting"), b"1"),
        (peer_key(peer, "store"), None),
        (peer_key(peer, "reach"), None),
    ]
    if remembered.store:
        values.append((peer_key(peer, "own"), number(own)))
    return Change(values=tuple(values))


def forgotten(peer: PeerId) -> Change:
    """Ends it: the backend has forgotten."""
    return Change(values=((peer_key(peer, "forgetting"), None),))


def _read(backend: Backend, key: str) -> int:
    value = backend.get(key)
    if value is None:
        return 0
    if len(value) != 8:
        raise BackendFailed(f"{key} has {len(value)} bytes, not 8")
    return int.from_bytes(value, "little")
