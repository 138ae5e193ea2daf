"""Dead letters of a system, collected from the journals of all its workers, whether it runs or not.

Reading takes no lock and changes nothing. Payloads stay where they are: what is told of a message is its id, its type,
its size and why it was given up on.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from actors.identity import Identity
from actors.plan import GATEWAY
from actors.rundir import JOURNALS, RunDirectory
from persist import NamedDeadLetter, PersistError, read


class DeadLetterStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One dead letter. Field names are JSON keys; `traceback` is there only if it was asked for."""

    id: str  # peer/seq, the message id that its handler saw
    worker: str  # that gave up on it
    peer: str  # that sent it
    seq: int
    source: str  # the sending handler, or the gateway for the world outside
    handler: str  # the receiving one, or several with commas between them
    type: str
    size_bytes: int
    reason: str
    attempts: int
    time: str  # ISO 8601, UTC
    time_unix_seconds: float
    traceback: str = ""


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    worker: str
    problem: str


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    """All dead letters of a system, oldest first; `unreadable` are journals that could not be looked into."""

    name: str
    directory: str
    level: str
    dead_letters: tuple[DeadLetterStatus, ...]
    unreadable: tuple[Unreadable, ...]


def collect(path: Path, *, tracebacks: bool = False) -> DeadLetters:
    """From the run directory at `path`. Raises what opening it raises, and FileNotFoundError if it has no system."""
    with RunDirectory.open(path, create=False) as directory:
        identity = directory.read_identity()
    if identity is None:
        raise FileNotFoundError(path / "identity.json")
    letters: list[DeadLetterStatus] = []
    unreadable: list[Unreadable] = []
    for worker in _journals(path, identity):
        try:
            recovered = read(path / JOURNALS / worker)
        except (PersistError, OSError) as error:
            unreadable.append(Unreadable(worker=worker, problem=str(error)))
            continue
        letters += [_letter(worker, letter, tracebacks) for letter in recovered.dead]
    letters.sort(key=lambda letter: (letter.time_unix_seconds, letter.worker, letter.peer, letter.seq))
    return DeadLetters(
        name=identity.name,
        directory=str(path),
        level=identity.level,
        dead_letters=tuple(letters),
        unreadable=tuple(unreadable),
    )


def _journals(path: Path, identity: Identity) -> list[str]:
    """The workers that have a journal, also those that the topology no longer has; the present ones first."""
    try:
        with os.scandir(path / JOURNALS) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return []
    present = [name for name in (*identity.workers, GATEWAY) if name in names]
    return present + sorted(names.difference(present))


def _letter(worker: str, letter: NamedDeadLetter, tracebacks: bool) -> DeadLetterStatus:
    source = letter.route[0]
    return DeadLetterStatus(
        id=f"{letter.peer}/{letter.seq}",
        worker=worker,
        peer=letter.peer,
        seq=letter.seq,
        source=GATEWAY if source.startswith(f"{GATEWAY}:") else source,
        handler=letter.handler,
        type=letter.type,
        size_bytes=len(letter.body),
        reason=letter.reason,
        attempts=letter.attempts,
        time=datetime.fromtimestamp(letter.time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        time_unix_seconds=letter.time_ns / 1e9,
        traceback=letter.detail if tracebacks else "",
    )
