"""What the status of a system is: plain frozen values, the same for programs, for JSON and for the tables. Pure.

The names of the fields are the keys of `ringleader status --json` and stay what they are; new ones may be added. A unit
is in the name: `_seconds`, `_bytes`, `_percent`, `_per_second`, `_messages`; `_unix_seconds` is wall clock. null means:
not known, or there is no such thing (a worker between two incarnations has no process, say).

Different figures are read one after the other, while the system works: sums of them need not fit to the message.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec
from msgspec.structs import replace

HUNG_AFTER: Final = 5.0  # seconds without a heartbeat; a worker beats with each batch, and 4 times a second when idle


class Condition(Enum):
    RUNNING = "running"  # its supervisor is alive (and maybe stopped by SIGSTOP)
    STARTING = "starting"  # alive, but its shared memory is not there: it comes up, is just ending, or could not start
    STOPPED = "stopped"  # it ended by itself or on request, and said how
    DEAD = "dead"  # its supervisor is gone without a word
    UNKNOWN = "unknown"
    NOT_YOURS = "not-yours"  # it belongs to another user
    UNREADABLE = "unreadable"  # it is there, but damaged, or others could have written to it

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self]


EXIT_CODES: Final = {
    Condition.RUNNING: 0,
    Condition.UNREADABLE: 1,
    Condition.STARTING: 3,
    Condition.STOPPED: 3,
    Condition.DEAD: 3,
    Condition.UNKNOWN: 4,
    Condition.NOT_YOURS: 5,
}


class Health(Enum):
    OK = "ok"
    STOPPED = "stopped"  # by a signal (SIGSTOP): it does nothing until SIGCONT
    HUNG = "hung"  # alive, but without a heartbeat for too long
    GONE = "gone"  # there was a process, and its end has not been dealt with
    DOWN = "down"  # between two incarnations, or ended for good


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating system says of one process. null: it does not tell us."""

    state: str  # running, sleeping, stopped, disk-sleep, ...
    cpu_percent: float  # of one processor, over `rates_over_seconds` for a second reading, since its start otherwise
    cpu_seconds: float
    rss_bytes: int | None
    threads: int | None
    open_files: int | None
    age_seconds: float


