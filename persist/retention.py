"""How much history a journal keeps beyond what delivery needs, so that it can be replayed. Pure."""

from __future__ import annotations

import msgspec

NANOSECONDS = 1_000_000_000


class Retain(msgspec.Struct, frozen=True):
    """Whole segments are kept while the journal without them would have fewer than `bytes` bytes, and while they were
    closed less than `age` seconds ago; with both, what either lets go goes. With neither, nothing is kept. On a full
    disk, history goes before anything is refused for long."""

    bytes: int | None = None
    age: float | None = None

    def __post_init__(self) -> None:
        for name in ("bytes", "age"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"retain {name}={value!r}: give a number above 0, or None for no such limit")

    def keeps(self, bytes_without: int, age_ns: int) -> bool:
        """Whether a segment stays that was closed so long ago. The journal has `bytes_without` without it."""
        if self.bytes is None and self.age is None:
            return False
        if self.bytes is not None and bytes_without >= self.bytes:
            return False
        return self.age is None or age_ns < self.age * NANOSECONDS


NOTHING = Retain()
