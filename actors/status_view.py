"""Shows a status on a terminal: tables, words, and a redraw each second.

Texts from elsewhere are shown as they are, never taken for markup, and never carry control characters to the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actors.dead_letters import DeadLetters
from actors.plan import GATEWAY
from actors.status_types import Condition, EdgeStatus, Health, Reading, SystemList, SystemStatus, WorkerStatus
from actors.status_words import duration, first_line, rate, size

PIPE_WIDTH: Final = 120  # columns where the output goes to no terminal
_CONDITION_STYLES: Final = {
    Condition.RUNNING: "bold green",
    Condition.STOPPED: "bold",
    Condition.STARTING: "bold yellow",
}
_HEALTH_STYLES: Final = {Health.OK: "green", Health.DOWN: "yellow"}
_PROCESS_COLUMNS: Final = (
    *("worker", ">pid", "state", ">epoch", ">restarts", ">up", ">heartbeat"),
    *(">CPU %", ">RSS", ">threads", ">files"),
)
_MESSAGE_COLUMNS: Final = (
    *("worker", ">handled", ">sent", ">handled/s", ">sent/s", "in progress", ">since"),
    *(">outbox", ">dead", ">journal", ">commit"),
)
_NONE: Final = "-"


def make_console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def show(reading: Reading, console: Console) -> None:
    for part in parts(reading):
        # Sentences and paths are left whole for whoever reads the output next; only tables are fitted.
        console.print(part, soft_wrap=isinstance(part, Text))


def watch(readings: Iterator[Reading], console: Console) -> Reading:
    """Redraws until Ctrl-C; returns what was shown last. A system that ends meanwhile is shown as ended."""
    reading = next(readings)
    try:
        with Live(Group(*parts(reading)), console=console, auto_refresh=False) as live:
            for reading in readings:
                live.update(Group(*parts(reading)), refresh=True)
    except KeyboardInterrupt:
        pass  # the way to end it
    return reading


def parts(reading: Reading) -> list[RenderableType]:
    if isinstance(reading, SystemList):
        return _list_parts(reading)
    shown: list[RenderableType] = [_headline(reading)]
    shown += [Text(line, style="dim") for line in _facts(reading)]
    if reading.workers:
        workers = [*reading.workers, *([reading.gateway] if reading.gateway is not None else [])]
        shown += [Text(), _process_table(workers), Text(), _message_table(workers, reading)]
    used = [edge for edge in reading.edges if GATEWAY not in (edge.source, edge.target) or edge.committed]
    if used:
        shown += [Text(), _edge_table(used)]
    if reading.notes:
        shown += [Text(), *(Text(f"! {note}", style="yellow") for note in reading.notes)]
    return shown


def letter_parts(letters: DeadLetters) -> list[RenderableType]:
    if not letters.dead_letters:
        none = "no dead letters"
        if letters.level == "memory":
            none = "level memory keeps no dead letters on disk; `ringleader logs` has what became one, and why"
        return [Text(f"{letters.name}: {none}")]
    table = _table("", "id", "worker", "type", ">size", "from", "to", ">attempts", "time", "reason")
    shown: list[RenderableType] = [table]
    for letter in letters.dead_letters:
        table.add_row(
            *_texts(letter.id, letter.worker, letter.type, size(letter.size_bytes), letter.source, letter.handler),
            *_texts(letter.attempts, letter.time, first_line(letter.reason)),
        )
        if letter.traceback:
            lines = "\n".join(f"    {_printable(line)}" for line in letter.traceback.splitlines())
            shown.append(Text(f"{letter.id} on {letter.worker}:\n{lines}"))
    return shown


# ---------------------------------------------------------------------------------------------------- one system
def _headline(status: SystemStatus) -> Text:
    if status.condition is Condition.UNKNOWN:
        return Text(status.summary, style="bold red")
    alright = status.summary in {"running", "starting", "draining", "stopping"}
    style = _CONDITION_STYLES.get(status.condition, "bold red")
    if status.running and not alright:
        style = "bold yellow"
    return Text.assemble((status.name, "bold"), ": ", (status.summary, style))


def _facts(status: SystemStatus) -> list[str]:
    lines = []
    if status.supervisor is not None and status.running:
        supervisor = status.supervisor
        facts = [f"level {status.level}", f"supervisor {supervisor.pid}"]
        process = supervisor.process
        if process is not None:
            facts += [process.state, f"CPU {process.cpu_percent:.1f} %", f"RSS {size(process.rss_bytes)}"]
            facts += [f"{_number(process.threads)} threads", f"{_number(process.open_files)} open files"]
        if supervisor.heartbeat_age_seconds is not None:
            facts.append(f"heartbeat {duration(supervisor.heartbeat_age_seconds)} ago")
        if status.started_unix_seconds:
            facts.append(f"up {duration(max(0.0, status.read_at_unix_seconds - status.started_unix_seconds))}")
        rings = {worker.ring_implementation for worker in status.workers if worker.pid}
        facts.append(f"rings in {' and '.join(sorted('C' if one == 'c' else 'Python' for one in rings)) or _NONE}")
        lines.append(", ".join(facts))
    others = [f"{worker.name} as {worker.user}" for worker in status.workers if worker.user]
    if others:
        lines.append(f"runs {', '.join(others)}")
    if status.condition in {Condition.STOPPED, Condition.DEAD} and status.journal_bytes_on_disk is not None:
        lines.append(f"level {status.level}, journals {size(status.journal_bytes_on_disk)}")
    if status.directory and status.condition is not Condition.UNKNOWN:
        lines.append(status.directory)
    return lines


def _process_table(workers: list[WorkerStatus]) -> Table:
    columns = (
        "worker",
        ">pid",
        "state",
        ">epoch",
        ">restarts",
        ">up",
        ">heartbeat",
        ">CPU %",
        ">RSS",
        ">threads",
        ">files",
    )
    table = _table("", *columns)
    for worker in workers:
        process = worker.process
        figures = [_NONE] * 4
        if process is not None:
            figures = [f"{process.cpu_percent:.1f}", size(process.rss_bytes)]
            figures += [_number(process.threads), _number(process.open_files)]
        table.add_row(
            *_texts(worker.name, _number(worker.pid)),
            _state(worker),
            *_texts(worker.epoch, worker.restarts, _since(worker.uptime_seconds), _since(worker.heartbeat_age_seconds)),
            *_texts(*figures),
        )
    return table


def _message_table(workers: list[WorkerStatus], status: SystemStatus) -> Table:
    over = duration(status.rates_over_seconds)
    since = f"the last {over}" if status.rates_since == "reading" else f"{over} since the start"
    columns = (
        ">handled",
        ">sent",
        ">handled/s",
        ">sent/s",
        "in progress",
        ">since",
        ">outbox",
        ">dead",
        ">journal",
        ">commit",
    )
    table = _table(f"messages; rates and CPU over {since}", "worker", *columns)
    for worker in workers:
        outside, journal, busy = worker.name == GATEWAY, worker.journal, worker.in_progress
        figures = [_NONE, _NONE]
        if journal is not None:
            figures = [size(journal.bytes), _since(journal.last_commit_age_seconds)]
        table.add_row(
            *_texts(worker.name, _NONE if outside else worker.handled_messages, worker.sent_messages),
            *_texts(_NONE if outside else rate(worker.handled_per_second), rate(worker.sent_per_second)),
            *_texts(f"{busy.id} {busy.handler}" if busy else _NONE, duration(busy.since_seconds) if busy else _NONE),
            *_texts(size(worker.outbox_bytes), worker.dead_letters, *figures),
        )
    return table


def _edge_table(edges: list[EdgeStatus]) -> Table:
    table = _table(
        "edges, those of the gateway if they were ever used",
        "edge",
        ">backlog",
        ">bytes",
        ">in ring",
        ">of",
        ">fill %",
        ">outbox",
        ">oldest",
    )
    for edge in edges:
        table.add_row(
            *_texts(f"{edge.source} -> {edge.target}", edge.backlog_messages, size(edge.backlog_bytes)),
            *_texts(size(edge.ring_used_bytes), size(edge.ring_capacity_bytes), f"{edge.ring_fill_percent:.0f}"),
            *_texts(size(edge.outbox_bytes), _since(edge.oldest_age_seconds)),
        )
    return table


def _state(worker: WorkerStatus) -> Text:
    words = "paused" if worker.paused else worker.state
    if worker.health not in {Health.OK, Health.DOWN}:
        words = f"{words}, {worker.health.value.upper()}"
    return Text(words, style=_HEALTH_STYLES.get(worker.health, "bold red"))


# ---------------------------------------------------------------------------------------------------- all systems
def _list_parts(listed: SystemList) -> list[RenderableType]:
    if not listed.systems:
        return [Text(f"no systems in {listed.home}")]
    table = _table(f"systems in {listed.home}", "system", "condition", "level", ">workers", ">supervisor", "what")
    for status in listed.systems:
        style = _CONDITION_STYLES.get(status.condition, "bold red")
        table.add_row(
            Text(status.name),
            Text(status.condition.value, style=style),
            *_texts(status.level or _NONE, len(status.workers) if status.running else _NONE),
            *_texts(status.supervisor.pid if status.running and status.supervisor else _NONE, status.summary),
        )
    return [table]


# ---------------------------------------------------------------------------------------------------- pieces
def _table(title: str, *columns: str) -> Table:
    """Columns whose name begins with > hold numbers."""
    table = Table(title=title or None, title_justify="left", title_style="italic", box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", header_style="bold")
    return table


def _texts(*values: object) -> list[Text]:
    return [Text(_printable(str(value))) for value in values]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(value: int | None) -> str:
    return _NONE if value is None else str(value)


def _since(seconds: float | None) -> str:
    return _NONE if seconds is None else duration(seconds)
