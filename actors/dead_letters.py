"""Dead letters of a system, collected from the journals of all its workers, whether it runs or not.

Reading takes no lock and changes nothing. Payloads stay where they are, unless they are asked for: what is told of a
message is its id, its type, its size and why it was given up on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from actors.claims_on_disk import beginning
from actors.codecs import JSON
from actors.errors import BadRecord, RingleaderError
from actors.fixed_runs import NAME as FIXED
from actors.identity import Identity
from actors.layout import FINGERPRINT, parse
from actors.plan import GATEWAY
from actors.rundir import JOURNALS, RunDirectory, RunDirectoryError
from actors.sealed import is_sealed, unseal
from actors.tickets import ticket_in
from persist import NamedDeadLetter, PersistError, read

SHOWN_BYTES = 1 << 20  # of a message that is not in the letter itself; of a longer one the first bytes are shown


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
    codec: str = ""  # its name; none for MessagePack
    payload: Any = None  # a MessagePack or JSON value, where it is one; else there is `payload_hex`
    payload_hex: str = ""


class LetterPlace(NamedTuple):
    """Where a dead letter is: its id is unique within its worker only."""

    worker: str
    peer: str
    seq: int

    def __str__(self) -> str:
        return f"{self.peer}/{self.seq}"


class LetterChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has become of one dead letter. `problem`: why it is left as it is."""

    id: str
    worker: str
    done: str = ""  # "requeued" or "dropped"
    problem: str = ""

    @classmethod
    def of(cls, place: LetterPlace, action: str, problem: str) -> Self:
        done = "" if problem else {"requeue": "requeued", "drop": "dropped"}[action]
        return cls(id=str(place), worker=place.worker, done=done, problem=problem)


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


def collect(path: Path, *, tracebacks: bool = False, payloads: bool = False) -> DeadLetters:
    """From the run directory at `path`. Raises what opening it raises, and FileNotFoundError if it has no system."""
    with RunDirectory.open(path, create=False) as directory:
        identity = directory.read_identity()
        if identity is None:
            raise FileNotFoundError(path / "identity.json")
        letters: list[DeadLetterStatus] = []
        unreadable: list[Unreadable] = []
        for worker in _journals(path, identity):
            journal = path / JOURNALS / worker
            try:
                directory.check_journal(worker)
                recovered = read(journal)
            except (PersistError, RunDirectoryError, OSError) as error:
                unreadable.append(Unreadable(worker=worker, problem=str(error)))
                continue
            letters += [_letter(worker, journal, letter, tracebacks, payloads) for letter in recovered.dead]
    letters.sort(key=lambda letter: (letter.time_unix_seconds, letter.worker, letter.peer, letter.seq))
    return DeadLetters(
        name=identity.name,
        directory=str(path),
        level=identity.level,
        dead_letters=tuple(letters),
        unreadable=tuple(unreadable),
    )


def known_names(letters: DeadLetters) -> tuple[list[str], list[str]]:
    """The workers and handlers that letters can be asked for by: those of the system, and those of its letters, which
    the topology may no longer have. Raises as `collect` does."""
    with RunDirectory.open(Path(letters.directory), create=False) as directory:
        identity = directory.read_identity()
    workers = [] if identity is None else [*identity.workers]
    handlers = [] if identity is None else [name for names in identity.handlers.values() for name in names]
    workers += [letter.worker for letter in letters.dead_letters] + [one.worker for one in letters.unreadable]
    handlers += [name for letter in letters.dead_letters for name in letter.handler.split(",") if name]
    return list(dict.fromkeys(workers)), list(dict.fromkeys(handlers))


class CannotChoose(RingleaderError):
    """There is no such dead letter (`workers` is empty), or several workers have one of this id."""

    def __init__(self, id: str, workers: tuple[str, ...]) -> None:  # noqa: A002
        super().__init__(id, tuple(workers))
        self.id, self.workers = id, tuple(workers)

    def __str__(self) -> str:
        if not self.workers:
            return f"no dead letter {self.id!r}"
        return (
            f"{len(self.workers)} workers have a dead letter {self.id!r}: {', '.join(self.workers)}; name one of them"
        )


