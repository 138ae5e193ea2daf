"""The worker: one process, its handlers, one loop. `main` is what a new process runs.

The loop looks at the control lane first, then takes what arrived, handles and commits it, lets the sources send,
moves what is committed, and sleeps on its doorbell when there was nothing to do. Every wait is bounded.
"""

from __future__ import annotations

import errno
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import msgspec

from actors import log_worker
from actors.codec import RUN, RunCodec
from actors.codec_runs import inlet_codec, run_codec
from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from actors.errors import LayoutMismatch
from actors.exits import WorkerExit
from actors.fixed import is_fixed, layout_text
from actors.hosted import Context, Hosted
from actors.housekeeping import Housekeeping
from actors.inlets import Inlet
from actors.links import Arrival, Link
from actors.log_worker import Levels
from actors.newborn import arm_parent_death, inherited
from actors.opened import Opened
from actors.outgoing import Lane, Outgoing, Puts
from actors.pausing import Pausing
from actors.plan import GATEWAY, Plan, WorkerPlan
from actors.polling import Polling
from actors.reserving import Reserver
from actors.resume import RUNTIME, SESSION, Names
from actors.ring_sizes import largest_message
from actors.sources import Sources
from actors.spinning import Spinning
from actors.system_errors import HandlerFailed, MessageFailed, TopologyChanged
from actors.takeover import refuse_other_layouts
from actors.views import Views
from actors.wiring import Wires, attach_board, connect, open_claims
from bus import RING_IMPLEMENTATION, Block, Board, Control, Field, Progress, Text, WorkerState, max_record
from persist import (
    Journal,
    JournalFull,
    JournalLocked,
    JournalPoisoned,
    PersistError,
    Recovered,
    Retain,
    Snapshot,
    UnknownName,
)
from persist.files import Directory

NEVER = float("inf")  # monotonic seconds
IDLE_WAIT = 0.25  # seconds; a worker with nothing to do looks around this often
PAUSED_WAIT = 0.005  # while another worker of the component is over its limit, and tells nobody when it is not
RUN_BYTES = 1 << 15  # a run is cut there, so that its first message need not wait for its last


class Boot(msgspec.Struct, frozen=True):
    """What a worker process is started with. The plan travels by `shipping`: handlers may be defined anywhere."""

    plan: Plan
    worker: str
    run_id: str
    journal: str  # directory; unused at level `memory`
    session: str  # this start of the system; stays the same when a crashed system is resumed
    epoch: int  # at least this; the journal may know better
    suspect: tuple[int, int] | None  # (peer index, seq) in progress when the last incarnation died
    attempts: dict[tuple[int, int], int]  # at level `memory`, where no journal remembers them
    careful: bool = False  # the last incarnation died, and no message was in progress


def main(boot_bytes: bytes, levels: Levels | None = None, opened: Opened | None = None) -> None:
    """Runs the worker and ends the process with one of `WorkerExit`.

    With `levels`, the first descriptor that it inherited is its channel for log records. `opened` is what it has opened
    as the user that it no longer is; only below is anything of the user's imported.
    """
    arm_parent_death()
    if levels is not None:
        log_worker.install(inherited()[0], levels)
    boot: Boot = pickle.loads(boot_bytes)
    wires = Wires(held=opened.segments if opened is not None else {})
    board = attach_board(boot.run_id, wires)
    # failpoint: board-attached
    block = board.block(boot.worker)
    block.set_text(Text.LAST_WORDS, "")
    log_worker.count_dropped(partial(block.set, Field.LOG_DROPPED))
    try:
        Worker(boot, board, block, wires, opened.directory if opened is not None else Directory).run()
        code = WorkerExit.STOPPED
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: a worker does not end because a handler says so.
        code = exit_for(error, WorkerState(block.get(Field.STATE)))
        ours = code in (WorkerExit.JOURNAL_REFUSED, WorkerExit.JOURNAL_POISONED)
        words = f"{type(error).__name__}: {error}" if ours else "".join(traceback.format_exception(error))
        if isinstance(error, MessageFailed) and error.__cause__ is not None:
            words = "".join(traceback.format_exception(error.__cause__)) + str(error)  # the user's traceback alone
        block.set_text(Text.LAST_WORDS, words)
    log_worker.tell_dropped(log_worker.LAST_PATIENCE)
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is torn down: the segments belong to the supervisor, and the journal is whole after every append.
    os._exit(code)


