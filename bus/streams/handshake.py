"""Who is at the other end: the handshake of stream connections, version 1. Pure: no socket, no clock, nonces are given.

Everything is little endian and travels in frames (bus/streams/frames.py) of at most 1 KiB; a dialogue is a generator
that is sent what came and yields what to send.

    connector                                                            acceptor
        HELLO     --------------------------------------------------->
                  <---------------------------------------------------   HELLO
        PROOF     mac("connector")  ---------------------------------->
                  <------------------------   IDENTITY of the acceptor, mac("acceptor")
        IDENTITY of the connector, mac("connector identity")  -------->
                  <---------------------------------------------------   WELCOME
    Either end may send REFUSAL instead of what is its turn, and close.

    HELLO      0: magic "RLST"   4: version u16   6: role u8 (1 connector, 2 acceptor)
               7: flags u8 (1 there is a key, 2 frames are sealed)   8: nonce, 32 random bytes       the first 8 bytes
    PROOF      0: kind 1   1: mac, 32 bytes                                                          stay as they are
    IDENTITY   0: kind 2   1: mac, 32 bytes   33: instance u64   41: max frame u32                   in all versions
               45: heartbeat in ms u32   49: id: u8 0 and u64, or u8 1 and UTF-8 up to the end
    WELCOME    0: kind 3
    REFUSAL    0: kind 4   1: why, u8

    mac(label) = HMAC-SHA256(key, "ringleader stream 1" 0 label 0, then with a u32 length before each: the HELLO of the
                 connector, the HELLO of the acceptor, and so far as sent: the acceptor's IDENTITY behind its mac, the
                 connector's IDENTITY behind its mac)

What it promises with a key
- Before the other end has shown that it has the key, an end tells it its nonce, version and flags; the connector, which
  has to begin, also a mac over the two nonces. A key that can be guessed can be tried out on that mac: hence the least
  length. Ids are told to holders of the key only (whoever listens in on the way can read them, without TLS).
- Both nonces, both roles and both ids are in the macs: nothing of one handshake is of use in another one, in the other
  direction, or between other peers. A relay between two honest ends can only carry the bytes: where the way is neither
  TLS nor within the machine, frames are sealed with keys that only the two ends can derive.
- Any holder of the key can call itself anything. Whoever needs more gives TLS and a key to each pair.
Without a key the same messages go back and forth, and the macs only show that both ends heard the same.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, TypeAlias

from bus.streams.addresses import PeerId
from bus.streams.errors import (
    FrameLimitMismatch,
    HandshakeFailed,
    MalformedHandshake,
    RefusedByPeer,
    SameId,
    SecurityMismatch,
    VersionMismatch,
    WrongKey,
    WrongPeer,
)

MAGIC: Final = b"RLST"
VERSION: Final = 1
LIMIT: Final = 1024  # of a message
NONCE_BYTES: Final = 32
LEAST_KEY_BYTES: Final = 16
MAX_ID: Final = 2**64 - 1
MAX_NAME_BYTES: Final = 255

CONNECTOR: Final = 1
ACCEPTOR: Final = 2
KEYED: Final = 1
SEALED: Final = 2
PROOF: Final = 1
IDENTITY: Final = 2
WELCOME: Final = 3
REFUSAL: Final = 4

_HELLO: Final = struct.Struct("<4sHBB32s")
_IDENTITY: Final = struct.Struct("<QII")
_MAC_BYTES: Final = 32
_DOMAIN: Final = b"ringleader stream 1\0"


@dataclass(frozen=True, slots=True)
class Terms:
    """What this end brings to a handshake. `instance` is random, new for each opening of a transport."""

    local_id: PeerId
    instance: int
    max_frame_bytes: int
    heartbeat_ms: int
    key: bytes = b""
    sealed: bool = False

    @property
    def flags(self) -> int:
        return (KEYED if self.key else 0) | (SEALED if self.sealed else 0)


@dataclass(frozen=True, slots=True)
class Session:
    """What both ends agree on. The seals' keys are empty where frames are not sealed."""

    peer: PeerId
    instance: int
    heartbeat_ms: int
    outgoing: bool  # this end connected
    send_seal: bytes
    receive_seal: bytes


Dialogue: TypeAlias = Generator[bytes, bytes, tuple[Session, bytes]]
"""Gives back what was agreed on, and the last message to send, if any."""


def connector(terms: Terms, nonce: bytes, wanted: PeerId) -> Dialogue:
    """Raises HandshakeFailed. Once it has returned, the connection stands."""
    hello = _hello(terms, CONNECTOR, nonce)
    answer = _check_hello((yield hello), terms, ACCEPTOR)
    heard = [hello, answer]
    theirs = yield bytes([PROOF]) + _mac(terms.key, b"connector", heard)
    peer, instance, heartbeat = _check_identity(theirs, terms, b"acceptor", heard)
    if peer != wanted:
        raise WrongPeer(wanted, peer)
    _expect((yield _identity(terms, b"connector identity", heard)), WELCOME, 1)
    return _session(terms, peer, instance, heartbeat, heard, outgoing=True), b""


