"""What can go wrong with a running system, as types; built like those of `errors`: values in attributes, picklable."""

from __future__ import annotations

from collections.abc import Mapping

from actors.errors import RingleaderError


class StartFailed(RingleaderError):
    """The system did not come up; nothing of it runs any more. `status` is the exit status it ended with."""

    def __init__(self, system: str, status: int, reason: str) -> None:
        super().__init__(system, status, reason)
        self.system, self.status, self.reason = system, status, reason

    def __str__(self) -> str:
        return f"system {self.system!r} did not start (status {self.status}): {self.reason}"


class RingsDoNotFit(RingleaderError):
    """The rings of a system need more than there is; nothing was started. `kind` of the limit: `shared` memory that is
    free, or all `memory` that this machine, or this container, has."""

    def __init__(self, needed: int, limit: int, kind: str, rings: int, largest: str, largest_bytes: int) -> None:
        super().__init__(needed, limit, kind, rings, largest, largest_bytes)
        self.needed, self.limit, self.kind, self.rings = needed, limit, kind, rings
        self.largest, self.largest_bytes = largest, largest_bytes

    def __str__(self) -> str:
        shared = self.kind == "shared"
        there = "bytes of shared memory are free" if shared else "bytes of memory is all that this system may have"
        more = "a larger /dev/shm (of a container: --shm-size)" if shared else "a higher limit of memory"
        return (
            f"{self.rings} rings need {self.needed:,} bytes of shared memory together, and {self.limit:,} {there}; the "
            f"largest, {self.largest}, has {self.largest_bytes:,}: give smaller ring_bytes, or {more}"
        )


class SystemClosed(RingleaderError):
    """The system takes nothing from outside any more: it drains, has stopped, or its gateway failed (see the cause)."""

    def __init__(self, system: str) -> None:
        super().__init__(system)
        self.system = system

    def __str__(self) -> str:
        return f"system {self.system!r} takes no more messages: it is stopping or has stopped"


class SendTimeout(RingleaderError):
    """There was no room for the message in time: its receiver is slower than its senders. It was not sent."""

    def __init__(self, handler: str, type: str, timeout: float, backlog: int) -> None:  # noqa: A002  (the attribute's name)
        super().__init__(handler, type, timeout, backlog)
        self.handler, self.type, self.timeout, self.backlog = handler, type, timeout, backlog

    def __str__(self) -> str:
        return (
            f"{self.type} for {self.handler!r} was not sent: {self.backlog} bytes wait before it, and there was no "
            f"room within {self.timeout} s; send slower, or raise outbox_limit_bytes (for large messages, "
            "claims_limit_bytes)"
        )


class AskTimeout(RingleaderError, TimeoutError):
    """No reply in time. The question was sent and stays so: it will still take effect."""

    def __init__(self, handler: str, type: str, timeout: float) -> None:  # noqa: A002
        super().__init__(handler, type, timeout)
        self.handler, self.type, self.timeout = handler, type, timeout

    def __str__(self) -> str:
        return f"no reply from {self.handler!r} to {self.type} within {self.timeout} s (does it call self.reply?)"


class AskFailed(RingleaderError):
    """The question became a dead letter; `reason` is why."""

    def __init__(self, handler: str, type: str, reason: str) -> None:  # noqa: A002
        super().__init__(handler, type, reason)
        self.handler, self.type, self.reason = handler, type, reason

    def __str__(self) -> str:
        return f"{self.handler!r} gave up on {self.type}: {self.reason} (see `ringleader dead-letters list`)"


class BadReply(RingleaderError):
    """The reply is not of the type that was asked for, or of one that is not known here."""

    def __init__(self, type: str, expected: str = "") -> None:  # noqa: A002
        super().__init__(type, expected)
        self.type, self.expected = type, expected

    def __str__(self) -> str:
        if self.expected:
            return f"the reply is a {self.type}, not a {self.expected}"
        return (
            f"the reply is a {self.type}, which this process cannot find: pass it as `reply=`, or define it at the top "
            f"of a module"
        )