def exit_for(error: BaseException, state: WorkerState) -> WorkerExit:
    """The exit code that tells the supervisor what to make of the death. Pure."""
    match error:
        case JournalPoisoned() | JournalLocked():
            return WorkerExit.JOURNAL_POISONED
        case JournalFull():
            return WorkerExit.NO_SPACE
        case PersistError() | TopologyChanged() | LayoutMismatch():
            return WorkerExit.JOURNAL_REFUSED  # trying again would find the same
        case MemoryError() | OSError(errno=errno.ENOMEM) if state is WorkerState.RECOVERING:
            return WorkerExit.START_FAILED  # its memory limit has no room for its rings
        case OSError() if state is WorkerState.RECOVERING:
            return WorkerExit.JOURNAL_POISONED
        case MessageFailed():
            return WorkerExit.MESSAGE_FAILED
        case HandlerFailed():
            return WorkerExit.HANDLER_FAILED
    return WorkerExit.START_FAILED if state is WorkerState.STARTING else WorkerExit.CRASHED


class Worker:
    """The process's part of a system: its endpoint, its handlers, its loop."""

    def __init__(
        self, boot: Boot, board: Board, block: Block, wires: Wires, files: Callable[[str], Directory] = Directory
    ) -> None:
        self._boot = boot
        self._files = files
        self._plan = boot.plan
        self._block = block
        self._cells = block.cells
        block.set(Field.PID, os.getpid())
        # failpoint: pid-told
        block.set(Field.STARTED_NS, time.monotonic_ns())
        block.set(Field.HEARTBEAT_NS, time.monotonic_ns())
        block.set(Field.RING_IMPLEMENTATION, RING_IMPLEMENTATION == "c")
        block.set(Field.STATE, WorkerState.RECOVERING)
        self._endpoint = make_endpoint(boot.plan, boot.worker, block)
        connect(self._endpoint, boot.plan, boot.worker, boot.run_id, board, wires)
        self._everyone = frozenset(self._endpoint.links)
        self._others = self._everyone - {self._endpoint.me}
        self._dispatcher, self._house, self._again = self._recover()

    def _recover(self) -> tuple[Dispatcher, Housekeeping, bool]:
        """Journal first, then links, then handlers. Nothing is published before the journal's tail is sound."""
        boot, plan, endpoint = self._boot, self._plan, self._endpoint
        suspect = None if boot.suspect is None else (plan.peers[boot.suspect[0]], boot.suspect[1])
        names = Names(plan, boot.worker)
        journal, recovered = open_journal(plan, names, Path(boot.journal), boot.epoch, suspect, endpoint, self._files)
        # failpoint: journal-opened
        endpoint.epoch = boot.epoch if journal is None else journal.epoch
        endpoint.claims = open_claims(plan, boot.worker, boot.run_id, boot.journal, endpoint.epoch)
        context = Context(Progress(self._cells, Field.BUSY_SEQ, Field.BUSY_SINCE_NS))
        busy = self._cells
        log_worker.handlers_run_here(
            lambda: (context.handler, context.message_id() if busy[Field.BUSY_PEER] else ""),
        )
        mine = plan.worker(boot.worker)
        views = Views()
        outgoing, inlets, hosted = assemble(plan, mine, endpoint, context, views)
        attempts = dict(boot.attempts)
        again = self._block.get(Field.SESSION) == session_number(boot.session)
        if recovered is not None and journal is not None:
            peers = {name: index for index, name in enumerate(plan.peers)}
            attempts = {(peers[peer], seq): n for (peer, seq), n in recovered.attempts.items() if peer in peers}
            again = recovered.tables.get(RUNTIME, {}).get(SESSION) == boot.session.encode()
            for one in hosted:
                one.restore(recovered.states.get(one.name), recovered.tables.get(one.name))
        dispatcher = Dispatcher(plan, endpoint, hosted, outgoing, inlets, context, attempts, boot.session, views)
        house = Housekeeping(endpoint, lambda: snapshot(names, endpoint, dispatcher, boot.session))
        self._block.set(Field.EPOCH, endpoint.epoch)
        # failpoint: epoch-told
        endpoint.resume(journal, recovered)
        return dispatcher, house, again

    def run(self) -> None:
        """Until the control lane, or a handler, says stop."""
        block, cells, endpoint, dispatcher = self._block, self._cells, self._endpoint, self._dispatcher
        bell = block.doorbell
        if not self._let_in():
            return
        # failpoint: gate-passed
        block.set(Field.STATE, WorkerState.STARTING)
        dispatcher.start(self._again)
        block.set(Field.SESSION, session_number(self._boot.session))
        # failpoint: session-told
        block.set(Field.STATE, WorkerState.RUNNING)
        # failpoint: worker-running
        control, running, leave = Field.CONTROL, Control.RUN, Control.LEAVE
        sources = Sources(dispatcher, self._plan.limits.max_attempts, careful=self._boot.careful)
        pausing = Pausing(endpoint)
        spinning = Spinning(len(os.sched_getaffinity(0)) > 1)
        polling = Polling(endpoint, dispatcher, spinning)
        moved = 0  # messages handled and sent, when it slept last
        seen = running
        arrivals: Sequence[Arrival] = ()
        ending = False  # a handler has asked for the end of this worker
        only_own = False  # nothing is taken from others any more: it only sees to what it has sent
        while True:
            if cells[control] != seen:
                seen = Control(cells[control])
                if seen is Control.STOP:
                    break
                if seen is not leave:
                    block.set(Field.STATE, WorkerState.DRAINING)
                    block.set(Field.CONTROL_SEEN, seen)
            if seen is leave and endpoint.can_leave:
                return  # another incarnation goes on, as after a kill, so this is no end for the handlers
            ending = dispatcher.leaving
            if not only_own and (ending or seen is leave):
                only_own, arrivals = True, [arrival for arrival in arrivals if arrival.link is endpoint.me]
                endpoint.put_back()  # what was taken from others, and is not consumed, is for the next incarnation
            now = time.monotonic_ns()
            cells[Field.HEARTBEAT_NS] = now
            worked = False
            blocked: Collection[Link] = dispatcher.blocked
            paused = pausing.look() and not only_own
            if paused:
                blocked = self._everyone
            elif only_own:
                blocked = {*blocked, *self._others}
                arrivals = arrivals or endpoint.take(blocked)
            elif not arrivals:
                arrivals = endpoint.take()
            elif blocked and all(arrival.link in blocked for arrival in arrivals):
                arrivals = [*arrivals, *endpoint.take(blocked)]  # the disk is full: some wait, the others go on
            if arrivals and not paused:
                count = cells[Field.COMMITS]
                arrivals = dispatcher.run(arrivals)
                worked = not blocked or cells[Field.COMMITS] != count or dispatcher.leaving != ending
                worked |= any(arrival.link not in blocked for arrival in arrivals)
            worked |= endpoint.progress()  # after what has arrived: whoever waits for an answer to it waits no longer
            if ending and not arrivals and endpoint.all_taken:
                break
            due = min(dispatcher.blocked.values()) if dispatcher.blocked and not paused else NEVER
            free = seen is running and not endpoint.paused and pausing.sources and not only_own
            if sources and free and not (arrivals and dispatcher.careful.is_next(arrivals)):
                due = min(due, sources.call(now / 1e9))
                worked |= due <= time.monotonic() or dispatcher.leaving
            self._house.keep()
            quiet = seen is running and not dispatcher.leaving and pausing.settled and not arrivals
            if worked and quiet and due > time.monotonic() and endpoint.idle(blocked):
                worked = False  # the turn that would find nothing to do need not be taken
            if not worked:
                log_worker.tell_dropped()
                if spinning.seconds and quiet and not blocked and not endpoint.paused:
                    came, arrivals = polling.poll(due)
                    if came:
                        moved = cells[Field.HANDLED] + cells[Field.SENT]
                        continue
                bell.arm()
                if endpoint.idle(blocked) and cells[control] == seen and pausing.heard:
                    longest = PAUSED_WAIT if endpoint.paused else IDLE_WAIT
                    slept = time.monotonic()
                    rung = bell.wait(min(longest, max(0.0, due - slept)))
                    moved, before = cells[Field.HANDLED] + cells[Field.SENT], moved
                    spinning.waited(time.monotonic() - slept, rung, moved - before)
                bell.disarm()
        block.set(Field.STATE, WorkerState.STOPPING)
        dispatcher.stop()
        if ending:
            block.set(Field.STATE, WorkerState.RUNNING)
            self._until_taken()
        self._house.seal()
        block.set(Field.CONTROL_SEEN, Control.STOP)
        block.set(Field.STATE, WorkerState.STOPPED)

    def _until_taken(self) -> None:
        """Wait for others to have consumed what `on_stop` has sent."""
        cells, endpoint, bell = self._cells, self._endpoint, self._block.doorbell
        while not endpoint.taken_by_others and cells[Field.CONTROL] not in {Control.STOP, Control.LEAVE}:
            cells[Field.HEARTBEAT_NS] = time.monotonic_ns()
            if not endpoint.progress():
                bell.arm()
                bell.wait(PAUSED_WAIT)
                bell.disarm()

    def _let_in(self) -> bool:
        """Wait for the turn of this worker in the order of start. False: it is to end instead."""
        block, cells = self._block, self._cells
        bell = block.doorbell
        block.set(Field.STATE, WorkerState.WAITING)
        # failpoint: gate-reached
        while not cells[Field.GATE]:
            if cells[Field.CONTROL] in {Control.STOP, Control.LEAVE}:
                return False
            cells[Field.HEARTBEAT_NS] = time.monotonic_ns()
            bell.arm()
            if not cells[Field.GATE] and cells[Field.CONTROL] not in {Control.STOP, Control.LEAVE}:
                bell.wait(IDLE_WAIT)
            bell.disarm()
        return True


