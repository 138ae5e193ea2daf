"""Journal housekeeping between transactions: a new segment when it is time, old ones go when all is trimmed."""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.endpoint import Endpoint
from bus import Field
from persist import Journal, JournalFull, Snapshot

TRIM_NS = 50_000_000  # between two looks for segments that can go


class Housekeeping:
    """Of the journal of one endpoint, if it has one. `snapshot` is of everything that this journal holds."""

    def __init__(self, endpoint: Endpoint, snapshot: Callable[[], Snapshot]) -> None:
        self._endpoint = endpoint
        self._snapshot = snapshot
        self._trim_at = 0  # when to look next for segments that can go, monotonic ns

    def keep(self) -> None:
        """What is due now. JournalPoisoned ends the incarnation."""
        journal, cells = self._endpoint.journal, self._endpoint.cells
        if journal is None:
            return
        cells[Field.JOURNAL_BYTES] = journal.bytes
        full = journal.full
        if journal.due and not full:
            self._renew(journal)
        elif time.monotonic_ns() > self._trim_at:
            # Soon, not only when the next segment is full: every restart reads what is still there, and others may
            # wait for its room on the disk.
            self._trim(journal)
            if journal.due or journal.relieves(self._acked()):
                self._renew(journal)
        if cells[Field.DISK_FULL] and not journal.full:
            cells[Field.DISK_FULL] = 0

    def seal(self) -> None:
        """At a clean end: the journal begins anew, with all acknowledgements: the next start finds no work."""
        endpoint = self._endpoint
        endpoint.progress()
        if endpoint.journal is not None:
            self._renew(endpoint.journal)
            endpoint.journal.close()
            endpoint.journal = None

    def _renew(self, journal: Journal) -> None:
        try:
            # failpoint: rotate-before
            journal.rotate(self._snapshot())
        except JournalFull:
            self._endpoint.cells[Field.DISK_FULL] = 1  # it goes on where it is, and is looked after again soon
        self._trim(journal)

    def _trim(self, journal: Journal) -> None:
        # failpoint: trim-before
        journal.trim(self._acked())
        self._endpoint.cells[Field.JOURNAL_SEGMENTS] = journal.segments
        self._trim_at = time.monotonic_ns() + TRIM_NS

    def _acked(self) -> dict[int, int]:
        return {link.index: link.outbound.acked for link in self._endpoint.links}
