"""What can go wrong, as types. Every error says who is at fault and what to do, and carries its values.

Guarantees: `args` are the constructor's arguments, so that every error survives pickling; the text is composed from the
attributes; types are carried by name, so that an error can be read in a process that does not have the class.
The text never shows the content of a message, only names, types and sizes; a short picture of the value at fault is in
`value`.
"""

from __future__ import annotations

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One mistake in a declaration.

    `kind` is for programs (`"unknown-handler"`), `subject` is the name at fault, `text` says what is wrong, `hint` what
    to do about it, and `where` is the line of the declaration, `file:line`, where it is known.
    """

    kind: str
    subject: str
    text: str
    hint: str = ""
    where: str = ""

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.text}{hint}{where}"


class RingleaderError(Exception):
    """Whatever this library raises on purpose."""


class TopologyError(RingleaderError):
    """The declaration has mistakes. All of them are in `problems`; nothing was started."""

    def __init__(self, topology: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(topology, tuple(problems))
        self.topology = topology
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        return "\n".join([f"topology {self.topology!r} has {count} problem{'s'[: count != 1]}:", *lines])


class NotRunning(RingleaderError, RuntimeError):
    """A handler used what only its worker can give it, but no worker hosts it."""

    def __init__(self, handler: str, action: str) -> None:
        super().__init__(handler, action)
        self.handler = handler
        self.action = action

    def __str__(self) -> str:
        return (
            f"{self.handler}.{self.action}() was called, but no worker hosts this {self.handler}: handlers are made and"
            f" run by a topology (topology.worker('name', handler={self.handler}), then run() or start()); to call one"
            f" in a test, first set its `{self.action}` attribute to a function of your own"
        )


class SenderError(RingleaderError):
    """A handler (or the outside world) tried to send what cannot be sent. Nothing of it was sent.

    `handler` is the name of the sending handler; it is empty until the worker, which knows it, has filled it in.
    """

    handler: str = ""

    def blame(self, handler: str) -> None:
        """Fill in the sending handler's name."""
        self.handler = handler

    @property
    def sender(self) -> str:
        return f"handler {self.handler!r}" if self.handler else "the sender"


class UnroutedMessage(SenderError):
    """The topology has no route for this type from this handler."""

    def __init__(self, handler: str, type: str, routed: tuple[str, ...]) -> None:  # noqa: A002  (the attribute's name)
        super().__init__(handler, type, tuple(routed))
        self.handler = handler
        self.type = type
        self.routed = tuple(routed)

    def __str__(self) -> str:
        short = self.type.rpartition(".")[2]
        known = ", ".join(self.routed) or "nothing"
        if short == "ndarray":
            return (
                f"handler {self.handler!r} sent an array, which is no message: rows of a fixed message are sent by"
                f" `with self.reserve(Tick, len(array)) as rows: rows[:] = array` (it routes {known})"
            )
        return (
            f"handler {self.handler!r} sent a {self.type}, which the topology routes nowhere from there (it routes"
            f" {known}): add topology.route({self.handler!r}, {short}, to=...)"
        )


class BadMessage(SenderError):
    """A message has a value that cannot be encoded, or that does not fit its declared type.

    `index` is the message's place in the run it was sent in, `field` the path of the value (empty if it is the message
    itself), `reason` what the codec said, and `value` a short picture of the value.
    """

    def __init__(
        self,
        index: int,
        type: str,  # noqa: A002
        value: str,
        reason: str,
        field: str = "",
        handler: str = "",
    ) -> None:
        super().__init__(index, type, value, reason, field, handler)
        self.index = index
        self.type = type
        self.value = value
        self.reason = reason
        self.field = field
        self.handler = handler

    def __str__(self) -> str:
        field = f".{self.field}" if self.field else ""
        return f"{self.sender} sent a {self.type} that cannot be delivered: {self.type}{field}: {self.reason}"