class SupervisorStatus(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    health: Health
    heartbeat_age_seconds: float | None
    process: ProcessStatus | None


class InProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The message in progress, by name only. `handler` is the one that was entered last."""

    id: str  # peer/seq
    peer: str
    seq: int
    handler: str
    since_seconds: float


class RetryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The message that failed and waits for its next attempt; where several do, the one that matters most."""

    id: str  # peer/seq
    peer: str
    seq: int
    attempts: int  # that failed
    next_in_seconds: float
    ordered: bool  # nothing else is handled meanwhile; false: only what came from the same peer waits


class JournalStatus(msgspec.Struct, frozen=True, kw_only=True):
    level: str
    bytes: int | None
    segments: int | None
    last_commit_age_seconds: float | None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Counters count since the start of the system, over all incarnations of the worker."""

    name: str
    handlers: tuple[str, ...]
    pid: int | None
    user: str = ""  # the one that it runs as, where that is another one than the supervisor's
    group: str  # the groups it is supervised in, the outermost first, with slashes; empty: the root only
    state: str  # new, starting, recovering, waiting, running, draining, stopping, stopped, dead, gave_up
    paused: bool  # it handles nothing until it is resumed
    health: Health
    epoch: int
    restarts: int
    deaths: int  # ends that were neither clean nor asked for
    last_death: str  # the reason in one line; empty if it never died
    last_death_age_seconds: float | None
    uptime_seconds: float | None  # of this incarnation
    heartbeat_age_seconds: float | None
    process: ProcessStatus | None
    handled_messages: int
    sent_messages: int
    handled_per_second: float
    sent_per_second: float
    in_progress: InProgress | None
    retry: RetryStatus | None
    commits: int
    rollbacks: int
    duplicate_messages: int
    gaps: int
    dead_letters: int
    outbox_bytes: int
    outbox_over_limit: bool
    multiplying: bool
    disk_full: bool
    carried_over_messages: int  # from the worker to itself
    journal: JournalStatus | None  # null at level memory
    ring_implementation: str  # c or python


class EdgeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One edge. Its backlog is what its sender has committed and its receiver has not durably consumed."""

    source: str
    target: str
    backlog_messages: int
    backlog_bytes: int  # outbox_bytes + ring_used_bytes
    outbox_bytes: int  # committed, not yet in the ring
    ring_used_bytes: int
    ring_capacity_bytes: int
    ring_fill_percent: float
    oldest_age_seconds: float | None  # since the oldest message of the backlog was committed
    committed: int  # sequence numbers
    published: int
    acknowledged: int
    waiting_for_room: bool
    resends_asked: int


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    kind: str  # gaps, multiplying, disk-full, over-limit
    worker: str
    text: str


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    name: str  # of the status, as in `ExitStatus`
    reason: str
    at_unix_seconds: float
    last_deaths: dict[str, str]  # worker -> reason, for those that ever died
    deaths: dict[str, int] = {}  # worker -> how often
    gave_up: tuple[str, ...] = ()  # workers that were given up
    pending_messages: dict[str, int] = {}  # "sender -> receiver": committed, and not consumed before the end
    dead_letters: dict[str, int] = {}  # worker -> how many it had at the end


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one system. What is not known in its condition is null or empty."""

    name: str
    directory: str
    condition: Condition
    summary: str  # the condition in words
    notes: tuple[str, ...] = ()  # what else a person should know, most urgent first
    level: str = ""
    run_id: str = ""
    state: str = ""  # of a running system: starting, running, draining, stopping
    started_unix_seconds: float | None = None
    read_at_unix_seconds: float = 0.0
    read_at_monotonic_seconds: float = 0.0
    rates_since: str = "start"  # of the system; or "reading": the one before this
    rates_over_seconds: float = 0.0
    dead_letters: int = 0
    supervisor: SupervisorStatus | None = None
    workers: tuple[WorkerStatus, ...] = ()
    gateway: WorkerStatus | None = None  # the world outside, hosted by the supervisor's process
    edges: tuple[EdgeStatus, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    ended: Ended | None = None
    leftovers: tuple[str, ...] = ()  # shared-memory segments of a dead system; its next start removes them
    journal_bytes_on_disk: int | None = None  # of a system that does not run
    close_matches: tuple[str, ...] = ()  # of an unknown name

    @property
    def running(self) -> bool:
        return self.condition is Condition.RUNNING

    def worker(self, name: str) -> WorkerStatus:
        return next(worker for worker in self.workers if worker.name == name)

    def edge(self, source: str, target: str) -> EdgeStatus:
        return next(edge for edge in self.edges if (edge.source, edge.target) == (source, target))


class SystemList(msgspec.Struct, frozen=True, kw_only=True):
    """All systems of a home directory."""

    home: str
    systems: tuple[SystemStatus, ...]


Reading = SystemStatus | SystemList


def to_json(status: Reading, *, indent: int = 2) -> str:
    return msgspec.json.format(msgspec.json.encode(status), indent=indent).decode()


def health(state: str, *, pid: int, process: ProcessStatus | None, silent: float | None, hung_after: float) -> Health:
    """How a worker, or the supervisor, is. `silent`: seconds since its last heartbeat, None if it never beat."""
    if state in {"new", "dead", "gave_up", "stopped"}:
        return Health.DOWN
    if not pid:
        return Health.DOWN  # launched, and it has not said yet who it is; or just dealt with
    if process is None:
        return Health.GONE
    if process.state in {"stopped", "tracing-stop"}:
        return Health.STOPPED
    return Health.HUNG if silent is not None and silent > hung_after else Health.OK


def with_rates(previous: SystemStatus, current: SystemStatus) -> SystemStatus:
    """The current reading with rates and CPU figures over the time since the previous one, not since the start."""
    elapsed = current.read_at_monotonic_seconds - previous.read_at_monotonic_seconds
    if elapsed <= 0 or not current.run_id or previous.run_id != current.run_id:
        return current
    before = {worker.name: worker for worker in _all_workers(previous)}
    supervisor = current.supervisor
    if supervisor is not None and previous.supervisor is not None:
        process = _cpu_between(previous.supervisor.process, supervisor.process, elapsed)
        supervisor = replace(supervisor, process=process)
    return replace(
        current,
        supervisor=supervisor,
        workers=tuple(_rates_between(before.get(worker.name), worker, elapsed) for worker in current.workers),
        gateway=current.gateway and _rates_between(before.get(current.gateway.name), current.gateway, elapsed),
        rates_since="reading",
        rates_over_seconds=elapsed,
    )


def _all_workers(status: SystemStatus) -> tuple[WorkerStatus, ...]:
    return status.workers if status.gateway is None else (*status.workers, status.gateway)


def _rates_between(before: WorkerStatus | None, now: WorkerStatus, elapsed: float) -> WorkerStatus:
    if before is None:
        return now
    process = _cpu_between(before.process, now.process, elapsed) if before.pid == now.pid else now.process
    return replace(
        now,
        process=process,
        handled_per_second=max(0, now.handled_messages - before.handled_messages) / elapsed,
        sent_per_second=max(0, now.sent_messages - before.sent_messages) / elapsed,
    )


def _cpu_between(before: ProcessStatus | None, now: ProcessStatus | None, elapsed: float) -> ProcessStatus | None:
    if before is None or now is None:
        return now
    return replace(now, cpu_percent=max(0.0, now.cpu_seconds - before.cpu_seconds) / elapsed * 100)