def make_endpoint(plan: Plan, me: str, block: Block) -> Endpoint:
    return Endpoint(
        me,
        plan.peers,
        block,
        level=plan.level,
        outbox_limit=plan.limits.outbox_limit_bytes,
        claims_limit=plan.limits.claims_limit_bytes,
        memory_limit=plan.limits.outbox_limit_bytes if plan.level != "memory" else sys.maxsize,
    )


def open_journal(
    plan: Plan,
    names: Names,
    directory: Path,
    epoch: int,
    suspect: tuple[str, int] | None,
    endpoint: Endpoint,
    files: Callable[[str], Directory] = Directory,
) -> tuple[Journal | None, Recovered | None]:
    """The journal of one peer, recovered and with the first snapshot of this incarnation in it."""
    if plan.level == "memory":
        return None, None

    def first(recovered: Recovered | None, epoch: int) -> Snapshot:
        # An incarnation that died before it had told its epoch may have counted the suspect already.
        counted = recovered is not None and recovered.epoch > endpoint.block.get(Field.EPOCH)
        snapshot = names.first(recovered, None if counted else suspect, alone=not endpoint.block.get(Field.BUSY_MANY))
        endpoint.dead, endpoint.dead_peers = list(snapshot.dead), list(snapshot.peers)
        return snapshot

    retain = Retain(plan.limits.retain_bytes or None, plan.limits.retain_seconds or None)
    try:
        return Journal.open(directory, epoch=epoch, level=plan.level, retain=retain, make_snapshot=first, files=files)
    except UnknownName as unknown:
        refuse_other_layouts(plan, unknown.names)
        raise