def choose(
    letters: Sequence[DeadLetterStatus], ids: Sequence[str], worker: str | None = None, handler: str | None = None
) -> list[DeadLetterStatus]:
    """Those with these ids, or else all, of this worker and for this handler. An id may be preceded by its worker, as
    in `stats:ingest/7`. Raises CannotChoose."""
    among = [
        letter
        for letter in letters
        if worker in {None, letter.worker} and (handler is None or handler in letter.handler.split(","))
    ]
    chosen: dict[tuple[str, str], DeadLetterStatus] = {}
    for one in ids:
        found = [letter for letter in among if one in {letter.id, f"{letter.worker}:{letter.id}"}]
        if len(found) != 1:
            raise CannotChoose(one, tuple(letter.worker for letter in found))
        chosen[found[0].worker, found[0].id] = found[0]
    return list(chosen.values()) if ids else among


def _journals(path: Path, identity: Identity) -> list[str]:
    """The workers that have a journal, also those that the topology no longer has; the present ones first."""
    try:
        with os.scandir(path / JOURNALS) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return []
    present = [name for name in (*identity.workers, GATEWAY) if name in names]
    return present + sorted(names.difference(present))


def _letter(worker: str, path: Path, letter: NamedDeadLetter, tracebacks: bool, payloads: bool) -> DeadLetterStatus:
    source = letter.route[0]
    codec, size, encoded = _opened(letter.body, path)
    payload, as_hex = _payload(codec, encoded, letter.route[1]) if payloads else (None, "")
    return DeadLetterStatus(
        id=f"{letter.peer}/{letter.seq}",
        worker=worker,
        peer=letter.peer,
        seq=letter.seq,
        source=GATEWAY if source.startswith(f"{GATEWAY}:") else source,
        handler=letter.handler,
        type=letter.type,
        size_bytes=size,
        reason=letter.reason,
        attempts=letter.attempts,
        time=datetime.fromtimestamp(letter.time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        time_unix_seconds=letter.time_ns / 1e9,
        traceback=letter.detail if tracebacks else "",
        codec=codec,
        payload=payload,
        payload_hex=as_hex,
    )


def _opened(body: bytes, journal: Path) -> tuple[str, int, bytes | memoryview]:
    """By which codec, how large, and what it made of the message; of one that has a claim, as much as can be shown."""
    if is_sealed(body):
        with suppress(BadRecord):
            ticket = ticket_in(body)
            if ticket is None:
                return unseal(body).codec, len(body), unseal(body).payload
            return ticket.codec, ticket.size, beginning(ticket, journal, SHOWN_BYTES)
    return "", len(body), body


def _payload(codec: str, encoded: bytes | memoryview, route: str = "") -> tuple[Any, str]:
    """As a value that JSON can carry, or else as hexadecimal text. Nothing is decoded that could be code. `route`: the
    name of the type, with its layout if it has one."""
    try:
        if codec == FIXED and (layout := parse(route[route.find("{") :])) is not None:
            if encoded[:FINGERPRINT] != layout.fingerprint:
                return None, encoded.hex()
            return {name: _shown(value) for name, value in layout.unpack(encoded[FINGERPRINT:]).items()}, ""
        if codec == JSON.name:
            return msgspec.json.decode(encoded), ""
        if codec:
            return None, encoded.hex()
        value = msgspec.msgpack.decode(encoded)
        return msgspec.json.decode(msgspec.json.encode(value)), ""
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return None, encoded.hex()


def _shown(value: Any) -> Any:
    """Of a field of a fixed message: bytes as text where they are ASCII, else as hexadecimal text."""
    if isinstance(value, tuple):
        return [_shown(one) for one in value]
    if not isinstance(value, bytes):
        return value
    return value.decode() if value.isascii() and value.decode().isprintable() else value.hex()