class NothingToReply(RingleaderError):
    """`self.reply` outside of a question, or for the second time."""

    def __init__(self, handler: str, type: str, message_id: str, replied: bool) -> None:  # noqa: A002
        super().__init__(handler, type, message_id, replied)
        self.handler, self.type, self.message_id, self.replied = handler, type, message_id, replied

    def __str__(self) -> str:
        what = self.message_id or "nothing"
        why = "has been answered already" if self.replied else "was not asked by system.ask"
        return f"handler {self.handler!r} replied {self.type} to {what}, which {why}"


class HandlerFailed(RingleaderError):
    """A handler failed outside of any message, as often as its attempts allow. The cause is chained."""

    def __init__(self, handler: str, method: str, attempts: int) -> None:
        super().__init__(handler, method, attempts)
        self.handler, self.method, self.attempts = handler, method, attempts

    def __str__(self) -> str:
        return f"{self.method} of handler {self.handler!r} failed {self.attempts} times in a row"


class MessageFailed(RingleaderError):
    """A message whose failure ends its worker, as the handler's policy says. The cause is chained."""

    def __init__(self, handler: str, message_id: str, type: str, attempts: int, reason: str) -> None:  # noqa: A002
        super().__init__(handler, message_id, type, attempts, reason)
        self.handler, self.message_id, self.type, self.attempts = handler, message_id, type, attempts
        self.reason = reason

    def __str__(self) -> str:
        what = f"{self.type} {self.message_id}, attempt {self.attempts}"
        return f"handler {self.handler!r} failed on {what}: {self.reason}"


class CommandTimeout(RingleaderError):
    """A worker has not answered a command in time. It is on its way and takes effect all the same, once."""

    def __init__(self, worker: str, timeout: float) -> None:
        super().__init__(worker, timeout)
        self.worker, self.timeout = worker, timeout

    def __str__(self) -> str:
        return (
            f"worker {self.worker!r} has not answered within {self.timeout:g} s; the command is on its way and takes "
            f"effect all the same"
        )


class UnknownHandler(RingleaderError):
    """No handler of this name, or it does not take this type from outside."""

    def __init__(self, handler: str, type: str, takes: tuple[str, ...], known: tuple[str, ...]) -> None:  # noqa: A002
        super().__init__(handler, type, tuple(takes), tuple(known))
        self.handler, self.type, self.takes, self.known = handler, type, tuple(takes), tuple(known)

    def __str__(self) -> str:
        if self.handler not in self.known:
            return f"no handler {self.handler!r} in this system; there are {', '.join(self.known)}"
        return f"handler {self.handler!r} does not handle {self.type}; it takes {', '.join(self.takes) or 'nothing'}"


class UnknownWorker(RingleaderError):
    """No worker of this name in the system."""

    def __init__(self, worker: str, known: tuple[str, ...]) -> None:
        super().__init__(worker, tuple(known))
        self.worker, self.known = worker, tuple(known)

    def __str__(self) -> str:
        return f"no worker {self.worker!r} in this system; there are {', '.join(self.known)}"


class Overridden(RingleaderError):
    """A worker was told to pause, drain or resume, and something else later, before the first had come about."""

    def __init__(self, worker: str, asked: str, told: str) -> None:
        super().__init__(worker, asked, told)
        self.worker, self.asked, self.told = worker, asked, told

    def __str__(self) -> str:
        return f"worker {self.worker!r}: the request to {self.asked} was overridden by a later one, to {self.told}"


class TopologyChanged(RingleaderError):
    """The run directory holds messages that the present topology cannot deliver. `pending` counts them by edge."""

    def __init__(self, change: str, pending: Mapping[str, int]) -> None:
        super().__init__(change, dict(pending))
        self.change, self.pending = change, dict(pending)

    def __str__(self) -> str:
        waiting = ", ".join(f"{count} on {edge}" for edge, count in self.pending.items())
        return (
            f"{self.change}, but messages are pending: {waiting}; start the former topology until it has drained, or "
            f"use another directory"
        )
