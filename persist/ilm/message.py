"""What an intersession message is: who sends it to whom, under which id, and bytes nobody here looks into. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

PeerId: TypeAlias = int | str
"""Who takes part: 0 <= int < 2**64, or a str of 1 to 255 bytes in UTF-8."""

MAX_ID = 2**64 - 1
MAX_NAME_BYTES = 255

M_co = TypeVar("M_co", covariant=True)


class MessageMetadata(Protocol):
    """What ILM must know of a message; a class of the user's own may have more."""

    @property
    def source_id(self) -> PeerId:
        """Who sends it."""

    @property
    def destination_id(self) -> PeerId:
        """Who shall get it."""

    @property
    def message_id(self) -> int:
        """1 to 2**64 - 1, growing from message to message of one source to one destination; gaps are allowed."""

    @property
    def contents(self) -> bytes:
        """What is delivered."""


class MakeMessage(Protocol[M_co]):
    """Makes the message that is handed to the delivery target; a class with these four fields, in this order, does."""

    def __call__(self, source_id: PeerId, destination_id: PeerId, message_id: int, contents: bytes, /) -> M_co: ...


@dataclass(frozen=True, slots=True)
class ILMMessage:
    """The message class of whoever brings none."""

    source_id: PeerId
    destination_id: PeerId
    message_id: int
    contents: bytes


def check_peer(peer: object) -> PeerId:
    """The same, as a plain int or str: members of an Enum may show otherwise than they compare. ValueError names what
    cannot be the id of a peer."""
    if isinstance(peer, int) and not isinstance(peer, bool) and 0 <= peer <= MAX_ID:
        return int.__index__(peer)
    if isinstance(peer, str) and 0 < len(peer.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES:
        return str.__str__(peer).encode().decode()  # UnicodeEncodeError, a ValueError, for lone surrogates
    raise ValueError(
        f"{peer!r} cannot be the id of a peer: give an int from 0 to 2**64 - 1, or a str of 1 to {MAX_NAME_BYTES} bytes"
    )
