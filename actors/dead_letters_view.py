"""A dead letter in words, for a terminal."""

from __future__ import annotations

import msgspec

from actors.dead_letters import DeadLetterStatus
from actors.status_words import first_line, size


def letter_lines(letter: DeadLetterStatus, payload: bool) -> list[str]:
    """Everything that is known of it. What a handler or a sender had a part in is made fit for a terminal."""
    tries = f"{letter.attempts} attempt{'' if letter.attempts == 1 else 's'}"
    lines = [
        f"{letter.id} of worker {letter.worker}",
        f"    type       {letter.type}, {size(letter.size_bytes)}"
        + (f", by codec {letter.codec}" if letter.codec else ""),
        f"    from       {letter.source}, by {letter.peer}",
        f"    for        {letter.handler}",
        f"    given up   {letter.time}, after {tries}",
        f"    reason     {first_line(letter.reason)}",
    ]
    lines += [f"      {_printable(line)}" for line in letter.traceback.splitlines()]
    if payload:
        lines.append(f"    payload    {_payload(letter)}")
    return lines


def _payload(letter: DeadLetterStatus) -> str:
    if letter.payload_hex:
        return f"{letter.payload_hex} (hexadecimal)"
    return _printable(msgspec.json.encode(letter.payload).decode())


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
