"""What a handler calls to send: it finds what takes messages of a class.

The readable specification of the Sender in `_send.c`, and the fallback for it. In C only there is the Packer, which
takes messages by encoding them at once: without it, whoever sends keeps them in a list, and encodes that.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Any


class Kind(IntFlag):
    """The built-in types of which a field may be exactly, for a Packer."""

    NONE = 1
    BOOL = 2
    INT = 4
    FLOAT = 8
    TEXT = 16
    BYTES = 32


class Sender:
    """`send` calls, with the message, what `puts` has for the message's class at that moment, or `missing`."""

    __slots__ = ("send",)

    def __init__(self, puts: dict[type, Callable[[Any], object]], missing: Callable[[Any], object]) -> None:
        def send(message: Any, /) -> None:
            puts.get(type(message), missing)(message)
            # failpoint: send-buffered

        self.send = send
