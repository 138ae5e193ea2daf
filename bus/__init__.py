"""How bytes move: rings, doorbells, segments and the board of status blocks, all in shared memory.

Payloads are opaque here. `Ring` and `Doorbell` are the C ones where they were built (`RING_IMPLEMENTATION` says which).

Links to processes that share no memory, of this machine or of others: `StreamTransport`. Its names are imported when
they are first asked for: workers import this package, and asyncio and ssl would double what that takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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
from bus.implementation import (
    RING_IMPLEMENTATION,
    Doorbell,
    Packer,
    Progress,
    PyDoorbell,
    PyProgress,
    PyRing,
    PySender,
    Ring,
    Sender,
    Unpacker,
)
from bus.layout import (
    UNKNOWN,
    BoardCell,
    Cell,
    Control,
    Field,
    Pause,
    Text,
    WorkerState,
    board_size,
    check_board,
    check_ring,
    format_ring,
    max_record,
    pause_asked,
    pause_cell,
    ring_size,
)
from bus.segment import Segment, remove_stale
from bus.send import Kind

if TYPE_CHECKING:
    from bus.streams.addresses import TLS, TcpAddress, UnixAddress
    from bus.streams.errors import (
        AddressInUse,
        FrameTooLarge,
        HandshakeFailed,
        InsecureAddress,
        StreamFault,
        TransportClosed,
        TransportError,
        UnusableSocketFile,
    )
    from bus.streams.events import Connected, Disconnected, Rejected, StreamEvent, StreamStatistics, Unreachable
    from bus.streams.policy import Timing
    from bus.streams.transport import StreamTransport

__all__ = [
    "RING_IMPLEMENTATION",
    "TLS",
    "UNKNOWN",
    "AddressInUse",
    "Block",
    "Board",
    "BoardCell",
    "BusError",
    "Cell",
    "Connected",
    "Control",
    "Disconnected",
    "Doorbell",
    "Field",
    "FrameTooLarge",
    "HandshakeFailed",
    "ImplementationNotBuilt",
    "InsecureAddress",
    "Kind",
    "LayoutError",
    "NoSuchBlock",
    "Packer",
    "Pause",
    "Progress",
    "PyDoorbell",
    "PyProgress",
    "PyRing",
    "PySender",
    "RecordTooLarge",
    "Rejected",
    "Ring",
    "RingCorrupt",
    "Segment",
    "SegmentExists",
    "SegmentMissing",
    "Sender",
    "SharedMemoryFull",
    "StreamEvent",
    "StreamFault",
    "StreamStatistics",
    "StreamTransport",
    "TcpAddress",
    "Text",
    "Timing",
    "TransportClosed",
    "TransportError",
    "UnixAddress",
    "UnknownImplementation",
    "Unpacker",
    "Unreachable",
    "UnusableSocketFile",
    "WorkerState",
    "board_size",
    "check_board",
    "check_ring",
    "format_ring",
    "max_record",
    "pause_asked",
    "pause_cell",
    "remove_stale",
    "ring_size",
]

_LATER = {
    "bus.streams.addresses": "TLS TcpAddress UnixAddress",
    "bus.streams.events": "Connected Disconnected Rejected StreamEvent StreamStatistics Unreachable",
    "bus.streams.policy": "Timing",
    "bus.streams.transport": "StreamTransport",
    "bus.streams.errors": "AddressInUse FrameTooLarge HandshakeFailed InsecureAddress StreamFault TransportClosed "
    "TransportError UnusableSocketFile",
}
_WHERE = {name: module for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
