"""Opens the journal of a worker that does not run, under the names that it ends with: to change what it holds."""

from __future__ import annotations

import os

from persist.files import Directory
from persist.format import Snapshot
from persist.journal import Journal
from persist.names import current_handlers, current_peers, current_routes, snapshot_of
from persist.reader import survey
from persist.recovery import Recovered


def reopen(directory: str | os.PathLike[str]) -> tuple[Journal, Snapshot]:
    """The journal, under its lock, and the snapshot with which it goes on: the name tables for what is appended.

    Raises what `Journal.open` does, and FileNotFoundError for one that was never written.
    """
    opened = Directory(directory, create=False)
    made: list[Snapshot] = []
    try:
        # Only for the level. The names are read under the lock, below.
        before = survey(opened).segments
        if not before:
            raise FileNotFoundError(opened.path)

        def first(recovered: Recovered | None, epoch: int) -> Snapshot:
            last = survey(opened).segments[-1].snapshot
            made.append(
                snapshot_of(
                    recovered or Recovered(),
                    level=last.level,
                    fingerprint=last.fingerprint,
                    peers=current_peers(last),
                    handlers=current_handlers(last),
                    routes=current_routes(last),
                )
            )
            return made[-1]

        journal, _ = Journal.open(directory, epoch=0, level=before[-1].snapshot.level, make_snapshot=first)
        return journal, made[-1]
    finally:
        opened.close()