def acceptor(terms: Terms, nonce: bytes, decide: Callable[[Session], None]) -> Dialogue:
    """Raises HandshakeFailed, also what `decide` raises of it: that is asked before the other end is welcomed."""
    theirs = _check_hello((yield b""), terms, CONNECTOR)
    hello = _hello(terms, ACCEPTOR, nonce)
    heard = [theirs, hello]
    proof = _expect((yield hello), PROOF, 1 + _MAC_BYTES)
    if not hmac.compare_digest(proof[1:], _mac(terms.key, b"connector", heard)):
        raise WrongKey
    theirs = yield _identity(terms, b"acceptor", heard)
    peer, instance, heartbeat = _check_identity(theirs, terms, b"connector identity", heard)
    session = _session(terms, peer, instance, heartbeat, heard, outgoing=False)
    decide(session)
    return session, bytes([WELCOME])


def refusal(fault: HandshakeFailed) -> bytes:
    """What to tell the other end of a fault; empty if nothing."""
    return b"" if fault.refusal is None else bytes([REFUSAL, fault.refusal])


def encode_id(peer: PeerId) -> bytes:
    return b"\0" + peer.to_bytes(8, "little") if isinstance(peer, int) else b"\1" + peer.encode()


def decode_id(encoded: bytes) -> PeerId:
    kind, rest = encoded[:1], encoded[1:]
    if kind == b"\0" and len(rest) == 8:
        return int.from_bytes(rest, "little")
    if kind == b"\1" and 0 < len(rest) <= MAX_NAME_BYTES:
        try:
            return rest.decode()
        except UnicodeDecodeError:
            pass
    raise MalformedHandshake("an id is neither a number nor a name")


def check_id(peer: object) -> PeerId:
    """The same, as a plain int or str: members of an Enum may show otherwise. ValueError names what cannot be an id."""
    if isinstance(peer, int) and not isinstance(peer, bool) and 0 <= peer <= MAX_ID:
        return int.__index__(peer)
    if isinstance(peer, str) and 0 < len(peer.encode()) <= MAX_NAME_BYTES:
        return str.__str__(peer).encode().decode()
    raise ValueError(f"{peer!r} cannot be an id: give 0 <= int < 2**64, or a str of 1 to {MAX_NAME_BYTES} bytes")


# ------------------------------------------------------------------------------------------------ messages
def _hello(terms: Terms, role: int, nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return _HELLO.pack(MAGIC, VERSION, role, terms.flags, nonce)


def _check_hello(message: bytes, terms: Terms, role: int) -> bytes:
    if message[:4] == MAGIC and len(message) >= 8:
        version = int.from_bytes(message[4:6], "little")
        if version != VERSION:
            raise VersionMismatch(VERSION, version)
    _refused(message)
    if len(message) != _HELLO.size or message[:4] != MAGIC:
        raise MalformedHandshake(f"no greeting in {len(message)} bytes")
    if message[6] != role:
        raise MalformedHandshake("the other end takes the role of this one: a reflection?")
    if message[7] != terms.flags:
        raise SecurityMismatch(_manner(terms.flags), _manner(message[7]))
    return message


def _manner(flags: int) -> str:
    key = "with a key" if flags & KEYED else "without a key"
    return f"{key} and {'sealed' if flags & SEALED else 'unsealed'} frames"


def _identity(terms: Terms, label: bytes, heard: list[bytes]) -> bytes:
    body = _IDENTITY.pack(terms.instance, terms.max_frame_bytes, terms.heartbeat_ms) + encode_id(terms.local_id)
    heard.append(body)
    return bytes([IDENTITY]) + _mac(terms.key, label, heard) + body


def _check_identity(message: bytes, terms: Terms, label: bytes, heard: list[bytes]) -> tuple[PeerId, int, int]:
    _expect(message, IDENTITY, None)
    start = 1 + _MAC_BYTES
    mac, body = message[1:start], message[start:]
    if len(body) <= _IDENTITY.size:
        raise MalformedHandshake(f"an identity of {len(message)} bytes")
    heard.append(body)
    if not hmac.compare_digest(mac, _mac(terms.key, label, heard)):
        raise WrongKey
    instance, max_frame_bytes, heartbeat_ms = _IDENTITY.unpack_from(body)
    peer = decode_id(body[_IDENTITY.size :])
    if peer == terms.local_id and type(peer) is type(terms.local_id):
        raise SameId(peer, instance == terms.instance)
    if max_frame_bytes != terms.max_frame_bytes:
        raise FrameLimitMismatch(terms.max_frame_bytes, max_frame_bytes)
    if not heartbeat_ms:
        raise MalformedHandshake("a heartbeat every 0 ms")
    return peer, instance, heartbeat_ms


def _expect(message: bytes, kind: int, size: int | None) -> bytes:
    _refused(message)
    if message[:1] != bytes([kind]) or size not in {None, len(message)}:
        raise MalformedHandshake(f"{len(message)} bytes of kind {message[:1].hex() or 'none'} instead of kind {kind}")
    return message


def _refused(message: bytes) -> None:
    if len(message) == 2 and message[0] == REFUSAL:
        raise RefusedByPeer(message[1])


def _mac(key: bytes, label: bytes, heard: list[bytes]) -> bytes:
    parts = [_DOMAIN, label, b"\0"]
    for one in heard:
        parts += [len(one).to_bytes(4, "little"), one]
    return hmac.digest(key, b"".join(parts), "sha256")


def _session(
    terms: Terms, peer: PeerId, instance: int, heartbeat: int, heard: list[bytes], *, outgoing: bool
) -> Session:
    mine, other = (b"seal of connector", b"seal of acceptor")[:: 1 if outgoing else -1]
    send, receive = (_mac(terms.key, label, heard) if terms.sealed else b"" for label in (mine, other))
    return Session(peer, instance, heartbeat, outgoing, send, receive)