def assemble(
    plan: Plan, worker: WorkerPlan, endpoint: Endpoint, context: Context, views: Views
) -> tuple[Outgoing, dict[int, Inlet], list[Hosted]]:
    """The handlers of a worker and their routing tables: lanes out, inlets in."""
    limits = plan.limits
    most = limits.max_message_bytes
    peers = {link.name: link.index for link in endpoint.links}
    rings = {peers[edge.target]: edge.ring_bytes for edge in plan.outbound(worker.name)}
    in_ring = {peer: size for peer, ring in rings.items() if (size := largest_message(ring)) < most}
    outgoing = Outgoing(most, min(RUN_BYTES, most), plan.largest_claim, in_ring)
    outgoing.lay = endpoint.claims.lay
    codecs: dict[type, RunCodec] = {}
    reserver = Reserver(outgoing, views, endpoint.reserve, {to: max_record(rings[to]) - RUN.size for to in rings})

    def codec(message_type: type) -> RunCodec:
        return codecs.setdefault(message_type, run_codec(plan, message_type))

    def reading(message_type: type) -> RunCodec:
        made = inlet_codec(plan, message_type, views)
        made.redeem = endpoint.claims.redeem
        return made

    check_layouts(plan)
    hosted: dict[str, Hosted] = {}
    for index, handler in enumerate(worker.handlers):
        puts: Puts = {}
        fixed: dict[type, Lane] = {}
        for route in plan.routes_from(handler.name):
            assert route.message is not None
            targets = plan.target_peers(route)
            remote = tuple(sorted(peers[name] for name in targets if name != worker.name))
            lane = Lane(route, codec(route.message), remote, worker.name in targets, outgoing, puts)
            if is_fixed(route.message):
                fixed[route.message] = lane
        send, reserve = outgoing.sender(handler.name, puts), reserver.of(handler.name, fixed)
        hosted[handler.name] = Hosted(index, handler, send, reserve, context)
    inlets: dict[int, Inlet] = {}
    for route in plan.routes:
        here = [hosted[name] for name in route.targets if name in hosted]
        if here and route.message is not None:
            calls = [(one, one.plan.description.handles[route.message]) for one in here]
            if is_fixed(route.message) and route.source != GATEWAY:
                endpoint.rows.add(route.id)
                endpoint.links[peers[plan.source_peer(route)]].lends = True
            inlets[route.id] = Inlet(reading(route.message), route.type_name, calls)
    return outgoing, inlets, list(hosted.values())


