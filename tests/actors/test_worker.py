"""What a worker leaves to its supervisor when it cannot go on."""

from __future__ import annotations

import pytest

from actors.exits import WorkerExit
from actors.system_errors import HandlerFailed
from actors.worker import exit_for
from bus import WorkerState
from persist import DamagedJournal, JournalLocked, JournalPoisoned, OutboxMissing


@pytest.mark.parametrize(
    ("error", "state", "expected"),
    [
        (DamagedJournal("j", 1, 2, "bad"), WorkerState.RECOVERING, WorkerExit.JOURNAL_REFUSED),
        (OutboxMissing(1, 2), WorkerState.RUNNING, WorkerExit.JOURNAL_REFUSED),
        (JournalPoisoned("j", 1, "EIO"), WorkerState.RUNNING, WorkerExit.JOURNAL_POISONED),
        (JournalLocked("j", 1), WorkerState.RECOVERING, WorkerExit.JOURNAL_POISONED),
        (OSError(28, "full"), WorkerState.RECOVERING, WorkerExit.JOURNAL_POISONED),
        (OSError(12, "no memory"), WorkerState.RECOVERING, WorkerExit.START_FAILED),
        (MemoryError(), WorkerState.RECOVERING, WorkerExit.START_FAILED),
        (FileNotFoundError(2, "the user's file"), WorkerState.STARTING, WorkerExit.START_FAILED),
        (FileNotFoundError(2, "the user's file"), WorkerState.RUNNING, WorkerExit.CRASHED),
        (HandlerFailed("h", "on_loop", 3), WorkerState.RUNNING, WorkerExit.HANDLER_FAILED),
        (SystemExit(0), WorkerState.RUNNING, WorkerExit.CRASHED),
        (RuntimeError("x"), WorkerState.STARTING, WorkerExit.START_FAILED),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_every_end_has_the_exit_code_that_blames_the_right_side(
    error: BaseException, state: WorkerState, expected: WorkerExit
) -> None:
    assert exit_for(error, state) is expected
