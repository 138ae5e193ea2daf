"""The board: one segment with a status block per worker, which any process may read without asking anyone.

Every cell has one writer, named in `layout`, and is stored and loaded whole. Different cells are not read together
consistently, and texts may be caught while they change: then they read oddly, but never raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bus.errors import NoSuchBlock
from bus.implementation import Doorbell
from bus.layout import (
    BLOCK_CELLS,
    DOORBELL_AT,
    NAMES_AT,
    SIGNED,
    TEXT_AT,
    TEXT_LIMIT,
    WORD,
    BoardCell,
    Text,
    block_at,
    board_size,
    check_board,
    format_board,
)

if TYPE_CHECKING:
    from typing import Self

_MASK: Final = 2**64 - 1
_SIGN: Final = 2**63


class Block:
    """The status block of one worker. Hot loops store into `cells` directly; `get` and `set` know about signs."""

    __slots__ = ("_texts", "cells", "doorbell", "name")

    cells: memoryview  # 64-bit unsigned, indexed by Field

    def __init__(self, name: str, block: memoryview) -> None:
        self.name = name
        with block[: BLOCK_CELLS * WORD] as raw:
            self.cells = raw.cast("Q")
        self.doorbell = Doorbell(block, DOORBELL_AT)
        self._texts = {text: block[at : at + WORD + TEXT_LIMIT[text]] for text, at in TEXT_AT.items()}

    def get(self, field: int) -> int:
        value = self.cells[field]
        return value - 2**64 if field in SIGNED and value >= _SIGN else value

    def set(self, field: int, value: int) -> None:
        self.cells[field] = value & _MASK

    def text(self, text: Text) -> str:
        """What was last set; oddly torn if it is being set right now."""
        area = self._texts[text]
        length = min(int.from_bytes(area[:WORD], "little"), TEXT_LIMIT[text])
        return bytes(area[WORD : WORD + length]).decode("utf-8", "replace")

    def set_text(self, text: Text, value: str) -> None:
        """Keeps the end of what is too long: tracebacks say what happened in their last line."""
        raw = value.encode("utf-8", "replace")[-TEXT_LIMIT[text] :]
        while raw and raw[0] & 0xC0 == 0x80:  # the rest of a character that was cut in two
            raw = raw[1:]
        area = self._texts[text]
        area[:WORD] = bytes(WORD)
        area[WORD : WORD + len(raw)] = raw
        area[:WORD] = len(raw).to_bytes(WORD, "little")

    def close(self) -> None:
        """Lets go of the board's buffer. Closing twice is fine."""
        self.doorbell.close()
        self.cells.release()
        for area in self._texts.values():
            area.release()


class Board:
    """All status blocks, in `buffer`, which `Board.format` has formatted; LayoutError if it is not a board."""

    __slots__ = ("_blocks", "_view", "cells", "names")

    cells: memoryview  # 64-bit unsigned, indexed by BoardCell
    names: tuple[str, ...]

    def __init__(self, buffer: memoryview | bytearray) -> None:
        self.names = check_board(buffer)
        with memoryview(buffer) as whole:
            self._view = whole.cast("B")
        with self._view[:NAMES_AT] as header:
            self.cells = header.cast("Q")
        self._blocks: dict[str, Block] = {}

    @staticmethod
    def size(names: Sequence[str]) -> int:
        """Bytes that the segment of a board with these blocks needs."""
        return board_size(names)

    @classmethod
    def format(cls, buffer: memoryview | bytearray, names: Sequence[str]) -> Self:
        """Makes an empty board of a buffer that nobody else uses yet."""
        format_board(buffer, names)
        return cls(buffer)

    def block(self, name: str) -> Block:
        """The block of this worker, the same object each time. NoSuchBlock."""
        if name not in self._blocks:
            if name not in self.names:
                raise NoSuchBlock(name, self.names)
            at = block_at(self.names.index(name), len(self.names))
            end = block_at(self.names.index(name) + 1, len(self.names))
            with self._view[at:end] as view:
                self._blocks[name] = Block(name, view)
        return self._blocks[name]

    def get(self, cell: BoardCell) -> int:
        return self.cells[cell]

    def set(self, cell: BoardCell, value: int) -> None:
        self.cells[cell] = value & _MASK

    def close(self) -> None:
        """Lets go of the buffer, with all blocks. Closing twice is fine."""
        for block in self._blocks.values():
            block.close()
        self.cells.release()
        self._view.release()
