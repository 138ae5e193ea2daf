from collections.abc import Callable
from typing import Any

NONE: int
BOOL: int
INT: int
FLOAT: int
TEXT: int
BYTES: int

class Packer:
    """Messages of exactly one class, encoded when they are sent: as the MessagePack that msgspec makes of them.

    A message begins with `prefix`. Each of its fields is (descriptor, kinds, members): how it is read; of which
    built-in types it may be exactly (`bus.send`); and the encodings of members of an Enum, by their addresses, or None.
    What has anything else in a field, cannot be encoded, or is longer than `largest` is refused, with nothing changed.

    A run is begun with a list. Its pieces go there, each as two items, how many messages and their array: of at most
    `limit` bytes, but for a message that is longer alone.
    """

    count: int
    """Messages that were taken since the run was begun."""

    def __init__(
        self,
        type: type,  # noqa: A002
        prefix: bytes,
        fields: tuple[tuple[Any, int, dict[int, bytes] | None], ...],
        limit: int,
        largest: int,
        refused: Callable[[Any], object],
    ) -> None: ...
    def begin(self, pieces: list[Any], /) -> None: ...
    def put(self, message: Any, /) -> bool:
        """True if it was taken."""

    def end(self) -> None:
        """All that was taken is in pieces. More may be put, which begins another piece."""

    def clear(self) -> None:
        """There is no run any more; what was not in a piece is gone."""

class Sender:
    """`puts` may have Packers too: a message that one refuses is given to its `refused`."""

    def __init__(self, puts: dict[type, Any], missing: Callable[[Any], object]) -> None: ...
    def send(self, message: Any, /) -> None: ...
