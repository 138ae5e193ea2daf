"""What ILM and its backends and transports raise. Every error names who is at fault, carries the values, and survives
pickling."""

from __future__ import annotations

from collections.abc import Mapping

from persist.errors import PersistError
from persist.ilm.message import PeerId


class ILMError(PersistError):
    """The root of all errors of the intersession layer."""


class StorageFull(ILMError):
    """The backend has no room for `what`. Nothing was changed; it can be tried again."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"no room for {self.what}; nothing was changed"


class BackendInUse(ILMError):
    """Another ILM, or another process, has this storage."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where} is in use by another"


class WrongBackend(ILMError):
    """The caller opened the storage of another peer."""

    def __init__(self, expected: PeerId, found: PeerId) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"the storage belongs to {self.found!r}, not to {self.expected!r}"


class NotAStore(ILMError):
    """There is something else where the backend was told to keep its state. It was not touched."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} is not the storage of an ILM: {self.reason}"


class ILMBroken(ILMError):
    """Something below ILM failed. Nothing more is accepted; what was committed is in the backend."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"this ILM cannot go on: {self.cause}"


class BackendFailed(ILMBroken):
    """The backend failed. What it really holds is found out by opening it again."""

    def __str__(self) -> str:
        return f"the backend failed: {self.cause}"


class TransportFailed(ILMBroken):
    """The transport failed, or was closed by someone else than ILM."""

    def __str__(self) -> str:
        return f"the transport failed: {self.cause}"


class TransportClosed(ILMError):
    """The caller closed this transport."""

    def __str__(self) -> str:
        return "the transport is closed"


class ILMClosed(ILMError):
    """The caller closed this ILM."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"this ILM takes nothing more: {self.reason}"


class ShutdownInDelivery(ILMError):
    """The delivery target waits for the shutdown of its own ILM, which would wait for the target. Nothing was done."""

    def __str__(self) -> str:
        return (
            "shutdown waits for the delivery that called it: start it as a task, asyncio.create_task(ilm.shutdown()), "
            "and let the target return"
        )


class NotKnownDurable(ILMError):
    """What the caller gave is committed, but whether it is synced will not be known here: after a power loss it may be
    there or not, else it is. To send it again is to send it twice. Raised as one of the kinds below, each of which is
    also the error that ended the wait."""

    def __str__(self) -> str:
        return f"{super().__str__()}; what was given is committed, though not known to be synced: do not give it again"


class ClosedBeforeSync(NotKnownDurable, ILMClosed):
    """The caller closed this ILM while another call waited for its sync."""


class BrokenBeforeSync(NotKnownDurable, ILMBroken):
    """Something below ILM failed while a call waited for its sync."""


class BackendFailedBeforeSync(NotKnownDurable, BackendFailed):
    """The backend failed while a call waited for its sync."""


class TransportFailedBeforeSync(NotKnownDurable, TransportFailed):
    """The transport failed while a call waited for its sync."""


def not_known_durable(error: ILMError) -> ILMError:
    """`error` to whom has committed and waits for the sync."""
    for kind, also in (
        (ILMClosed, ClosedBeforeSync),
        (BackendFailed, BackendFailedBeforeSync),
        (TransportFailed, TransportFailedBeforeSync),
    ):
        if isinstance(error, kind):
            return also(*error.args)
    return BrokenBeforeSync(str(error))


class SendToSelf(ILMError):
    """The caller gave its own id as the destination."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(peer)
        self.peer = peer

    def __str__(self) -> str:
        return f"{self.peer!r} is this end: nothing can be sent to oneself"


class WrongSource(ILMError):
    """The caller sends a message that names another source than this end."""

    def __init__(self, source: PeerId, local: PeerId) -> None:
        super().__init__(source, local)
        self.source = source
        self.local = local

    def __str__(self) -> str:
        return f"the message names {self.source!r} as its source, but this end is {self.local!r}"


class MessageIdNotNew(ILMError):
    """The caller's ids must grow per destination: `last` was accepted before."""

    def __init__(self, peer: PeerId, message_id: int, last: int) -> None:
        super().__init__(peer, message_id, last)
        self.peer = peer
        self.message_id = message_id
        self.last = last

    def __str__(self) -> str:
        return f"message id {self.message_id} for {self.peer!r} is not above the last one, {self.last}"


class ContentsTooLarge(ILMError):
    """The caller's contents do not fit a frame of the transport."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"contents of {self.size} bytes are over the transport's limit of {self.limit}"


class PeerLostState(ILMError):
    """The peer's state is not the one that messages were exchanged with: it lost it, or went back to an older copy.

    what   "store": it is another storage; "state": it says so
    """

    def __init__(self, peer: PeerId, what: str, expected: int, found: int) -> None:
        super().__init__(peer, what, expected, found)
        self.peer = peer
        self.what = what
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"peer {self.peer!r} lost its state: {self.what} should be {self.expected}, is {self.found}; "
            f"call forget({self.peer!r}) here, and forget of this end there if it remembers it"
        )


class LostOwnState(ILMError):
    """The peer remembers more of this end than this end does: the state here was lost, or is an older copy.

    what   "store": it knows another storage; "sent": it has messages from here that were never committed here;
           "received": it was told that messages are here that are not; "state": it says so
    """

    def __init__(self, peer: PeerId, what: str, expected: int, found: int) -> None:
        super().__init__(peer, what, expected, found)
        self.peer = peer
        self.what = what
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"this end lost its state: by what peer {self.peer!r} remembers, "
            f"{self.what} should be {self.expected}, is {self.found}; "
            f"call forget({self.peer!r}) here if this end remembers it, and forget of this end there"
        )


class DeliveryFailed(ILMError):
    """The delivery target failed each time. Nothing behind this message is delivered before it."""

    def __init__(self, peer: PeerId, message_id: int, attempts: int, cause: str) -> None:
        super().__init__(peer, message_id, attempts, cause)
        self.peer = peer
        self.message_id = message_id
        self.attempts = attempts
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"message {self.message_id} from {self.peer!r} failed {self.attempts} times, the last time by "
            f"{self.cause}; call retry({self.peer!r}) to go on with it, or forget({self.peer!r}) to drop all there is "
            "of this peer"
        )


class ShutdownTimedOut(ILMError):
    """Peers did not acknowledge in time: `pending` maps each to how many messages. They stay in the backend."""

    def __init__(self, pending: Mapping[PeerId, int]) -> None:
        super().__init__(dict(pending))
        self.pending = dict(pending)

    def __str__(self) -> str:
        peers = ", ".join(f"{peer!r} ({count} messages)" for peer, count in self.pending.items())
        return f"shut down before all was acknowledged; still pending: {peers}"


class WireError(ILMError):
    """The peer sent what is no frame: `value` was found where `limit` bounds it, or was expected."""

    def __init__(self, reason: str, value: int = 0, limit: int = 0) -> None:
        super().__init__(reason, value, limit)
        self.reason = reason
        self.value = value
        self.limit = limit

    def __str__(self) -> str:
        return f"not a frame: {self.reason} (found {self.value}, not {self.limit})"
