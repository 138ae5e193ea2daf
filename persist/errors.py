"""What persist raises. Every error names who is at fault, carries the offending values, and survives pickling."""

from __future__ import annotations

from collections.abc import Mapping


class PersistError(Exception):
    """The root of all errors of this package."""


class JournalLocked(PersistError):
    """Another incarnation holds the journal; `pid` is its process, 0 if it has not said so yet."""

    def __init__(self, directory: str, pid: int) -> None:
        super().__init__(directory, pid)
        self.directory = directory
        self.pid = pid

    def __str__(self) -> str:
        return f"{self.directory} is in use by process {self.pid or 'unknown'}"


class UnsafeDirectory(PersistError):
    """Others could write into the directory, so what is read from it could not be trusted."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory = directory
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.directory} is not safe for a journal: {self.reason}; make it yours alone (chown, chmod go-w)"


class JournalPoisoned(PersistError):
    """A write or sync failed. What is on disk from `offset` on is unknown: only recovery may find out."""

    def __init__(self, path: str, offset: int, cause: str) -> None:
        super().__init__(path, offset, cause)
        self.path = path
        self.offset = offset
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path} is poisoned at offset {self.offset}: {self.cause}"


class JournalFull(PersistError):
    """The disk is full: nothing was written, and the journal goes on as soon as there is room. `needed` bytes were
    asked for where `room` are left, all of them kept for transactions that only consume."""

    def __init__(self, path: str, needed: int, room: int) -> None:
        super().__init__(path, needed, room)
        self.path = path
        self.needed = needed
        self.room = room

    def __str__(self) -> str:
        return f"no room on disk for {self.needed} bytes in {self.path} ({self.room} are kept in reserve)"


class JournalClosed(PersistError):
    """The caller closed this journal, or it belongs to the process that this one was forked from."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory = directory
        self.reason = reason

    def __str__(self) -> str:
        return f"the journal in {self.directory} cannot be used: {self.reason}"


class NewerFormat(PersistError):
    """A later version of this software wrote the file. It was not touched."""

    def __init__(self, path: str, version: int, supported: int) -> None:
        super().__init__(path, version, supported)
        self.path = path
        self.version = version
        self.supported = supported

    def __str__(self) -> str:
        return f"{self.path} has format version {self.version}; this software reads up to {self.supported}"


class NotAJournal(PersistError):
    """The file has the name of a segment and the content of something else. It was not touched."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} is not a journal segment: {self.reason}"


class DamagedJournal(PersistError):
    """Committed bytes cannot be read and no crash explains it. `bytes_at_stake` runs from `offset` to the end of
    the segment."""

    def __init__(self, path: str, offset: int, bytes_at_stake: int, reason: str) -> None:
        super().__init__(path, offset, bytes_at_stake, reason)
        self.path = path
        self.offset = offset
        self.bytes_at_stake = bytes_at_stake
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} is damaged at offset {self.offset} ({self.bytes_at_stake} bytes at stake): {self.reason}"


class UnknownName(PersistError):
    """Committed messages wait for a peer or a route that the topology no longer has: `names` maps each to how many."""

    def __init__(self, names: Mapping[str, int]) -> None:
        super().__init__(dict(names))
        self.names = dict(names)

    def __str__(self) -> str:
        pending = ", ".join(f"{name} ({count} messages)" for name, count in sorted(self.names.items()))
        return f"the topology no longer has what committed messages wait for: {pending}"


class FrameTooLarge(PersistError):
    """The caller's transaction or snapshot does not fit a frame. Nothing was written."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a frame body of {self.size} bytes is over the limit of {self.limit}"


class SequenceBroken(PersistError):
    """The caller's sequence numbers towards `peer` do not continue those of the journal. Nothing was written."""

    def __init__(self, peer: str, expected: int, got: int) -> None:
        super().__init__(peer, expected, got)
        self.peer = peer
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"sequence numbers towards {self.peer} must go on with {self.expected}, got {self.got}"


class OutboxMissing(PersistError):
    """The store handed back no entry, or a later one, where a committed and unacknowledged one must be."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        found = f"begins with {self.got}" if self.got else "is empty"
        return f"committed message {self.expected} is needed again, but what was read back {found}"


class ProtocolViolation(PersistError):
    """The other end of a link claims what cannot be: it, or its state, is at fault."""

    def __init__(self, what: str, value: int, limit: int) -> None:
        super().__init__(what, value, limit)
        self.what = what
        self.value = value
        self.limit = limit

    def __str__(self) -> str:
        return f"the peer's {self.what} is {self.value}, the limit is {self.limit}"
