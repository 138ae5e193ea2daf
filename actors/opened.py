"""What a worker that changes its user opens before it does: shared memory and journal, which its new user could not.

It is told what to open in plain words, names and a path. Nothing here, nor what is needed to read it, is code of the
user's or imports any; the plan, with the handlers, is unpacked after the change.
"""

from __future__ import annotations

import os

import msgspec

from actors.plan import Plan
from actors.wiring import board_name, ring_name
from bus import Segment
from persist import PersistError, UnsafeDirectory
from persist.files import Directory


class Opening(msgspec.Struct, frozen=True):
    """`journal`: its directory, empty at level `memory`; it must belong to the user `uid`."""

    segments: tuple[str, ...]
    journal: str
    level: str
    uid: int


class Opened(msgspec.Struct):
    """What is taken out of it belongs to who took it."""

    segments: dict[str, Segment] = msgspec.field(default_factory=dict)
    _journal: Directory | None = None
    _problem: Exception | None = None

    def directory(self, path: str) -> Directory:
        """That of the journal; raises what kept it from being opened. Once only."""
        if self._problem is not None:
            raise self._problem
        opened, self._journal = self._journal, None
        if opened is None or opened.path != path:
            raise UnsafeDirectory(path, "it was not opened before the change of user")
        return opened


def opening_of(plan: Plan, worker: str, run_id: str, journal: str, uid: int) -> Opening:
    rings = [ring_name(run_id, edge) for edge in plan.edges if worker in (edge.source, edge.target)]
    return Opening((board_name(run_id), *rings), journal, plan.level, uid)


def open_first(wanted: Opening) -> Opened:
    """In the worker. A journal that cannot be had is told of when it is needed, like any other."""
    opened = Opened({name: Segment.attach(name) for name in wanted.segments})
    if wanted.journal:
        try:
            opened._journal = _open_journal(wanted)
        except (PersistError, OSError) as problem:
            opened._problem = problem
    return opened


def _open_journal(wanted: Opening) -> Directory:
    directory = Directory(wanted.journal, create=False)
    try:
        owner = os.fstat(directory.descriptor).st_uid
        if owner != wanted.uid:
            raise UnsafeDirectory(directory.path, f"it belongs to user {owner}, and its worker runs as {wanted.uid}")
        if wanted.level == "power":
            directory.anchor()  # later it may not even look at what is above
    except BaseException:
        directory.close()
        raise
    return directory