class MessageTooLarge(SenderError):
    """One message, encoded, is over the size limit of the topology."""

    def __init__(self, type: str, size: int, limit: int, index: int = 0, handler: str = "") -> None:  # noqa: A002
        super().__init__(type, size, limit, index, handler)
        self.type = type
        self.size = size
        self.limit = limit
        self.index = index
        self.handler = handler

    def __str__(self) -> str:
        return (
            f"{self.sender} sent a {self.type} of {self.size} bytes, over the limit of {self.limit}: send smaller"
            " pieces, or a path or key under which the receiver finds the data, or raise max_claim_bytes (where that is"
            " 0, and for answers, max_message_bytes)"
        )


class CodecRefused(RingleaderError):
    """A message was encoded by a codec that the topology does not give its class (any more).

    No attempt would ever read it, so it becomes a dead letter at once, whatever its handlers tolerate.
    """

    def __init__(self, type: str, codec: str, expected: str) -> None:  # noqa: A002  (the attribute's name)
        super().__init__(type, codec, expected)
        self.type = type
        self.codec = codec
        self.expected = expected

    def __str__(self) -> str:
        return (
            f"a {self.type} was encoded by codec {self.codec!r}, but the topology gives this class {self.expected!r}:"
            f" it can be requeued under a topology that names {self.codec!r} for it"
        )


class MissingNumPy(RingleaderError, ImportError):
    """Fixed messages are NumPy arrays, and NumPy cannot be imported here."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"fixed messages need NumPy, an extra: pip install 'ringleader[numpy]' ({self.reason})"


class TooManyRows(SenderError):
    """`reserve` was asked for more rows than one transaction may send."""

    def __init__(self, type: str, count: int, largest: int, handler: str = "") -> None:  # noqa: A002
        super().__init__(type, count, largest, handler)
        self.type, self.count, self.largest, self.handler = type, count, largest, handler

    def __str__(self) -> str:
        return (
            f"{self.sender} reserved {self.count} rows of {self.type}, and in this transaction there is room for"
            f" {self.largest}: reserve fewer at a time, the rest in the next on_loop or for the next message"
        )


class ViewEscaped(RingleaderError):
    """Rows, or something that shows them, outlived the call that they were lent to.

    What it shows is memory that is used again, so it has to be gone when the handler returns: the transaction is rolled
    back. `types` are the classes whose rows they are.
    """

    def __init__(self, types: tuple[str, ...], handlers: tuple[str, ...]) -> None:
        super().__init__(tuple(types), tuple(handlers))
        self.types, self.handlers = tuple(types), tuple(handlers)

    def __str__(self) -> str:
        who = " or ".join(map(repr, self.handlers))
        return (
            f"handler {who} kept rows of {', '.join(self.types)}, or a view of them, beyond the call that they were"
            f" lent to: keep a copy, as in `rows.copy()` or `rows['price'].copy()`, and let go of the view"
        )


class LayoutMismatch(RingleaderError):
    """Rows of a class are not laid out as this side declares them: `expected` is its layout, `found` the other's."""

    def __init__(self, type: str, expected: str, found: str, where: str) -> None:  # noqa: A002
        super().__init__(type, expected, found, where)
        self.type, self.expected, self.found, self.where = type, expected, found, where

    def __str__(self) -> str:
        return (
            f"the layout of {self.type} is {self.expected} here, but {self.where} it is {self.found}: give both the"
            f" same class; a changed layout needs a class of another name, or a system that was drained before"
        )


class BadState(RingleaderError):
    """A durable state holds a value that cannot be encoded, or that does not fit its declared type when read back.

    `where` names the state (a class, or a table's key), `reason` is what the codec said.
    """

    def __init__(self, where: str, reason: str, handler: str = "") -> None:
        super().__init__(where, reason, handler)
        self.where = where
        self.reason = reason
        self.handler = handler

    def blame(self, handler: str) -> None:
        """Fill in the name of the handler whose state it is."""
        self.handler = handler

    def __str__(self) -> str:
        owner = f"handler {self.handler!r}: " if self.handler else ""
        return f"{owner}the durable state cannot be committed: {self.where}: {self.reason}"


class BadRecord(RingleaderError):
    """A record in a ring or a journal does not hold what its header says. The side that wrote it is at fault."""

    def __init__(self, reason: str, size: int) -> None:
        super().__init__(reason, size)
        self.reason = reason
        self.size = size

    def __str__(self) -> str:
        return f"a record of {self.size} bytes cannot be read: {self.reason}"
