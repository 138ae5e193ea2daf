"""The status in words: what a person should know, in sentences. Pure."""

from __future__ import annotations

from actors.plan import GATEWAY
from actors.status_types import Alarm, Condition, Ended, Health, SystemStatus, WorkerStatus

SHOWN = 200  # characters of a text that a handler may have had a part in


def first_line(text: str) -> str:
    """The first line, fit for a terminal."""
    return _fit(next((line.strip() for line in text.splitlines() if line.strip()), ""))


def death(text: str) -> str:
    """How a worker died, in one line: the first says by what; the last, of its last words, what it complained of."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _fit(": ".join(dict.fromkeys([*lines[:1], *lines[-1:]])))


def _fit(line: str) -> str:
    """Printable, and of bounded length: it comes from elsewhere."""
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def duration(seconds: float) -> str:
    """`0.3 s`, `12 s`, `3 min 12 s`, `5 h 3 min`, `2 d 5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int | None) -> str:
    """`17 B`, `1.5 KiB`, `24 MiB`."""
    if count is None:
        return "?"
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def rate(per_second: float) -> str:
    if per_second < 10:
        return f"{per_second:.1f}"
    return f"{per_second:.0f}" if per_second < 100_000 else f"{per_second / 1000:.0f}k"


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'s'[: count != 1]}"


def alarms_of(workers: tuple[WorkerStatus, ...]) -> tuple[Alarm, ...]:
    """What must not happen (gaps), or will not get better by itself (multiplying, disk-full), or slows sources
    (over-limit)."""
    found = []
    for worker in workers:
        name = worker.name
        who = "the gateway" if name == GATEWAY else f"worker {name}"
        if worker.gaps:
            text = f"{who} saw {plural(worker.gaps, 'gap')} in the messages it got and asked for them again"
            found.append(Alarm(kind="gaps", worker=name, text=text))
        if worker.multiplying:
            text = f"{who} is in a cycle of routes that multiplies its own messages: its backlog grows for ever"
            found.append(Alarm(kind="multiplying", worker=name, text=text))
        if worker.disk_full:
            text = f"the disk is full: {who} sends nothing more, until there is room"
            found.append(Alarm(kind="disk-full", worker=name, text=text))
        if worker.outbox_over_limit:
            text = f"{who} is over its outbox limit ({size(worker.outbox_bytes)} wait): its sources are paused"
            found.append(Alarm(kind="over-limit", worker=name, text=text))
    return tuple(found)


def notes_of(status: SystemStatus) -> tuple[str, ...]:
    """Most urgent first: the supervisor, alarms, workers that do nothing, then what has happened."""
    notes = []
    supervisor = status.supervisor
    if status.condition is Condition.RUNNING and supervisor is not None:
        who = f"the supervisor (process {supervisor.pid})"
        if supervisor.health is Health.STOPPED:
            notes.append(
                f"{who} is stopped (SIGSTOP): the workers go on, but nobody restarts or stops them until "
                f"`kill -CONT {supervisor.pid}`"
            )
        elif supervisor.health is Health.HUNG:
            notes.append(f"{who} hangs: no heartbeat for {duration(supervisor.heartbeat_age_seconds or 0)}")
    notes.extend(f"ALARM: {alarm.text}" for alarm in status.alarms)
    notes.extend(note for worker in status.workers if (note := worker_note(worker, status.condition)))
    gateway = status.gateway
    if gateway is not None and gateway.health is Health.HUNG and (not supervisor or supervisor.health is Health.OK):
        silent = duration(gateway.heartbeat_age_seconds or 0)
        notes.append(f"the gateway hangs: no heartbeat for {silent}; it neither sends nor answers")
    for worker in status.workers:
        if worker.last_death:
            ago = "" if worker.last_death_age_seconds is None else f" {duration(worker.last_death_age_seconds)} ago"
            restarts = f"{plural(worker.restarts, 'restart')}; " if worker.restarts else ""
            notes.append(f"worker {worker.name}: {restarts}last death{ago}: {worker.last_death}")
    if status.dead_letters:
        notes.append(f"{plural(status.dead_letters, 'dead letter')}: `ringleader dead-letters list {status.name}`")
    return tuple(notes)


def ended_notes(ended: Ended) -> tuple[str, ...]:
    """Who died of what and how often, who was given up, and what waits for the next start."""
    notes = []
    for worker, reason in ended.last_deaths.items():
        given_up = ", given up" if worker in ended.gave_up else ""
        times = plural(ended.deaths.get(worker, 1), "death")
        notes.append(f"worker {worker}: {times}{given_up}; last death: {reason}")
    down = [worker for worker in ended.gave_up if worker not in ended.last_deaths]
    if down:
        notes.append(f"given up together with others: {', '.join(down)}")
    if ended.pending_messages:
        waiting = ", ".join(f"{count} on {edge}" for edge, count in ended.pending_messages.items())
        notes.append(f"pending at the end: {waiting}")
    if ended.dead_letters:
        told = plural(sum(ended.dead_letters.values()), "dead letter")
        notes.append(f"{told} at the end, on {', '.join(ended.dead_letters)}: see `ringleader dead-letters list`")
    return tuple(notes)


def worker_note(worker: WorkerStatus, condition: Condition) -> str:
    """What is wrong with a worker now; empty if nothing is."""
    who = f"worker {worker.name} (process {worker.pid})"
    if condition is Condition.DEAD:
        return f"{who} is still alive" if worker.process is not None else ""
    busy = ""
    if worker.in_progress is not None:
        since = duration(worker.in_progress.since_seconds)
        busy = f"; in progress for {since}: message {worker.in_progress.id} in handler {worker.in_progress.handler}"
    if worker.health is Health.STOPPED:
        return f"{who} is stopped (SIGSTOP): it handles nothing until `kill -CONT {worker.pid}`{busy}"
    if worker.health is Health.HUNG:
        where = busy or f"; it is {worker.state} and handles no message"
        return f"{who} hangs, or takes long: no heartbeat for {duration(worker.heartbeat_age_seconds or 0)}{where}"
    if worker.health is Health.GONE:
        return f"{who} is gone, and its supervisor has not dealt with it yet{busy}"
    if worker.paused:
        return f"worker {worker.name} is paused: it handles nothing until `ringleader resume`"
    if worker.state == "gave_up":
        return f"worker {worker.name} was given up: {worker.last_death}"
    retry = worker.retry
    if retry is not None:
        failed = f"(failed {plural(retry.attempts, 'time')})"
        meanwhile = "nothing else is handled meanwhile" if retry.ordered else f"what comes from {retry.peer} waits"
        return (
            f"worker {worker.name} waits {duration(retry.next_in_seconds)} for the next attempt at message {retry.id} "
            f"{failed}; {meanwhile}"
        )
    return ""


def running_summary(status: SystemStatus) -> str:
    """`running`, and what is not as it should be, counted."""
    state = status.state if status.state in {"starting", "draining", "stopping"} else "running"
    counts = {Health.STOPPED: "stopped", Health.HUNG: "hung", Health.GONE: "gone"}
    parts = [state]
    if status.supervisor is not None and status.supervisor.health is not Health.OK:
        parts.append(f"supervisor {status.supervisor.health.value}")
    for kind, word in counts.items():
        number = sum(worker.health is kind for worker in status.workers)
        if number:
            parts.append(f"{plural(number, 'worker')} {word}")
    dead = sum(worker.state in {"dead", "gave_up"} for worker in status.workers)
    if dead:
        parts.append(f"{plural(dead, 'worker')} dead")
    if status.alarms:
        parts.append(plural(len(status.alarms), "alarm"))
    return ", ".join(parts)


def dead_summary(pid: int, leftovers: tuple[str, ...], *, level: str, rebooted: bool) -> str:
    why = "the machine has been restarted since" if rebooted else "killed, most likely: it left no record of an end"
    left = "nothing is left over"
    if leftovers:
        left = f"{plural(len(leftovers), 'shared-memory segment')} left over, which the next start removes"
    pending = (
        "what was pending waits in the journals" if level != "memory" else "what was pending is lost (level memory)"
    )
    return f"dead: its supervisor, process {pid}, is gone ({why}); {left}; {pending}"
