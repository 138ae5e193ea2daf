"""What is asked of a supervisor from outside: from any thread, and from signal handlers.

Nothing here waits or locks: a signal handler may interrupt whoever holds a lock.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from enum import Enum

from actors.pause_request import PauseRequest
from actors.system_errors import UnknownWorker
from bus import Pause


class Request(Enum):
    DRAIN = "drain"
    STOP = "stop"
    STOP_NOW = "stop now"
    RESTART = "restart"  # these concern one worker
    PAUSE = "pause"
    DRAIN_WORKER = "drain worker"
    RESUME = "resume"


class Requests:
    """The queue, and a socket that becomes readable when something was put into it."""

    def __init__(self, workers: tuple[str, ...]) -> None:
        self._workers = workers
        self._queue: deque[tuple[Request, str, str, PauseRequest | None]] = deque()
        self._pauses: Counter[str] = Counter()  # requests taken, for each worker
        self._ends: tuple[socket.socket, socket.socket] | None = None

    # ------------------------------------------------------------------------------------------------ for everyone
    def request_stop(self, drain: bool = True, reason: str = "requested") -> None:
        """End the system: after everything was handled, or (`drain=False`) without waiting for that."""
        self._put(Request.DRAIN if drain else Request.STOP, "", reason)

    def request_stop_now(self, reason: str = "requested") -> None:
        """End the system at once; cuts a drain or a stop short that is under way."""
        self._put(Request.STOP_NOW, "", reason)

    def request_restart(self, worker: str, reason: str = "requested") -> None:
        """End this worker between two transactions and start it anew; also if it had ended or was given up.

        Counts against no limit. Raises UnknownWorker, as those below.
        """
        self._put(Request.RESTART, worker, reason)

    def request_pause(self, worker: str) -> PauseRequest:
        """Have this worker handle nothing, and call no source, until it is resumed."""
        return self._put_pause(Request.PAUSE, worker, Pause.PAUSE)

    def request_drain_worker(self, worker: str) -> PauseRequest:
        """The same, once it has handled what was sent to it until now."""
        return self._put_pause(Request.DRAIN_WORKER, worker, Pause.DRAIN)

    def request_resume(self, worker: str) -> PauseRequest:
        return self._put_pause(Request.RESUME, worker, Pause.RUN)

    @property
    def idle(self) -> bool:
        """Every request was taken."""
        return not self._queue

    def _put_pause(self, request: Request, worker: str, pause: Pause) -> PauseRequest:
        made = PauseRequest(pause)
        self._put(request, worker, "", made)
        return made

    def _put(self, request: Request, worker: str, reason: str, made: PauseRequest | None = None) -> None:
        if request in _OF_A_WORKER and worker not in self._workers:
            raise UnknownWorker(worker, self._workers)
        self._queue.append((request, worker, reason, made))
        ends = self._ends
        if ends is not None:
            try:
                ends[0].send(b"\0")
            except OSError:
                pass  # full, so it will wake anyway; or closed, so the system has ended

    # ----------------------------------------------------------------------------------------- for the supervisor
    def listen(self) -> socket.socket:
        """The end to wait on. What was asked for before is in the queue already."""
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        return self._ends[1]

    def hear(self) -> None:
        """Before looking into the queue: what comes from now on wakes again."""
        if self._ends is not None:
            try:
                self._ends[1].recv(4096)
            except BlockingIOError:
                pass  # it was something else that woke

    def deafen(self) -> None:
        for end in self._ends or ():
            end.close()

    def take(self) -> tuple[Request, str, str]:
        request, worker, reason, made = self._queue.popleft()
        if made is not None:
            # Counted where they are taken, which one thread does: the order is that in which they are passed on.
            self._pauses[worker] += 1
            made.number = self._pauses[worker]
        return request, worker, reason


_OF_A_WORKER = {Request.RESTART, Request.PAUSE, Request.DRAIN_WORKER, Request.RESUME}
