"""The collector: one thread in the supervisor's process that takes the workers' log records.

Each record goes to the log file, and into the logging of the program as if it had been written there: the program's
loggers, levels, filters and handlers apply. What holds:
- Every incarnation of a worker has a channel of its own. What it wrote before its death, however it died, is read.
- Nothing that a worker sends, and nothing that a handler of the program raises, ends the thread. A handler that is slow
  makes workers drop records (see `log_worker`), and nothing else. How many of them a worker could not tell any more
  before its end is told for it (`lost`).
- Who reports an event of the supervisor (`note`) waits neither for the thread nor for the disk.
- `close` is called when the workers are dead: it takes what is left in the channels, and is bounded in time.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actors.events import Event, Observer
from actors.log_file import LogFile
from actors.log_format import line_of_event, record_of
from actors.log_record import PACKET, RUNTIME, Sent, decode, encode_line, harmless, line_of

BUFFER = 1 << 20  # bytes asked for per channel; the system may grant less
TURN = 64  # packets of one channel before the others have theirs
REST = 10_000  # packets of one channel whose worker is dead; more than fit into a socket
NOTES = 10_000  # events that wait to be written
TICK = 1.0  # seconds; also how often it is told what a worker had to drop
CLOSING = 5.0  # seconds that the end may take
# One record is one datagram. Where there is no kind of socket that has an end-of-file too, the next launch tells it.
KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
_SPACE = PACKET + 1024


@dataclass(eq=False, slots=True)
class Channel:
    worker: str
    socket: socket.socket
    over: bool = False  # the worker is dead: what there is now is all
    dropped: int = 0  # records that the worker had to drop, and that nothing was said of yet
    bad: int = 0  # packets that were none, the same
    tell_at: float = 0.0


class Collector:
    """For one system."""

    def __init__(self, system: str, file: LogFile, clock: Callable[[], float] = time.monotonic) -> None:
        self._system = system
        self._file = file
        self._clock = clock
        self._present: dict[str, Channel] = {}  # of the incarnations that were started last
        self._new: deque[Channel] = deque()
        self._notes: deque[bytes] = deque(maxlen=NOTES)
        self._lost: deque[tuple[str, int]] = deque()
        self._channels: set[Channel] = set()  # of the thread's own
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._until = float("inf")
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="ringleader-logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ from outside
    @contextmanager
    def channel(self, worker: str) -> Iterator[int]:
        """The descriptor for a new incarnation of the worker; this process gives it up when the other one has it.

        Called when the incarnation before is proven dead.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
        with theirs:
            ours.setblocking(False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            before = self._present.get(worker)
            if before is not None:
                before.over = True
            channel = self._present[worker] = Channel(worker, ours)
            self._new.append(channel)
            try:
                yield theirs.fileno()
            finally:
                self._rouse()

    def observer(self, then: Observer | None = None) -> Observer:
        """Keeps events, and passes them on."""

        def observe(event: Event) -> None:
            self.note(event)
            if then is not None:
                then(event)

        return observe

    def note(self, event: Event) -> None:
        """Keep an event of the supervisor in the file."""
        self._notes.append(encode_line(line_of_event(event)))
        self._rouse()

    def lost(self, worker: str, dropped: int) -> None:
        """So many records of a worker that is dead were dropped, which it has not told itself."""
        self._lost.append((worker, dropped))
        self._rouse()

    def close(self) -> None:
        """Take what is left, and end. Idempotent. A handler of the program that never returns is left to itself."""
        self._until = min(self._until, self._clock() + CLOSING)
        self._closing.set()
        if self._thread.ident is None:
            self._give_back()
            return
        self._rouse()
        self._thread.join(CLOSING + 1.0)

    def _rouse(self) -> None:
        try:
            self._wake.send(b"\0")
        except OSError:
            pass  # full, so it will wake anyway; or closed

    # ------------------------------------------------------------------------------------------------ the thread
    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._turn(TICK)
            for channel in [*self._channels, *self._new]:
                channel.over = True
            self._turn(0.0)
        except BaseException:
            logging.getLogger(RUNTIME).exception("records of the workers of %r are no longer taken", self._system)
        finally:
            self._give_back()

    def _turn(self, wait: float) -> None:
        """Wait for something, and deal with a bounded part of it."""
        ready = {key.fileobj for key, _ in self._selector.select(wait)}
        while self._new:
            channel = self._new.popleft()
            self._channels.add(channel)
            self._selector.register(channel.socket, selectors.EVENT_READ)
        if self._woken in ready:
            self._woken.recv(4096)
        for channel in list(self._channels):
            over = channel.over  # before the look
            alive = not (over or channel.socket in ready) or self._take(channel, REST if over else TURN)
            if over or not alive:
                self._selector.unregister(channel.socket)
                channel.socket.close()
                self._channels.discard(channel)
            if channel.dropped or channel.bad:
                self._tell(channel, at_once=over or not alive)
        while self._lost:
            worker, dropped = self._lost.popleft()
            self._hand_over(worker, _own(_dropped(dropped)))
        while self._notes:
            self._keep(self._notes.popleft())

    def _take(self, channel: Channel, most: int) -> bool:
        """Up to so many packets. False at the end of all."""
        for _ in range(most):
            if self._clock() > self._until:
                return False
            try:
                data = channel.socket.recv(_SPACE)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            try:
                packet = decode(data)
            except ValueError:
                channel.bad += 1
                continue
            channel.dropped += max(0, packet.dropped)
            if packet.record is not None:
                self._hand_over(channel.worker, packet.record)
        return True

    def _tell(self, channel: Channel, at_once: bool) -> None:
        now = self._clock()
        if now < channel.tell_at and not at_once:
            return
        channel.tell_at = now + TICK
        parts = []
        if channel.dropped:
            parts.append(_dropped(channel.dropped))
        if channel.bad:
            parts.append(f"{channel.bad} packets were no log records")
        channel.dropped = channel.bad = 0
        self._hand_over(channel.worker, _own("; ".join(parts)))

    def _hand_over(self, worker: str, sent: Sent) -> None:
        """To the file and to the program. Where the program has configured no logging, as `logging.lastResort` does."""
        self._keep(encode_line(line_of(sent, worker)))
        try:
            logger = logging.getLogger(sent.name)
            if not logger.isEnabledFor(sent.level):
                return
            record = record_of(sent, self._system, worker)
            last = logging.lastResort
            if logger.hasHandlers():
                logger.handle(record)
            elif last is not None and sent.level >= last.level:
                who = f"{worker}/{sent.handler}" if sent.handler else worker
                # No line but the first looks like one of its own, whatever is in a message or a traceback.
                record.msg = _indented(f"{who}: {sent.message}")
                record.exc_text = record.exc_text and f"    {_indented(record.exc_text)}"
                record.stack_info = record.stack_info and f"    {_indented(record.stack_info)}"
                last.handle(record)
        except BaseException:  # a filter or a handler of the program; SystemExit ends no process from here either
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc(file=sys.stderr)

    def _keep(self, line: bytes) -> None:
        lost = self._file.lost
        self._file.write(line)
        if lost and self._file.lost == lost:
            self._file.lost = 0
            text = f"{lost} records could not be written to this file"
            self._file.write(encode_line(line_of(_own(text), "")))

    def _give_back(self) -> None:
        for channel in [*self._channels, *self._new]:
            channel.socket.close()
        self._selector.close()
        self._woken.close()
        self._wake.close()
        self._file.close()


def _indented(text: str) -> str:
    """Harmless, and indented from the second line on, as `text_of` does it."""
    return harmless(text).rstrip("\n").replace("\n", "\n    ")


def _dropped(count: int) -> str:
    return f"{count} records were dropped: they came faster than they could be taken"


def _own(text: str) -> Sent:
    """A warning of this module's own."""
    return Sent(
        RUNTIME, logging.WARNING, "WARNING", text, time.time(), os.getpid(), threading.get_ident(), "", __file__, 0, ""
    )
