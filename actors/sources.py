"""The sources of a worker: when which `on_loop` is called, how often, and what becomes of one that fails."""

from __future__ import annotations

import time

from actors.attempts import source_attempts
from actors.careful import FULL_PAUSE
from actors.dispatch import Dispatcher
from actors.hosted import Hosted
from actors.system_errors import HandlerFailed
from persist import JournalFull

LOOP_CALLS = 1024  # on_loop calls of one handler in one transaction
LOOP_SECONDS = 0.001  # and the time they may take together
RETRY_PAUSE = 0.05  # before an on_loop that raised is called again, doubled each time
RETRY_LONGEST = 60.0


class Sources:
    """The handlers with an `on_loop`, over their dispatcher. `max_attempts` is the topology's, for those that do not
    say themselves how often they may fail in a row."""

    def __init__(self, dispatcher: Dispatcher, max_attempts: int) -> None:
        self._dispatcher = dispatcher
        self._max_attempts = max_attempts
        self._hosted = [hosted for hosted in dispatcher.hosted if hosted.plan.description.has_on_loop]

    def __bool__(self) -> bool:
        return bool(self._hosted)

    def call(self, now: float) -> float:
        """Calls those whose time has come; returns when the next is due. None is called while a message for which
        everything waits has not come to its next attempt."""
        held_until = self._dispatcher.careful.held_until
        if held_until > now:
            return held_until
        for hosted in self._hosted:
            if hosted.due <= now:
                self._call(hosted, now)
        return min((hosted.due for hosted in self._hosted), default=float("inf"))

    def _call(self, hosted: Hosted, now: float) -> None:
        calls = 1 if hosted.failures else LOOP_CALLS
        try:
            prepared, pause = self._dispatcher.run_source(hosted, calls, now + LOOP_SECONDS)
        except Exception as error:
            hosted.failures += 1
            limit = source_attempts(hosted.plan.policy, self._max_attempts)
            if limit is not None and hosted.failures >= limit:
                raise HandlerFailed(hosted.name, "on_loop", hosted.failures) from error
            hosted.due = time.monotonic() + min(RETRY_PAUSE * 2 ** min(hosted.failures, 20), RETRY_LONGEST)
            return
        try:
            self._dispatcher.commit_source(prepared)
        except JournalFull:
            hosted.due = time.monotonic() + FULL_PAUSE  # not its fault: no failure is counted
            return
        hosted.failures = 0
        hosted.due = now + (pause or 0.0)
