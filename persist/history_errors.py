"""What reading and repairing a journal's history raises. Every error carries its values and survives pickling."""

from __future__ import annotations

from collections.abc import Sequence

from persist.errors import PersistError


class PositionGone(PersistError):
    """The history at `position` was trimmed away; what is left begins at `oldest`."""

    def __init__(self, directory: str, position: int, oldest: int) -> None:
        super().__init__(directory, position, oldest)
        self.directory = directory
        self.position = position
        self.oldest = oldest

    def __str__(self) -> str:
        return f"{self.directory} no longer has position {self.position}: what is left begins at {self.oldest}"


class NoSuchPosition(PersistError):
    """The caller's `position` is not that of a record, nor the end. `nearest` is the last one before it that is."""

    def __init__(self, directory: str, position: int, nearest: int, reason: str) -> None:
        super().__init__(directory, position, nearest, reason)
        self.directory = directory
        self.position = position
        self.nearest = nearest
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.directory} has no record at position {self.position}: {self.reason} {self.nearest}"


class DiscardNeeded(PersistError):
    """Repair would have to throw something away and was not allowed to; nothing was changed. `losses` says what."""

    def __init__(self, directory: str, damage: str, losses: Sequence[str]) -> None:
        super().__init__(directory, damage, tuple(losses))
        self.directory = directory
        self.damage = damage
        self.losses = tuple(losses)

    def __str__(self) -> str:
        return f"{self.damage}; repairing {self.directory} would lose: {'; '.join(self.losses)}"


class CannotRepair(PersistError):
    """There is nothing to go back to, or what is wrong is not damage. `original` is the copy that was made before
    anything was changed, empty if nothing was."""

    def __init__(self, directory: str, reason: str, original: str = "") -> None:
        super().__init__(directory, reason, original)
        self.directory = directory
        self.reason = reason
        self.original = original

    def __str__(self) -> str:
        kept = f"; the original is in {self.original}" if self.original else "; nothing was changed"
        return f"{self.directory} cannot be repaired: {self.reason}{kept}"
