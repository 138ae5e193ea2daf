from collections.abc import Iterator
from typing import Any, Self

QUICK_NS: int
LONGEST: int

NONE: int
BOOL: int
INT: int
FLOAT: int
TEXT: int
BYTES: int

class Run:
    """The messages of a run. A Progress makes each when its turn comes; one that nobody has kept becomes another."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> list[Any]:
        """All of these, made now."""

class Unpacker:
    """Messages of exactly one class, made as msgspec makes them.

    A message begins with `prefix`. Each of its fields is (descriptor, kinds): where a message has it, and of which
    built-in types it may be (`bus.send`). An int becomes a float where there may be no int.
    """

    def __init__(self, type: type, prefix: bytes, fields: tuple[tuple[Any, int], ...]) -> None: ...  # noqa: A002
    def unpack(self, body: bytes | memoryview, /) -> Run | None:
        """None if something in it is not plain: another message, other values, one more or less. What that is, or
        that it is none, somebody else finds out."""

class Progress:
    done: int
    seq: int
    def __init__(self, cells: memoryview, seq: int, since: int) -> None: ...
    def begin(self, messages: list[Any] | Run, first: int, until: int, exact: bool, /) -> Self: ...
    def tell(self, seq: int, /) -> None: ...
    def finish(self) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def close(self) -> None: ...
