"""The layouts of what lies in shared memory: the ring segment and the board. Pure: describes and checks, maps nothing.

Every number is an aligned unsigned 64-bit integer in the machine's order (little endian on all supported machines), so
that one load or store moves it whole. Sizes and offsets are bytes; a *cell* is the index of such a number.

Ring segment: one producer, one consumer
========================================

        0       8      16      24      32                                                       128
        +-------+-------+-------+-------+--------------------------------------------------------+
      0 | magic |version|capac. | epoch | spare                                                  |  written at format
        +-------+-------+-------+-------+-------+-------+-------+--------------------------------+
    128 | tail  |commit.|publ.  |outbox |oldest |starv. |resent | spare                          |  producer writes
        +-------+-------+-------+-------+-------+-------+-------+--------------------------------+
    256 | head  | ack   |resume |asked  | spare                                                  |  consumer writes
        +-------+-------+-------+-------+--------------------------------------------------------+
    384 | spare                                                                                  |
        +----------------------------------------------------------------------------------------+
    512 | data: `capacity` bytes, a power of two                                                 |
        +----------------------------------------------------------------------------------------+

Positions (head, tail) grow for ever; the index into the data is the position modulo the capacity. The version is
written last: a segment whose formatting was cut short is not a ring.

Record, at a multiple of 8, never across the end of the data:

        0         4         8                                  8 + length, rounded up to 8
        +---------+---------+----------------------------------+
        | length  | kind    | payload                          |
        +---------+---------+----------------------------------+

Kind 1 is a record, kind 2 padding that reaches exactly to the end of the data.

Board: one status block per worker
==================================

        0       8      16      24      32                                                       128
        +-------+-------+-------+-------+--------------------------------------------------------+
      0 | magic |version| count | size  | spare                                                  |  written at format
        +-------+-------+-------+-------+--------------------------------------------------------+
    128 | board-wide cells (supervisor writes)                                                   |
        +----------------------------------------------------------------------------------------+
    256 | names: `count` times (length, 120 bytes of UTF-8)                                      |
        +----------------------------------------------------------------------------------------+
        | blocks: `count` times BLOCK_SIZE bytes                                                 |
        +----------------------------------------------------------------------------------------+

Block:

      0 | 48 cells, worker writes                                                                |
    384 | 16 cells, supervisor writes                                                            |
    512 | doorbell word (u32)                                                                    |
    640 | last words:  length, 4096 bytes of UTF-8 (worker writes)                               |
   4864 | last death:  length, 1024 bytes of UTF-8 (supervisor writes)                           |
   6016 | end                                                                                    |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from bus.errors import LayoutError

WORD: Final = 8
LINE: Final = 128  # two cache lines: adjacent-line prefetch must not make neighbours of cells with different writers
UNKNOWN: Final = 2**64 - 1
POSITION_LIMIT: Final = 2**63  # no position ever gets there: whatever is at or above was not written by a ring

# -- ring segment ------------------------------------------------------------------------------------------------------

RING_MAGIC: Final = int.from_bytes(b"RNGLDR\x01R", "little")
RING_VERSION: Final = 1
HEADER_SIZE: Final = 4 * LINE
MIN_CAPACITY: Final = 4096
MAX_CAPACITY: Final = 2**31  # lengths in record headers are u32

RECORD_HEADER: Final = 8
RECORD: Final = 1
PADDING: Final = 2


class Cells(type):
    """Names of cells. They are plain numbers: a message that comes alone passes some fifty of them, and a member of an
    IntEnum takes 110 ns to read on CPython 3.11."""

    def __iter__(cls) -> Iterator[int]:
        return (value for name, value in vars(cls).items() if name.isupper())

    def __getitem__(cls, name: str) -> int:
        value: int = vars(cls)[name]
        return value

    def name_of(cls, cell: int) -> str:
        return next(name for name in vars(cls) if name.isupper() and cls[name] == cell)


class RingIdentity(IntEnum):
    """Cells written once, at format."""

    MAGIC = 0
    VERSION = 1
    CAPACITY = 2
    EPOCH = 3


class Cell(metaclass=Cells):
    """Cells of a ring that change. Each has exactly one writer."""

    # the producer writes
    TAIL = LINE // WORD  # position behind the last record
    COMMITTED = TAIL + 1  # last sequence number committed for this edge
    PUBLISHED = TAIL + 2  # last sequence number put into the ring
    OUTBOX_BYTES = TAIL + 3  # bytes committed, not yet in the ring
    OLDEST_NS = TAIL + 4  # monotonic time at which the oldest unacknowledged sequence number was committed, 0 for none
    STARVED = TAIL + 5  # 1: the producer waits for room or acknowledgement and wants its doorbell rung
    RESEND_SERVED = TAIL + 6  # how many of RESEND_ASKED were served
    # the consumer writes
    HEAD = 2 * LINE // WORD  # position before which everything may be overwritten
    ACK = HEAD + 1  # durable watermark
    RESUME = HEAD + 2  # watermark at start, or UNKNOWN
    RESEND_ASKED = HEAD + 3  # how many times the consumer asked for a resend


class RingHeader(NamedTuple):
    capacity: int
    epoch: int


def ring_size(capacity: int) -> int:
    """Bytes that the segment of a ring needs."""
    return HEADER_SIZE + capacity


def max_record(capacity: int) -> int:
    """The largest payload: with half of the data, there is room for it in an empty ring wherever the padding falls."""
    return capacity // 2 - RECORD_HEADER


def framed(size: int) -> int:
    """Bytes that a payload of this size takes in the ring."""
    return (RECORD_HEADER + size + WORD - 1) & -WORD


def check_capacity(capacity: int) -> None:
    if not MIN_CAPACITY <= capacity <= MAX_CAPACITY or capacity & (capacity - 1):
        raise LayoutError("ring", "capacity", capacity, f"a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}")


def format_ring(buffer: memoryview | bytearray, capacity: int, epoch: int) -> None:
    """Makes an empty ring of a buffer that nobody else uses yet. The version is stored last."""
    check_capacity(capacity)
    with memoryview(buffer).cast("B") as view:
        if view.nbytes < ring_size(capacity):
            raise LayoutError("ring", "size of the buffer", view.nbytes, f"at least {ring_size(capacity)}")
        view[:HEADER_SIZE] = bytes(HEADER_SIZE)
        with view[:HEADER_SIZE] as header, header.cast("Q") as cells:
            cells[RingIdentity.MAGIC] = RING_MAGIC
            cells[RingIdentity.CAPACITY] = capacity
            cells[RingIdentity.EPOCH] = epoch
            cells[Cell.RESUME] = UNKNOWN
            cells[RingIdentity.VERSION] = RING_VERSION


def check_ring(buffer: memoryview | bytearray) -> RingHeader:
    """Is this buffer a formatted ring? Says what is wrong otherwise. Positions are checked where they are used."""
    with memoryview(buffer).cast("B") as view:
        if view.nbytes < HEADER_SIZE:
            raise LayoutError("ring", "size of the buffer", view.nbytes, f"at least {HEADER_SIZE}")
        with view[:HEADER_SIZE] as header, header.cast("Q") as cells:
            version, magic = cells[RingIdentity.VERSION], cells[RingIdentity.MAGIC]
            capacity, epoch = cells[RingIdentity.CAPACITY], cells[RingIdentity.EPOCH]
        _check_identity("ring", magic, RING_MAGIC, version, RING_VERSION)
        check_capacity(capacity)
        if view.nbytes < ring_size(capacity):
            raise LayoutError("ring", "capacity", capacity, f"to fit into the buffer of {view.nbytes} bytes")
        return RingHeader(capacity, epoch)


# -- board -------------------------------------------------------------------------------------------------------------

BOARD_MAGIC: Final = int.from_bytes(b"RNGLDR\x01B", "little")
BOARD_VERSION: Final = 1
BOARD_CELLS_AT: Final = LINE
NAMES_AT: Final = 2 * LINE
NAME_SLOT: Final = LINE
NAME_LIMIT: Final = NAME_SLOT - WORD
MAX_BLOCKS: Final = 4096


class BoardIdentity(IntEnum):
    MAGIC = 0
    VERSION = 1
    COUNT = 2
    SIZE = 3


class BoardCell(IntEnum):
    """Board-wide cells, written by the supervisor. Indices count from the start of the segment."""

    SUPERVISOR_PID = BOARD_CELLS_AT // WORD
    SUPERVISOR_HEARTBEAT_NS = SUPERVISOR_PID + 1
    SYSTEM_STATE = SUPERVISOR_PID + 2


class Field(metaclass=Cells):
    """Cells of a status block. Times are monotonic nanoseconds."""

    # the worker writes
    EPOCH = 0
    PID = 1
    STATE = 2  # a WorkerState
    STARTED_NS = 3
    HEARTBEAT_NS = 4
    BUSY_PEER = 5  # peer index + 1 of the message in progress, 0 = idle
    BUSY_SEQ = 6
    BUSY_SINCE_NS = 7
    BUSY_HANDLER = 8  # handler index + 1
    HANDLED = 9
    SENT = 10
    COMMITS = 11
    DEAD_LETTERS = 12
    ROLLBACKS = 13
    GAPS = 14
    DUPLICATES = 15
    OUTBOX_BYTES = 16
    OVER_LIMIT = 17
    JOURNAL_BYTES = 18
    JOURNAL_SEGMENTS = 19
    LAST_COMMIT_NS = 20
    RING_IMPLEMENTATION = 21  # 0 python, 1 C
    STOP_REQUESTED = 22
    CONTROL_SEEN = 23
    MULTIPLYING = 24
    SESSION = 25  # number of the start whose on_start has taken effect
    CARRIED = 26  # last sequence number that the worker carried over to itself
    CARRIED_ACK = 27  # and the last of these that it has consumed
    DISK_FULL = 28  # its journal has no room for sends
    PAUSED = 29  # the value of PAUSE that has come about; 0 while it does not: a drain is under way
    RETRY_PEER = 30  # peer index + 1 of the message that waits for its next attempt, 0: none does
    RETRY_SEQ = 31
    RETRY_ATTEMPTS = 32  # those that failed
    RETRY_AT_NS = 33
    RETRY_ORDERED = 34  # 1: nothing else is handled meanwhile, 0: what came from other peers is
    AT_RISK = 35  # level memory: what it has sent on its own account has found no room, and is in its memory only
    BUSY_MANY = (
        36  # 1: a batch handler had several messages in hand, BUSY_SEQ was the last; the next incarnation reads it
    )
    LOG_DROPPED = 37  # log records that found no room, and of which nothing was told yet
    # the supervisor writes
    CONTROL = 48  # a Control
    RESTARTS = 49
    LAST_DEATH_NS = 50
    LAST_DEATH_CODE = 51  # two's complement: negative numbers are signals
    SUPERVISED_STATE = 52  # a WorkerState
    GATE = 53  # 1: those before it in the order of start are up, so its handlers may be made
    PAUSE = 54  # what was asked for last: the number of the request, and a Pause (`pause_cell`)
    DEATHS = 55  # ends that were neither clean nor asked for


SIGNED: Final = frozenset({Field.LAST_DEATH_CODE})
BLOCK_CELLS: Final = 64
SUPERVISOR_CELLS_AT: Final = Field.CONTROL * WORD
DOORBELL_AT: Final = BLOCK_CELLS * WORD


class Text(IntEnum):
    """Text areas of a status block."""

    LAST_WORDS = 0  # the worker writes
    LAST_DEATH = 1  # the supervisor writes


class Control(IntEnum):
    """What the supervisor wants of a worker."""

    RUN = 0
    DRAIN = 1
    STOP = 2
    LEAVE = 3  # end between two transactions, as if killed there: another incarnation goes on


class Pause(IntEnum):
    """Whether a worker is to handle messages."""

    RUN = 0
    PAUSE = 1  # stop between two transactions
    DRAIN = 2  # handle what was sent to it until now, then stop


def pause_cell(number: int, pause: Pause) -> int:
    """The cell for the request with this number, from 1: asking twice for the same is two requests."""
    return number << 2 | pause


def pause_asked(cell: int) -> tuple[int, Pause]:
    """The other way: the number of the request, and what it asks for. 0 is a worker that was never asked."""
    return cell >> 2, Pause(cell & 3)


class WorkerState(IntEnum):
    """Names in lower case are shown to users."""

    NEW = 0
    STARTING = 1
    RECOVERING = 2
    RUNNING = 3
    DRAINING = 4
    STOPPING = 5
    STOPPED = 6
    DEAD = 7
    GAVE_UP = 8
    WAITING = 9  # recovered; waits for its turn in the order of start


def _aligned(size: int) -> int:
    return (size + LINE - 1) & -LINE


TEXT_LIMIT: Final = {Text.LAST_WORDS: 4096, Text.LAST_DEATH: 1024}
_LAST_WORDS_AT: Final = DOORBELL_AT + LINE
_LAST_DEATH_AT: Final = _LAST_WORDS_AT + _aligned(WORD + TEXT_LIMIT[Text.LAST_WORDS])
TEXT_AT: Final = {Text.LAST_WORDS: _LAST_WORDS_AT, Text.LAST_DEATH: _LAST_DEATH_AT}
BLOCK_SIZE: Final = _LAST_DEATH_AT + _aligned(WORD + TEXT_LIMIT[Text.LAST_DEATH])


def name_at(index: int) -> int:
    return NAMES_AT + index * NAME_SLOT


def block_at(index: int, count: int) -> int:
    """Where block `index` of a board with `count` blocks begins."""
    return NAMES_AT + count * NAME_SLOT + index * BLOCK_SIZE


def board_size(names: Sequence[str]) -> int:
    """Bytes that the segment of a board with these blocks needs."""
    return block_at(len(names), len(names))


def format_board(buffer: memoryview | bytearray, names: Sequence[str]) -> None:
    """Makes a board with all cells 0 of a buffer that nobody else uses yet. The version is stored last."""
    encoded = [name.encode() for name in names]
    if len(names) > MAX_BLOCKS:
        raise LayoutError("board", "count", len(names), f"at most {MAX_BLOCKS}")
    for name, raw in zip(names, encoded, strict=True):
        if not 0 < len(raw) <= NAME_LIMIT:
            raise LayoutError("board", "name", name, f"1 to {NAME_LIMIT} bytes of UTF-8")
        if names.count(name) > 1:
            raise LayoutError("board", "name", name, "names to be unique")
    size = board_size(names)
    with memoryview(buffer).cast("B") as view:
        if view.nbytes < size:
            raise LayoutError("board", "size of the buffer", view.nbytes, f"at least {size}")
        view[:size] = bytes(size)
        with view[:NAMES_AT] as header, header.cast("Q") as cells:
            for index, raw in enumerate(encoded):
                at = name_at(index)
                view[at : at + WORD] = len(raw).to_bytes(WORD, "little")
                view[at + WORD : at + WORD + len(raw)] = raw
            cells[BoardIdentity.MAGIC] = BOARD_MAGIC
            cells[BoardIdentity.COUNT] = len(names)
            cells[BoardIdentity.SIZE] = size
            cells[BoardIdentity.VERSION] = BOARD_VERSION


def check_board(buffer: memoryview | bytearray) -> tuple[str, ...]:
    """The names of a board's blocks; says what is wrong if the buffer is not a formatted board."""
    with memoryview(buffer).cast("B") as view:
        if view.nbytes < NAMES_AT:
            raise LayoutError("board", "size of the buffer", view.nbytes, f"at least {NAMES_AT}")
        with view[:NAMES_AT] as header, header.cast("Q") as cells:
            version, magic = cells[BoardIdentity.VERSION], cells[BoardIdentity.MAGIC]
            count, size = cells[BoardIdentity.COUNT], cells[BoardIdentity.SIZE]
        _check_identity("board", magic, BOARD_MAGIC, version, BOARD_VERSION)
        if count > MAX_BLOCKS:
            raise LayoutError("board", "count", count, f"at most {MAX_BLOCKS}")
        if size != block_at(count, count):
            raise LayoutError("board", "size", size, f"{block_at(count, count)} for {count} blocks")
        if view.nbytes < size:
            raise LayoutError("board", "size", size, f"to fit into the buffer of {view.nbytes} bytes")
        return tuple(_name(view, index) for index in range(count))


def _name(view: memoryview, index: int) -> str:
    at = name_at(index)
    length = int.from_bytes(view[at : at + WORD], "little")
    if not 0 < length <= NAME_LIMIT:
        raise LayoutError("board", f"length of name {index}", length, f"1 to {NAME_LIMIT}")
    raw = bytes(view[at + WORD : at + WORD + length])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise LayoutError("board", f"name {index}", raw, "UTF-8") from None


def _check_identity(layout: str, magic: int, expected_magic: int, version: int, expected_version: int) -> None:
    if magic != expected_magic:
        raise LayoutError(layout, "magic", magic, hex(expected_magic))
    if version != expected_version:
        raise LayoutError(layout, "version", version, str(expected_version))
