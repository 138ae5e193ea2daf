"""Logging in a worker: plain `logging`, whose records go to the supervisor's process.

The root logger has one handler, which sends each record as one packet. What holds:
- A worker never waits for a supervisor that is slow, stopped or gone: in all at most PATIENCE seconds of each second
  (records below WARNING: half of that), then records are dropped. How many is told as soon as there is room, and
  stands in a cell until then: of a worker that ends before there was any, the supervisor tells it.
- A worker that dies leaves whole records: what was sent is in the socket, and is read after its death.
- It may be used from any thread, in signal handlers, and in processes forked by user code. No lock of it is shared with
  another process. A record that cannot be made (wrong arguments, a `repr` that fails) is reported as `logging` does,
  by `logging.raiseExceptions`, and harms nothing else.
- The levels are those of the program when the worker was started, so that what nobody wants costs a comparison.
- What a record says of the handler and the message at work is true for the thread that runs handlers; records of other
  threads do not name one.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from actors.log_record import Packet, Sent, encode, plain

PATIENCE = 0.05  # seconds of waiting for room within each period of one second
PERIOD = 1.0
LAST_PATIENCE = 0.5  # seconds at the end of a worker, once, to tell what was dropped
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_BARE = frozenset(vars(logging.makeLogRecord({})))  # what every record has
STANDARD = _BARE | {"message", "asctime", "taskName"}  # and what formatters add

AtWork = Callable[[], tuple[str, str]]  # handler, message id


class Levels(msgspec.Struct, frozen=True):
    """What the program wants to hear: levels by logger, the root's among them as the empty name."""

    levels: tuple[tuple[str, int], ...] = (("", logging.WARNING),)
    disabled: tuple[str, ...] = ()
    disable: int = 0  # of `logging.disable`

    @classmethod
    def of_program(cls) -> Levels:
        """Those of this process, now."""
        root = logging.getLogger()
        known = [(name, one) for name, one in list(root.manager.loggerDict.items()) if isinstance(one, logging.Logger)]
        levels = tuple((name, one.level) for name, one in known if one.level != logging.NOTSET)
        disabled = tuple(name for name, one in known if one.disabled)
        return cls((("", root.level), *levels), disabled, int(root.manager.disable))

    def apply(self) -> None:
        for name, level in self.levels:
            logging.getLogger(name).setLevel(level)
        for name in self.disabled:
            logging.getLogger(name).disabled = True
        logging.disable(self.disable)


class Patience:
    """How long a record may wait for room: so much in each period, and no more than half of it for minor ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = float("-inf")
        self._used = 0.0

    def left(self, level: int) -> float:
        now = self._clock()
        if now - self._begun >= PERIOD:
            self._begun, self._used = now, 0.0
        return (PATIENCE if level >= logging.WARNING else PATIENCE / 2) - self._used

    def use(self, seconds: float) -> None:
        self._used += seconds


class SupervisorHandler(logging.Handler):
    """Sends records to the supervisor's process, by a socket that keeps them apart."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self.at_work: AtWork = lambda: ("", "")
        self._dropped = 0
        self._counted: Callable[[int], None] | None = None
        self._channel = channel
        self._patience = Patience()
        self._thread = threading.get_ident()
        self._format = logging.Formatter()

    @property
    def dropped(self) -> int:
        """Records since the last packet that went out."""
        return self._dropped

    @dropped.setter
    def dropped(self, count: int) -> None:
        self._dropped = count
        if self._counted is not None:
            self._counted(count)

    def counts(self, counted: Callable[[int], None]) -> None:
        """Whenever it changes, and now."""
        self._counted = counted
        counted(self._dropped)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self._sent(record), record.levelno)
        except Exception:  # RecursionError too: nothing of the user's may fail because it was logged
            self.handleError(record)

    def tell(self, wait: float = 0.0) -> None:
        """Say how many records were dropped, if there is room, or will be within so many seconds."""
        self.acquire()
        try:
            if wait:
                self._room(wait)
            self._send(None, logging.DEBUG)
        finally:
            self.release()

    def _sent(self, record: logging.LogRecord) -> Sent:
        handler, message_id = self.at_work() if record.thread == self._thread else ("", "")
        trace = record.exc_text or ""
        if record.exc_info and not trace:
            trace = self._format.formatException(record.exc_info)
        extra: dict[str, Any] = {}
        if len(record.__dict__) > len(_BARE):
            extra = {key: plain(value) for key, value in record.__dict__.items() if key not in STANDARD}
        return Sent(
            record.name,
            record.levelno,
            record.levelname,
            record.getMessage(),
            record.created,
            record.process or 0,
            record.thread or 0,
            record.threadName or "",
            record.pathname,
            record.lineno,
            record.funcName or "",
            handler,
            message_id,
            trace,
            record.stack_info or "",
            getattr(record, "taskName", None) or "",
            extra,
        )

    def _send(self, sent: Sent | None, level: int) -> None:
        dropped = self.dropped
        data = encode(Packet(dropped, sent))
        while True:
            try:
                self._channel.send(data, _FLAGS)
            except (BlockingIOError, InterruptedError):
                if sent is not None and self._waits(level):
                    continue
            except OSError:
                pass  # nobody reads any more, or no memory for it
            else:
                if dropped:
                    self.dropped -= dropped
                return
            if sent is not None:
                self.dropped += 1
            return

    def _waits(self, level: int) -> bool:
        """Wait for room; whether it is worth another try."""
        left = self._patience.left(level)
        if left <= 0:
            return False
        begun = time.monotonic()
        found = self._room(left)
        self._patience.use(time.monotonic() - begun + 1e-4)
        return found

    def _room(self, seconds: float) -> bool:
        room = select.poll()
        room.register(self._channel.fileno(), select.POLLOUT)
        return bool(room.poll(seconds * 1000))

    def forked(self) -> None:
        """A process forked by user code goes on with the socket, and tells of its own drops only."""
        self._counted = None
        self.dropped = 0
        self._thread = 0


_installed: SupervisorHandler | None = None


def install(descriptor: int, levels: Levels) -> None:
    """To be called in a worker, before anything of the user's is imported there."""
    global _installed
    os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=descriptor)
    _installed = SupervisorHandler(channel)
    levels.apply()
    logging.getLogger().addHandler(_installed)


def handlers_run_here(at_work: AtWork) -> None:
    """In this thread. `at_work` tells which handler is at work, and the id of the message that it handles."""
    if _installed is not None:
        _installed.at_work = at_work


def count_dropped(counted: Callable[[int], None]) -> None:
    """Called with how many records were dropped and not told yet, whenever that changes: what is known of it when this
    process is gone."""
    if _installed is not None:
        _installed.counts(counted)


def tell_dropped(wait: float = 0.0) -> None:
    """When there is nothing else to do, and at the end, when it is worth some waiting."""
    if _installed is not None and _installed.dropped:
        _installed.tell(wait)


def _after_fork_in_child() -> None:
    if _installed is not None:
        _installed.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
