"""Errors of the bus. Each says who is at fault, carries the offending values as attributes, and survives pickling.

`args` are always the constructor's arguments, so that pickling rebuilds the same error; the text is made by `__str__`.
"""

from __future__ import annotations


class BusError(Exception):
    """Whatever the bus refuses."""


class LayoutError(BusError):
    """A buffer is not laid out as this version lays it out: foreign, half formatted, damaged, or of another version."""

    def __init__(self, layout: str, field: str, value: object, expected: str) -> None:
        super().__init__(layout, field, value, expected)
        self.layout = layout
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        value = hex(self.value) if self.field == "magic" and isinstance(self.value, int) else repr(self.value)
        return f"not a usable {self.layout}: {self.field} is {value}, expected {self.expected}"


class RecordTooLarge(BusError, ValueError):
    """The caller's record can never fit into this ring, however empty it is."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"record of {self.size} bytes is larger than this ring can ever carry ({self.limit} bytes)"


class RingCorrupt(BusError):
    """The other end, or whoever else maps the segment, wrote something into the ring that cannot be."""

    def __init__(self, position: int, value: int, reason: str) -> None:
        super().__init__(position, value, reason)
        self.position = position
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"ring corrupt at position {self.position}: {self.reason} (found {self.value})"


class SegmentMissing(BusError, LookupError):
    """There is no segment of that name, or its creator has not given it a size yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no shared-memory segment named {self.name!r}"


class SegmentExists(BusError):
    """A segment of that name is there already; it is left untouched."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"a shared-memory segment named {self.name!r} exists already"


class SharedMemoryFull(BusError):
    """The machine has no room for a segment. Nothing of it was left behind."""

    def __init__(self, name: str, size: int, available: int | None) -> None:
        super().__init__(name, size, available)
        self.name = name
        self.size = size
        self.available = available

    def __str__(self) -> str:
        left = "unknown" if self.available is None else f"{self.available} bytes"
        return (
            f"shared memory is full: segment {self.name!r} needs {self.size} bytes, available: {left}"
            " (/dev/shm; in containers it is 64 MiB unless given more with --shm-size)"
        )


class NoSuchBlock(BusError, LookupError):
    """A board has no status block of that name."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        super().__init__(name, names)
        self.name = name
        self.names = names

    def __str__(self) -> str:
        return f"no status block named {self.name!r}; this board has {', '.join(self.names) or 'none'}"


class UnknownImplementation(BusError, ValueError):
    """The environment asks for a ring implementation that does not exist."""

    def __init__(self, variable: str, value: str, choices: tuple[str, ...]) -> None:
        super().__init__(variable, value, choices)
        self.variable = variable
        self.value = value
        self.choices = choices

    def __str__(self) -> str:
        return f"{self.variable}={self.value!r} is not a ring implementation; choose {' or '.join(self.choices)}"


class ImplementationNotBuilt(BusError, ImportError):
    """The environment asks for the C ring, which this installation does not have."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(variable, reason)
        self.variable = variable
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.variable}=c, but the C ring cannot be imported: {self.reason}"