def check_layouts(plan: Plan) -> None:
    """LayoutMismatch if a class, imported here, has another layout than it had where the system was started."""
    for route in plan.routes:
        if route.message is not None and (here := layout_text(route.message)) != route.layout:
            where = "in the topology that this system was started with"
            raise LayoutMismatch(route.type_name, here, route.layout, where)


def snapshot(names: Names, endpoint: Endpoint, dispatcher: Dispatcher | None, session: str) -> Snapshot:
    """Everything the journal holds now, in one record."""
    links = endpoint.links
    whole = {one.index: one.whole() for one in dispatcher.hosted} if dispatcher is not None else {}
    tables = {index: items for index, (_, items) in whole.items()}
    if dispatcher is not None:
        tables[names.handlers.index(RUNTIME)] = {SESSION: session.encode()}
    return names.later(
        watermarks=[link.inbound.watermark for link in links],
        assigned=[link.outbound.assigned for link in links],
        acked=[link.outbound.acked for link in links],
        states={index: state for index, (state, _) in whole.items() if state is not None},
        tables=tables,
        attempts=dispatcher.attempts if dispatcher is not None else {},
        dead=endpoint.dead,
    )


def session_number(session: str) -> int:
    """The session as a cell holds it; never 0."""
    return int(session, 16)
