"""How bytes last: the journal, its recovery and history, the protocol of a link, and ILM. Payloads are opaque here.

ILM, messages between programs that are kept until they have been delivered, and the tools for damaged journals are
imported when they are first asked for: workers import this package, and need neither asyncio nor sqlite3.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from persist.check import Report, check
from persist.errors import (
    DamagedJournal,
    FrameTooLarge,
    JournalClosed,
    JournalFull,
    JournalLocked,
    JournalPoisoned,
    NewerFormat,
    NotAJournal,
    OutboxMissing,
    PersistError,
    ProtocolViolation,
    SequenceBroken,
    UnknownName,
    UnsafeDirectory,
)
from persist.format import DeadLetter, Send, Snapshot, TornTail, Transaction
from persist.history import Record, SentRun, beginning, replay, tail
from persist.history_errors import CannotRepair, DiscardNeeded, NoSuchPosition, PositionGone
from persist.journal import Journal
from persist.link import DUPLICATE, NEW, UNKNOWN, UNLIMITED, Entry, Inbound, Kind, Outbound, Verdict
from persist.load import read
from persist.lock import DirectoryLock
from persist.names import snapshot_of
from persist.recovery import NamedDeadLetter, Recovered
from persist.retention import Retain

if TYPE_CHECKING:
    from persist.ilm.backend import Backend, Change, PeerState, Run
    from persist.ilm.backend_journal import JournalBackend
    from persist.ilm.backend_memory import MemoryBackend
    from persist.ilm.backend_sqlite import SQLiteBackend
    from persist.ilm.delivery import Deliver, Effects
    from persist.ilm.errors import (
        BackendFailed,
        BackendInUse,
        ContentsTooLarge,
        DeliveryFailed,
        ILMBroken,
        ILMClosed,
        ILMError,
        LostOwnState,
        MessageIdNotNew,
        NotAStore,
        PeerLostState,
        SendToSelf,
        ShutdownTimedOut,
        StorageFull,
        TransportClosed,
        TransportFailed,
        WireError,
        WrongBackend,
        WrongSource,
    )
    from persist.ilm.facade import ILM, PeerStatistics
    from persist.ilm.memory_network import MemoryNetwork, MemoryTransport
    from persist.ilm.message import ILMMessage, MakeMessage, MessageMetadata, PeerId
    from persist.ilm.transport import Transport
    from persist.repair import Elsewhere, Repair, repair

_LATER = {
    "persist.ilm.backend": "Backend Change PeerState Run",
    "persist.ilm.backend_journal": "JournalBackend",
    "persist.ilm.backend_memory": "MemoryBackend",
    "persist.ilm.backend_sqlite": "SQLiteBackend",
    "persist.ilm.delivery": "Deliver Effects",
    "persist.ilm.errors": "BackendFailed BackendInUse ContentsTooLarge DeliveryFailed ILMBroken ILMClosed ILMError "
    "LostOwnState MessageIdNotNew NotAStore PeerLostState SendToSelf ShutdownTimedOut StorageFull TransportClosed "
    "TransportFailed WireError WrongBackend WrongSource",
    "persist.ilm.facade": "ILM PeerStatistics",
    "persist.ilm.memory_network": "MemoryNetwork MemoryTransport",
    "persist.ilm.message": "ILMMessage MakeMessage MessageMetadata PeerId",
    "persist.ilm.transport": "Transport",
    "persist.repair": "Elsewhere Repair repair",
}
_WHERE = {name: module for module, names in _LATER.items() for name in names.split()}

__all__ = [
    "DUPLICATE",
    "ILM",
    "NEW",
    "UNKNOWN",
    "UNLIMITED",
    "Backend",
    "BackendFailed",
    "BackendInUse",
    "CannotRepair",
    "Change",
    "ContentsTooLarge",
    "DamagedJournal",
    "DeadLetter",
    "Deliver",
    "DeliveryFailed",
    "DirectoryLock",
    "DiscardNeeded",
    "Effects",
    "Elsewhere",
    "Entry",
    "FrameTooLarge",
    "ILMBroken",
    "ILMClosed",
    "ILMError",
    "ILMMessage",
    "Inbound",
    "Journal",
    "JournalBackend",
    "JournalClosed",
    "JournalFull",
    "JournalLocked",
    "JournalPoisoned",
    "Kind",
    "LostOwnState",
    "MakeMessage",
    "MemoryBackend",
    "MemoryNetwork",
    "MemoryTransport",
    "MessageIdNotNew",
    "MessageMetadata",
    "NamedDeadLetter",
    "NewerFormat",
    "NoSuchPosition",
    "NotAJournal",
    "NotAStore",
    "Outbound",
    "OutboxMissing",
    "PeerId",
    "PeerLostState",
    "PeerState",
    "PeerStatistics",
    "PersistError",
    "PositionGone",
    "ProtocolViolation",
    "Record",
    "Recovered",
    "Repair",
    "Report",
    "Retain",
    "Run",
    "SQLiteBackend",
    "Send",
    "SendToSelf",
    "SentRun",
    "SequenceBroken",
    "ShutdownTimedOut",
    "Snapshot",
    "StorageFull",
    "TornTail",
    "Transaction",
    "Transport",
    "TransportClosed",
    "TransportFailed",
    "UnknownName",
    "UnsafeDirectory",
    "Verdict",
    "WireError",
    "WrongBackend",
    "WrongSource",
    "beginning",
    "check",
    "read",
    "repair",
    "replay",
    "snapshot_of",
    "tail",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
