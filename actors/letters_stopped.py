"""Requeues and drops dead letters of a system that does not run: by transactions in its workers' journals.

Contract
- Under the lock of the run directory, which a running system holds: AlreadyRunning says who has it.
- Each letter that is requeued is removed, and sent by its worker to itself, by one append. A crash leaves it there as a
  dead letter, or as a message that is handled at the next start, once.
- A journal that is refused, or has no room, is left as it is; the letters of the others are dealt with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from actors.dead_letters import LetterChange, LetterPlace
from actors.identity import Identity
from actors.letter_commands import UNKNOWN, Action, requeued, requeued_flags, unhandled
from actors.rundir import RunDirectory, RunDirectoryError
from persist import Journal, PersistError, Send, Snapshot, Transaction
from persist.reopen import reopen


def change_stopped(path: Path, action: Action, letters: Sequence[LetterPlace]) -> list[LetterChange]:
    """What has become of each letter, in the given order. Raises what opening and locking the run directory raises, and
    FileNotFoundError if it has no system."""
    with RunDirectory.open(path, create=False) as directory:
        directory.lock()
        identity = directory.read_identity()
        if identity is None:
            raise FileNotFoundError(path / "identity.json")
        there = directory.journals()
        problems: dict[LetterPlace, str] = {}
        for worker in dict.fromkeys(letter.worker for letter in letters):
            mine = list(dict.fromkeys(letter for letter in letters if letter.worker == worker))
            if worker not in there:
                problems |= dict.fromkeys(mine, UNKNOWN)
                continue
            try:
                _change(directory.journal(worker), action, mine, identity, problems)
            except (PersistError, RunDirectoryError, FileNotFoundError) as error:
                problems |= {letter: str(error) for letter in mine if letter not in problems}
    return [LetterChange.of(letter, action, problems[letter]) for letter in letters]


def _change(
    path: Path, action: Action, letters: Iterable[LetterPlace], identity: Identity, problems: dict[LetterPlace, str]
) -> None:
    """Fills `problems`, with what is done before anything fails too."""
    journal, names = reopen(path)
    try:
        for letter in letters:
            problem = _change_one(journal, names, action, letter, identity)
            if names.level == "power":
                journal.sync()
            problems[letter] = problem
    finally:
        journal.close()


def _change_one(journal: Journal, names: Snapshot, action: Action, place: LetterPlace, identity: Identity) -> str:
    """One transaction; `names` also keeps the last number that the worker has sent itself."""
    found = [one for one in names.dead if (names.peers[one.peer], one.seq) == (place.peer, place.seq)]
    if not found:
        return UNKNOWN
    letter = found[0]
    change = Transaction(removed=[(letter.peer, letter.seq)])
    if action == "requeue":
        hosted = set(identity.handlers.get(place.worker, ()))
        routes = len(names.routes) - names.retired_routes
        if (
            place.worker not in names.peers
            or letter.route >= routes
            or not hosted.intersection(letter.handler.split(","))
        ):
            return unhandled(letter.body)
        me = names.peers.index(place.worker)
        last = dict(names.assigned).get(me, 0) + 1
        change.sends = [Send(letter.route, 1, requeued_flags(letter.body), [(me, last)], requeued(letter.body))]
        names.assigned = [*((peer, seq) for peer, seq in names.assigned if peer != me), (me, last)]
    journal.append(change)
    names.dead.remove(letter)
    return ""
