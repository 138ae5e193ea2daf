"""The sources of a worker: when which `on_loop` is called, how often, and what becomes of one that fails."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext

from actors.attempts import source_attempts
from actors.careful import FULL_PAUSE
from actors.dispatch import Dispatcher
from actors.hosted import Hosted
from actors.system_errors import HandlerFailed
from persist import JournalFull

log = logging.getLogger("ringleader")

LOOP_CALLS = 1024  # on_loop calls of one handler in one transaction
LOOP_SECONDS = 0.001  # and the time they may take together
RETRY_PAUSE = 0.05  # before an on_loop that raised is called again, doubled each time
RETRY_LONGEST = 60.0
CAREFUL_CALLS = 1000  # on_loop calls of a careful start, one transaction each


class Sources:
    """The handlers with an `on_loop`, over their dispatcher. `max_attempts` is the topology's, for those that do not
    say themselves how often they may fail in a row. `careful`: the incarnation before died, and of no message that is
    known."""

    def __init__(self, dispatcher: Dispatcher, max_attempts: int, *, careful: bool = False) -> None:
        self._dispatcher = dispatcher
        self._careful_calls = CAREFUL_CALLS if careful else 0
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
        careful = hosted.failures > 0 or self._careful_calls > 0
        self._careful_calls -= careful
        calls = 1 if careful else LOOP_CALLS
        try:
            # A message to a handler of this worker that fails, or kills it, is to be found out as such, not as the
            # source's own failure: it becomes a transaction of its own.
            with self._dispatcher.local.carried_over() if careful else nullcontext():
                prepared, pause = self._dispatcher.run_source(hosted, calls, now + LOOP_SECONDS)
        except Exception as error:
            hosted.failures += 1
            limit = source_attempts(hosted.plan.policy, self._max_attempts)
            if limit is not None and hosted.failures >= limit:
                raise HandlerFailed(hosted.name, "on_loop", hosted.failures) from error
            pause = min(RETRY_PAUSE * 2 ** min(hosted.failures, 20), RETRY_LONGEST)
            hosted.due = time.monotonic() + pause
            often = f"{hosted.failures}{'' if limit is None else f' of {limit}'} in a row"
            log.warning(
                "on_loop of %s failed (%s), it is called again in %.1f s", hosted.name, often, pause, exc_info=error
            )
            return
        try:
            self._dispatcher.commit_source(prepared)
        except JournalFull as error:
            self._dispatcher.careful.tell_full(f"on_loop of {hosted.name} waits", error)
            hosted.due = time.monotonic() + FULL_PAUSE  # not its fault: no failure is counted
            return
        hosted.failures = 0
        hosted.due = now + (pause or 0.0)
