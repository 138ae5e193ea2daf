"""How bytes last: the journal, its recovery, and the ILM protocol of a link. Payloads and names are opaque here."""

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
from persist.journal import Journal
from persist.link import DUPLICATE, NEW, UNKNOWN, UNLIMITED, Entry, Inbound, Kind, Outbound, Verdict
from persist.load import read
from persist.lock import DirectoryLock
from persist.names import snapshot_of
from persist.recovery import NamedDeadLetter, Recovered
from persist.retention import Retain

__all__ = [
    "DUPLICATE",
    "NEW",
    "UNKNOWN",
    "UNLIMITED",
    "DamagedJournal",
    "DeadLetter",
    "DirectoryLock",
    "Entry",
    "FrameTooLarge",
    "Inbound",
    "Journal",
    "JournalClosed",
    "JournalFull",
    "JournalLocked",
    "JournalPoisoned",
    "Kind",
    "NamedDeadLetter",
    "NewerFormat",
    "NotAJournal",
    "Outbound",
    "OutboxMissing",
    "PersistError",
    "ProtocolViolation",
    "Recovered",
    "Report",
    "Retain",
    "Send",
    "SequenceBroken",
    "Snapshot",
    "TornTail",
    "Transaction",
    "UnknownName",
    "UnsafeDirectory",
    "Verdict",
    "check",
    "read",
    "snapshot_of",
]
