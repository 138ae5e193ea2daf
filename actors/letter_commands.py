"""Commands to a worker about its dead letters, and what they do. Pure.

A command comes from the gateway as a message of its own, flagged so, and is dealt with in a transaction of its own:
the letters go, what is requeued is carried over by the worker to itself, and the answer goes back, by one append. So
each command takes effect exactly once, whoever is killed meanwhile.

    body    :=  MessagePack [action, [[peer, sequence number], ...]]
    answer  :=  for each letter why not, or an empty string
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from actors.codec import FLAG_CLAIM, FLAG_REQUEUED, array_header
from actors.fixed_runs import NAME as FIXED
from actors.outgoing import EncodedRun
from actors.sealed import is_sealed, unseal
from actors.tickets import ticket_in
from persist.format import DeadLetter

Action = Literal["requeue", "drop"]
Letters = Sequence[tuple[str, int]]  # (peer, sequence number)
AT_ONCE = 64  # letters of one command: what they carry goes into one transaction

UNKNOWN = "no such dead letter"
UNHANDLED = "its worker no longer handles it"


class Command(msgspec.Struct, array_like=True, frozen=True):
    action: Action
    letters: list[tuple[str, int]]


class Effect(NamedTuple):
    """`removed`: letters that go, by (peer index, sequence number); `runs`: what is carried over; `problems`: for each
    letter of the command why it is left as it is, empty if it is not."""

    removed: list[tuple[int, int]]
    runs: list[EncodedRun]
    problems: list[str]


def commands(action: Action, letters: Letters, most: int) -> Iterator[tuple[Letters, bytes]]:
    """The letters in parts, each with the body of its command, of at most so many bytes if it has several letters."""
    for at in range(0, len(letters), AT_ONCE):
        yield from _cut(action, letters[at : at + AT_ONCE], most)


def _cut(action: Action, part: Letters, most: int) -> Iterator[tuple[Letters, bytes]]:
    body = msgspec.msgpack.encode(Command(action, list(part)))
    if len(body) <= most or len(part) == 1:
        yield part, body
    else:
        half = len(part) // 2
        yield from _cut(action, part[:half], most)
        yield from _cut(action, part[half:], most)


def effect(
    body: bytes | memoryview, dead: Sequence[DeadLetter], peers: Sequence[str], handled: Container[int], me: int
) -> Effect:
    """What the command does to these dead letters. `peers`: their names by index; `handled`: the ids of the routes that
    end at the worker; `me`: the peer that it is itself. Raises msgspec.DecodeError for what is no command."""
    command = msgspec.msgpack.decode(body, type=Command)
    known = {(peers[letter.peer], letter.seq): letter for letter in dead} if command.letters else {}
    found = Effect([], [], [])
    for place in command.letters:
        letter = known.get(place)
        if letter is None:
            found.problems.append(UNKNOWN)
            continue
        if command.action == "requeue":
            if letter.route not in handled:
                found.problems.append(unhandled(letter.body))
                continue
            found.runs.append(EncodedRun(letter.route, 1, requeued_flags(letter.body), (me,), requeued(letter.body)))
        del known[place]
        found.removed.append((letter.peer, letter.seq))
        found.problems.append("")
    return found


def unhandled(body: bytes) -> str:
    """Why a message is not requeued whose route does not end at the worker: the layout of rows belongs to the route."""
    if ticket_in(body) is None and is_sealed(body) and unseal(body).codec == FIXED:
        return f"{UNHANDLED}, or in another layout: `ringleader dead-letters show --payload` has its fields"
    return UNHANDLED


def requeued_flags(body: bytes) -> int:
    return FLAG_REQUEUED | FLAG_CLAIM if ticket_in(body) is not None else FLAG_REQUEUED


def requeued(body: bytes) -> bytes:
    """The run of the one message of a dead letter."""
    return array_header(1) + body
