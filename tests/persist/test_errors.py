"""Errors carry their values, say them, and cross process boundaries."""

from __future__ import annotations

import pickle

import pytest

import persist
from persist import errors

EXAMPLES: list[tuple[errors.PersistError, str]] = [
    (errors.JournalLocked("/j", 7), "/j is in use by process 7"),
    (errors.JournalLocked("/j", 0), "/j is in use by process unknown"),
    (
        errors.UnsafeDirectory("/j", "why"),
        "/j is not safe for a journal: why; make it yours alone (chown, chmod go-w)",
    ),
    (errors.JournalPoisoned("/j/1", 64, "why"), "/j/1 is poisoned at offset 64: why"),
    (errors.JournalFull("/j/1", 64, 9), "no room on disk for 64 bytes in /j/1 (9 are kept in reserve)"),
    (errors.JournalClosed("/j", "why"), "the journal in /j cannot be used: why"),
    (errors.NewerFormat("/j/1", 2, 1), "/j/1 has format version 2; this software reads up to 1"),
    (errors.NotAJournal("/j/1", "why"), "/j/1 is not a journal segment: why"),
    (errors.DamagedJournal("/j/1", 64, 9, "why"), "/j/1 is damaged at offset 64 (9 bytes at stake): why"),
    (
        errors.UnknownName({"peer b": 2, "peer a": 1}),
        "the topology no longer has what committed messages wait for: peer a (1 messages), peer b (2 messages)",
    ),
    (errors.FrameTooLarge(11, 10), "a frame body of 11 bytes is over the limit of 10"),
    (errors.SequenceBroken("p", 2, 3), "sequence numbers towards p must go on with 2, got 3"),
    (errors.OutboxMissing(2, 3), "committed message 2 is needed again, but what was read back begins with 3"),
    (errors.OutboxMissing(2, 0), "committed message 2 is needed again, but what was read back is empty"),
    (errors.ProtocolViolation("poll", 3, 2), "the peer's poll is 3, the limit is 2"),
]


def test_every_error_has_an_example() -> None:
    assert {type(error) for error, _ in EXAMPLES} == {
        error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)
    } - {errors.PersistError}
    assert {type(error).__name__ for error, _ in EXAMPLES} <= set(persist.__all__)


@pytest.mark.parametrize(("error", "text"), EXAMPLES)
def test_error_says_its_values_and_survives_pickling(error: errors.PersistError, text: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == text
