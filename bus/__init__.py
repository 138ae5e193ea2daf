"""How bytes move: rings, doorbells, segments and the board of status blocks, all in shared memory.

Payloads are opaque here. `Ring` and `Doorbell` are the C ones where they were built (`RING_IMPLEMENTATION` says which).
"""

from bus.board import Block, Board
from bus.errors import (
    BusError,
    ImplementationNotBuilt,
    LayoutError,
    NoSuchBlock,
    RecordTooLarge,
    RingCorrupt,
    SegmentExists,
    SegmentMissing,
    SharedMemoryFull,
    UnknownImplementation,
)
from bus.implementation import RING_IMPLEMENTATION, Doorbell, PyDoorbell, PyRing, Ring
from bus.layout import (
    UNKNOWN,
    BoardCell,
    Cell,
    Control,
    Field,
    Text,
    WorkerState,
    board_size,
    check_board,
    check_ring,
    format_ring,
    max_record,
    ring_size,
)
from bus.segment import Segment, remove_stale

__all__ = [
    "RING_IMPLEMENTATION",
    "UNKNOWN",
    "Block",
    "Board",
    "BoardCell",
    "BusError",
    "Cell",
    "Control",
    "Doorbell",
    "Field",
    "ImplementationNotBuilt",
    "LayoutError",
    "NoSuchBlock",
    "PyDoorbell",
    "PyRing",
    "RecordTooLarge",
    "Ring",
    "RingCorrupt",
    "Segment",
    "SegmentExists",
    "SegmentMissing",
    "SharedMemoryFull",
    "Text",
    "UnknownImplementation",
    "WorkerState",
    "board_size",
    "check_board",
    "check_ring",
    "format_ring",
    "max_record",
    "remove_stale",
    "ring_size",
]
