"""What shared memory tells of a system: the board and the headers of the rings, as status records.

Only loads, each of one whole number, and nothing is kept mapped. How a process is comes in as a function, so that the
operating system is asked in one place only.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Iterable
from contextlib import closing

from msgspec.structs import replace

from actors.identity import EdgeIdentity, Identity
from actors.plan import GATEWAY
from actors.status_types import (
    EdgeStatus,
    InProgress,
    JournalStatus,
    ProcessStatus,
    RetryStatus,
    SupervisorStatus,
    SystemStatus,
    WorkerStatus,
    health,
)
from actors.status_words import alarms_of, death, notes_of
from bus import (
    Block,
    Board,
    BoardCell,
    Cell,
    Field,
    LayoutError,
    Pause,
    Segment,
    SegmentMissing,
    Text,
    WorkerState,
    check_ring,
    pause_asked,
)
from bus.layout import HEADER_SIZE

ReadProcess = Callable[[int, float | None], ProcessStatus | None]  # pid, seconds for which it is known to have lived


def with_board(
    status: SystemStatus, identity: Identity, hung_after: float, read_process: ReadProcess
) -> SystemStatus | None:
    """The status with everything that shared memory tells; None if there is none."""
    try:
        segment = Segment.attach(identity.board)
    except (SegmentMissing, OSError):
        return None
    problems: list[str] = []
    with closing(segment):
        try:
            with closing(Board(segment.buf)) as board:
                reader = _Reader(identity, board, hung_after, read_process)
                supervisor = reader.supervisor()
                workers = tuple(reader.worker(name) for name in identity.workers if name in board.names)
                gateway = reader.worker(GATEWAY) if GATEWAY in board.names else None
                state = _state(board.get(BoardCell.SYSTEM_STATE))
        except LayoutError as error:
            return replace(status, notes=(f"the board cannot be read: {error}",))
    edges = []
    for edge in identity.edges:
        try:
            edges.append(_edge(edge))
        except (SegmentMissing, LayoutError, OSError) as error:
            problems.append(f"the ring from {edge.source} to {edge.target} cannot be read: {error}")
    elapsed = max(0.0, status.read_at_unix_seconds - (status.started_unix_seconds or status.read_at_unix_seconds))
    status = replace(
        status,
        state=state,
        supervisor=supervisor,
        workers=workers,
        gateway=gateway,
        edges=tuple(edges),
        alarms=alarms_of(workers if gateway is None else (*workers, gateway)),
        dead_letters=sum(worker.dead_letters for worker in workers),
        rates_over_seconds=elapsed,
    )
    return replace(status, notes=(*notes_of(status), *problems))


def system_state(identity: Identity) -> str:
    """What a system is doing, by its board; empty if there is none."""
    try:
        with closing(Segment.attach(identity.board)) as segment, closing(Board(segment.buf)) as board:
            return _state(board.get(BoardCell.SYSTEM_STATE))
    except (SegmentMissing, LayoutError, OSError):
        return ""


class _Reader:
    def __init__(self, identity: Identity, board: Board, hung_after: float, read_process: ReadProcess) -> None:
        self._identity = identity
        self._read_process = read_process
        self._board = board
        self._hung_after = hung_after
        self._since_start = max(1e-3, time.time() - identity.started_ns / 1e9)

    def supervisor(self) -> SupervisorStatus:
        pid = self._identity.pid
        process = self._read_process(pid, None) if self._identity.alive() else None
        silent = _age(self._board.get(BoardCell.SUPERVISOR_HEARTBEAT_NS))
        how = health("running", pid=pid, process=process, silent=silent, hung_after=self._hung_after)
        return SupervisorStatus(pid=pid, health=how, heartbeat_age_seconds=silent, process=process)

    def worker(self, name: str) -> WorkerStatus:
        block = self._board.block(name)
        state = _state(block.get(Field.STATE))
        pid, uptime = block.get(Field.PID), _age(block.get(Field.STARTED_NS))
        process = self._read_process(pid, uptime) if pid else None
        silent = _least(_age(block.get(Field.HEARTBEAT_NS)), uptime)
        handled, sent = block.get(Field.HANDLED), block.get(Field.SENT)
        how = health(state, pid=pid, process=process, silent=silent, hung_after=self._hung_after)
        return WorkerStatus(
            name=name,
            handlers=self._identity.handlers.get(name, ()),
            pid=pid or None,
            user=self._user(name),
            group=self._identity.groups.get(name, ""),
            state=state,
            paused=pause_asked(block.get(Field.PAUSED))[1] is not Pause.RUN,
            health=how,
            epoch=block.get(Field.EPOCH),
            restarts=block.get(Field.RESTARTS),
            deaths=block.get(Field.DEATHS),
            last_death=death(block.text(Text.LAST_DEATH)),
            last_death_age_seconds=_age(block.get(Field.LAST_DEATH_NS)),
            uptime_seconds=uptime if pid else None,
            heartbeat_age_seconds=silent if pid else None,
            process=process if name != GATEWAY else None,
            handled_messages=handled,
            sent_messages=sent,
            handled_per_second=handled / self._since_start,
            sent_per_second=sent / self._since_start,
            in_progress=self._in_progress(name, block),
            retry=self._retry(block),
            commits=block.get(Field.COMMITS),
            rollbacks=block.get(Field.ROLLBACKS),
            duplicate_messages=block.get(Field.DUPLICATES),
            gaps=block.get(Field.GAPS),
            dead_letters=block.get(Field.DEAD_LETTERS),
            outbox_bytes=block.get(Field.OUTBOX_BYTES),
            outbox_over_limit=bool(block.get(Field.OVER_LIMIT)),
            multiplying=bool(block.get(Field.MULTIPLYING)),
            disk_full=bool(block.get(Field.DISK_FULL)),
            carried_over_messages=max(0, block.get(Field.CARRIED) - block.get(Field.CARRIED_ACK)),
            journal=self._journal(block),
            ring_implementation="c" if block.get(Field.RING_IMPLEMENTATION) else "python",
        )

    def _user(self, name: str) -> str:
        users = self._identity.users.get(name)
        if not users:
            return ""
        try:
            return pwd.getpwuid(users[-1]).pw_name
        except KeyError:
            return str(users[-1])

    def _in_progress(self, name: str, block: Block) -> InProgress | None:
        for _ in range(10):  # until it does not change underneath
            seen = peer, seq = block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)
            since, handler = _age(block.get(Field.BUSY_SINCE_NS)), block.get(Field.BUSY_HANDLER)
            if seen == (block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)):
                break
        if not peer:
            return None
        sender = _nth(self._identity.peers, peer)
        entered = _nth(self._identity.handlers.get(name, ()), handler)
        return InProgress(id=f"{sender}/{seq}", peer=sender, seq=seq, handler=entered, since_seconds=since or 0.0)

    def _retry(self, block: Block) -> RetryStatus | None:
        for _ in range(10):  # until it does not change underneath
            seen = peer, seq = block.get(Field.RETRY_PEER), block.get(Field.RETRY_SEQ)
            attempts, due_ns = block.get(Field.RETRY_ATTEMPTS), block.get(Field.RETRY_AT_NS)
            ordered = bool(block.get(Field.RETRY_ORDERED))
            if seen == (block.get(Field.RETRY_PEER), block.get(Field.RETRY_SEQ)):
                break
        if not peer:
            return None
        sender = _nth(self._identity.peers, peer)
        remaining = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
        return RetryStatus(
            id=f"{sender}/{seq}", peer=sender, seq=seq, attempts=attempts, next_in_seconds=remaining, ordered=ordered
        )

    def _journal(self, block: Block) -> JournalStatus | None:
        level = self._identity.level
        if level == "memory":
            return None
        return JournalStatus(
            level=level,
            bytes=block.get(Field.JOURNAL_BYTES) or None,
            segments=block.get(Field.JOURNAL_SEGMENTS) or None,
            last_commit_age_seconds=_age(block.get(Field.LAST_COMMIT_NS)),
        )


def _edge(edge: EdgeIdentity) -> EdgeStatus:
    with closing(Segment.attach(edge.ring)) as segment:
        capacity = check_ring(segment.buf).capacity
        with segment.buf[:HEADER_SIZE] as header, header.cast("Q") as cells:
            # In this order: what is consumed in between is still counted, and nothing is counted below zero.
            acknowledged, head = cells[Cell.ACK], cells[Cell.HEAD]
            committed, tail = cells[Cell.COMMITTED], cells[Cell.TAIL]
            published, outbox = cells[Cell.PUBLISHED], cells[Cell.OUTBOX_BYTES]
            oldest, starved, asked = cells[Cell.OLDEST_NS], cells[Cell.STARVED], cells[Cell.RESEND_ASKED]
    used = min(max(0, tail - head), capacity)
    backlog = max(0, committed - acknowledged)
    return EdgeStatus(
        source=edge.source,
        target=edge.target,
        backlog_messages=backlog,
        backlog_bytes=outbox + used,
        outbox_bytes=outbox,
        ring_used_bytes=used,
        ring_capacity_bytes=capacity,
        ring_fill_percent=used / capacity * 100,
        # The sender takes the time back only when it looks, which it may not be doing.
        oldest_age_seconds=_age(oldest) if backlog else None,
        committed=committed,
        published=published,
        acknowledged=acknowledged,
        waiting_for_room=bool(starved),
        resends_asked=asked,
    )


def _state(number: int) -> str:
    try:
        return WorkerState(number).name.lower()
    except ValueError:
        return f"unknown ({number})"


def _age(at_ns: int) -> float | None:
    """Seconds since a monotonic time in shared memory; None for none."""
    return max(0.0, (time.monotonic_ns() - at_ns) / 1e9) if at_ns else None


def _least(*ages: float | None) -> float | None:
    return min((age for age in ages if age is not None), default=None)


def _nth(names: Iterable[str], number: int) -> str:
    """The name for an index + 1, as cells hold it; a question mark if there is none."""
    return dict(enumerate(names, 1)).get(number, "?")
