"""Shows journals on a terminal: segments, records, what is wrong. Payloads are not shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.table import Table
from rich.text import Text

from actors.journals import JournalStatus, Verdict
from actors.status_words import first_line, size
from persist.export import ExportedSegment, ExportedTransaction
from persist.repair import Repair

_SEGMENTS: Final = ("segment", ">position", ">bytes", ">reserved", ">frames", ">epoch", "begun")
_PEERS: Final = ("to", ">sent", ">received", ">pending")


def status_parts(journal: JournalStatus) -> list[Table | Text]:
    count = len(journal.segments)
    head = (
        f"{journal.worker}: {_count(count, 'segment')}, {_count(journal.frames, 'frame')}, {size(journal.size_bytes)}"
    )
    if count:
        head += f", positions {journal.oldest_position} to {journal.end_position}"
    if journal.in_use_by is not None:
        head += f", in use by process {journal.in_use_by or 'unknown'}"
    shown: list[Table | Text] = [Text(first_line(head), style="bold"), Text(first_line(journal.directory), style="dim")]
    if count:
        rows = [
            (s.number, s.first_position, s.size_bytes, s.reserved_bytes, s.frames, s.epoch, s.begun or "-")
            for s in journal.segments
        ]
        shown.append(_table(_SEGMENTS, rows))
    if journal.peers:
        shown.append(_table(_PEERS, [(p.peer, p.assigned, p.received, p.pending_messages) for p in journal.peers]))
    problems = [f"segment {segment.number}: {segment.problem}" for segment in journal.segments if segment.problem]
    if journal.problem and not problems:
        problems.append(journal.problem)
    return [*shown, *(Text(f"! {_printable(problem)}", style="yellow") for problem in problems)]


def verdict_lines(verdict: Verdict) -> list[str]:
    what = f"{_count(verdict.segments, 'segment')}, {_count(verdict.frames, 'frame')}, {size(verdict.size_bytes)}"
    faults = len(verdict.faults) + len(verdict.gaps)
    lines = [f"{verdict.worker}: {'ok' if verdict.ok else _count(faults, 'fault')}, {what}"]
    if verdict.in_use_by is not None:
        lines[0] += f", in use by process {verdict.in_use_by or 'unknown'}: up to its end at this moment"
    if verdict.torn_tail:
        lines.append(f"  a crash left a torn tail, which the next start cuts off: {verdict.torn_tail}")
    return [_printable(line) for line in [*lines, *(f"  ! {fault}" for fault in [*verdict.faults, *verdict.gaps])]]


def repair_lines(found: Repair) -> list[str]:
    if found.action == "nothing":
        lines = [f"{found.directory}: nothing to repair"]
        if found.torn is not None:
            lines.append(f"  a crash left a torn tail, which the next start cuts off: {found.torn.reason}")
        lines += [f"  ! no repair brings back {loss}" for loss in found.losses]
    else:
        lines = [f"{found.directory}: repaired ({_ACTIONS[found.action]})"]
        lines += [f"  found     {fault}" for fault in found.damage]
        told = {str(fault) for fault in found.damage}
        lines += [f"  lost      {loss}" for loss in found.losses if loss not in told]
        lines += [f"  history   {part}" for part in found.history]
        lines.append(f"  original  {found.original}")
    return [_printable(line) for line in lines]


_ACTIONS: Final = {
    "numbers": "the numbers go on behind what other workers have",
    "front": "what nobody needs was set aside up to the damage",
    "forward": "all that is pending was taken over into the newest state",
    "back": "back to the last transaction before the damage",
}


def record_lines(record: ExportedSegment | ExportedTransaction) -> list[str]:
    if isinstance(record, ExportedSegment):
        begun = f", begun {record.begun}" if record.begun else ""
        lines = [
            f"segment {record.number} at {record.first_position}: epoch {record.epoch}, level {record.level}{begun}"
        ]
        lines += [f"    watermark  {peer} {last}" for peer, last in record.watermarks.items()]
        for peer, last in record.assigned.items():
            lines.append(f"    sent       {peer} {last}, acknowledged {record.acked.get(peer, 0)}")
        lines += [f"    state      {state.handler} {size(state.size_bytes)}" for state in record.states]
        tables: dict[str, int] = {}
        for key in record.keys:
            tables[key.handler] = tables.get(key.handler, 0) + 1
        lines += [f"    table      {handler} {_count(count, 'key')}" for handler, count in tables.items()]
        if record.dead_letters:
            lines.append(f"    dead       {_count(record.dead_letters, 'letter')}")
        return [_printable(line) for line in lines]
    lines = [f"{record.position}: {size(record.end_position - record.position)}, epoch {record.epoch}"]
    lines += [f"    consumed   {peer} up to {last}" for peer, last in record.consumed.items()]
    for run in record.sends:
        what = "lost, " if run.lost else ""
        to = ", ".join(
            f"{peer} {first}" + (f" to {first + run.count - 1}" if run.count > 1 else "")
            for peer, first in run.first.items()
        )
        lines.append(f"    sent       {run.source} {run.type} to {to} ({what}{size(run.size_bytes)})")
    lines += [f"    state      {state.handler} {size(state.size_bytes)}" for state in record.states]
    for key in record.keys:
        lines.append(f"    table      {key.handler} key {'removed' if key.removed else f'set, {size(key.size_bytes)}'}")
    for letter in record.dead_letters:
        lines.append(f"    dead       {letter.id} {letter.type} for {letter.handler}: {first_line(letter.reason)}")
    lines += [f"    removed    dead letter {letter}" for letter in record.dead_letters_removed]
    lines += [f"    attempts   {message} {_count(count, 'time')} in vain" for message, count in record.attempts.items()]
    return [_printable(line) for line in lines]


def _table(columns: Iterable[str], rows: Iterable[tuple[object, ...]]) -> Table:
    """Columns whose name begins with > hold numbers."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", header_style="bold")
    for row in rows:
        table.add_row(*(Text(_printable(str(value))) for value in row))
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
