"""The gateway: how the world outside sends to handlers, and gets answers. It is a peer like any worker.

It lives in the supervisor's process with a journal of its own, so a message that `send` returned for is durable at
the topology's level and takes effect exactly once, also when everything is killed right after. Any thread may call
it; one thread of its own takes the answers and publishes what found no room at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple

import msgspec

from actors.codec import FLAG_ASK, FLAG_CLAIM, FLAG_COMMAND, FLAG_ERROR, RunCodec
from actors.codec_runs import run_codec
from actors.endpoint import Endpoint
from actors.errors import MessageTooLarge, RingleaderError
from actors.housekeeping import Housekeeping
from actors.links import Arrival
from actors.outgoing import EncodedRun
from actors.plan import GATEWAY, Plan
from actors.replies import read_answer, read_failure, read_outcome, request_of, type_key
from actors.system_errors import AskTimeout, CommandTimeout, SendTimeout, SystemClosed, UnknownHandler
from actors.tickets import Large
from bus import Field
from persist import JournalFull, Outbound

IDLE_WAIT = 0.25  # seconds; every wait is bounded
ROOM_WAIT = 0.05

Waits = tuple[Future[Any], type | None]  # who waits for an answer: of this type, if that is given


class Way(NamedTuple):
    """From outside to a handler, for messages of one class: looked up once, for a message alone finds no cache warm."""

    route: int
    peer: int
    codec: RunCodec
    in_ring: int  # bytes of the largest message that goes by the ring
    place: tuple[str, str]  # the receiver and what it is sent, for an error


class Gateway:
    """External sender over an endpoint, whose journal is looked after here."""

    def __init__(self, plan: Plan, endpoint: Endpoint, house: Housekeeping, resolve: Callable[[str], type]) -> None:
        self._plan = plan
        self._endpoint = endpoint
        self._house = house
        self._resolve = resolve
        self._codecs: dict[type, RunCodec] = {}
        self._ways: dict[tuple[str, type], Way] = {}
        self._asked: dict[tuple[int, int], Waits] = {}
        self._peers = {link.name: link.index for link in endpoint.links}
        self._largest = plan.largest_claim
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._open = True
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ringleader-gateway", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, handler: str, message: object, timeout: float | None) -> None:
        """Returns once the message is durable. Raises SendTimeout when its receiver takes no more until then, and
        JournalFull when the disk does not."""
        self._send(handler, message, timeout, 0)

    def ask(self, handler: str, message: object, timeout: float, reply: type | None) -> Any:
        """The handler's reply. AskTimeout: none yet, the message may still take effect; AskFailed: it was given up."""
        deadline = time.monotonic() + timeout
        future: Future[Any] = Future()
        key = self._send(handler, message, timeout, FLAG_ASK, (future, reply))
        try:
            answer: object = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise AskTimeout(handler, type(message).__name__, timeout) from None
        finally:
            with self._lock:
                self._asked.pop(key, None)
        return answer

    def command(self, worker: str, body: bytes, timeout: float) -> list[str]:
        """A command to a worker, durable and exactly once as any message; returns what has become of it. It queues
        behind what was sent to the worker before. CommandTimeout: nothing has yet, but it will.
        MessageTooLarge: no ring would carry it."""
        deadline = time.monotonic() + timeout
        route, peer, place = self._plan.reply_route(worker).id, self._peers[worker], (worker, "a command")
        future: Future[Any] = Future()
        key = self._put(route, peer, body, place, timeout, FLAG_COMMAND, (future, None))
        try:
            outcome: list[str] = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise CommandTimeout(worker, timeout) from None
        finally:
            with self._lock:
                self._asked.pop(key, None)
        return outcome

    def refuse(self) -> None:
        """From now on nothing is taken from outside: the system drains."""
        with self._room:
            self._open = False
            self._room.notify_all()

    def close(self) -> None:
        """Ends the thread; who still waits for an answer is told."""
        self.refuse()
        self._closing = True
        self._endpoint.block.doorbell.ring()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            for future, _ in self._asked.values():
                _settle(future, SystemClosed(self._plan.name))
            if self._failure is None:
                self._house.seal()

    # ------------------------------------------------------------------------------------------------ sending
    def _send(
        self, handler: str, message: object, timeout: float | None, flags: int, waits: Waits | None = None
    ) -> tuple[int, int]:
        kind = type(message)
        way = self._ways.get((handler, kind)) or self._look_up(handler, kind)
        encoded = way.codec.encode_alone(message, way.in_ring, self._largest)
        body = encoded.copied() if isinstance(encoded, Large) else way.codec.join((encoded,))
        return self._put(way.route, way.peer, body, way.place, timeout, flags, waits)

    def _put(
        self,
        route: int,
        peer: int,
        body: bytes | Large,
        place: tuple[str, str],
        timeout: float | None,
        flags: int,
        waits: Waits | None = None,
    ) -> tuple[int, int]:
        """Commits it. `place`: the receiver and what it is sent, for an error; `waits`: for the answer."""
        outbound = self._endpoint.links[peer].outbound
        deadline = None if timeout is None else time.monotonic() + timeout
        if isinstance(body, Large):
            flags |= FLAG_CLAIM
        with self._lock:  # of `_room`
            self._check_open()
            while self._is_full(outbound):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise SendTimeout(*place, timeout or 0.0, outbound.backlog_bytes + self._endpoint.claims.held)
                self._room.wait(ROOM_WAIT if left is None else min(left, ROOM_WAIT))
                self._check_open()
            try:
                # failpoint: gateway-before-commit
                self._endpoint.commit([EncodedRun(route, 1, flags, (peer,), body)])
            except (JournalFull, MessageTooLarge):  # refused, and all is as before
                raise
            except BaseException as failure:
                # A Ctrl-C, say, in the middle of it: what is in the journal and what is known here may differ from now
                # on, so nothing more is taken. The next start goes by the journal.
                self._failure = failure
                raise
            # failpoint: gateway-committed
            key = peer, outbound.assigned
            if waits is not None:
                self._asked[key] = waits
            return key

    def _is_full(self, outbound: Outbound) -> bool:
        limits = self._plan.limits
        return (
            outbound.backlog_bytes > limits.outbox_limit_bytes or self._endpoint.claims.held > limits.claims_limit_bytes
        )

    def _look_up(self, handler: str, kind: type) -> Way:
        """For the next ones, too. UnknownHandler if there is none."""
        plan = self._plan
        route = plan.entry(handler, kind)
        if route is None:
            known = tuple(one.name for one in plan.handlers)
            takes: tuple[str, ...] = ()
            if handler in known:
                takes = tuple(one.__name__ for one in plan.handler(handler).description.handles)
            raise UnknownHandler(handler, kind.__name__, takes, known)
        codec = self._codecs.get(kind)
        if codec is None:
            codec = self._codecs[kind] = run_codec(plan, kind)
        worker = plan.worker_of(handler)
        in_ring = plan.in_ring(GATEWAY, (worker,))
        way = self._ways[handler, kind] = Way(route.id, self._peers[worker], codec, in_ring, (handler, kind.__name__))
        return way

    def _check_open(self) -> None:
        if self._failure is not None:
            raise SystemClosed(self._plan.name) from self._failure
        if not self._open:
            raise SystemClosed(self._plan.name)

    # ------------------------------------------------------------------------------------------------ the thread
    def _run(self) -> None:
        endpoint, bell = self._endpoint, self._endpoint.block.doorbell
        try:
            while not self._closing:
                bell.arm()
                endpoint.cells[Field.HEARTBEAT_NS] = time.monotonic_ns()
                with self._room:
                    moved = self._step()
                if not moved and not self._closing and not self._endpoint.claims_are_free():
                    bell.wait(IDLE_WAIT)
                bell.disarm()
        except Exception as failure:  # a poisoned journal, a corrupt ring: nobody may be left waiting
            with self._room:
                self._failure = failure
                for future, _ in self._asked.values():
                    _settle(future, failure)
                self._room.notify_all()

    def _step(self) -> bool:
        endpoint = self._endpoint
        arrivals = endpoint.take()
        # failpoint: gateway-taken
        answers = [arrival for arrival in arrivals if not self._admitted_before(arrival)]
        try:
            endpoint.commit()
        except JournalFull:
            endpoint.put_back()  # not even consuming finds room
            arrivals = answers = []
        else:
            endpoint.release()
        # failpoint: gateway-consumed
        for arrival in answers:
            self._answer(arrival)
        moved = endpoint.progress()
        self._house.keep()
        self._room.notify_all()
        return bool(arrivals) or moved

    def _admitted_before(self, arrival: Arrival) -> bool:
        if self._endpoint.admit(arrival) == arrival.length:
            return True
        arrival.link.inbound.stage(arrival.first + arrival.length - 1)
        return False

    def _answer(self, arrival: Arrival) -> None:
        body = bytes(arrival.body)
        waiting = self._asked.get((arrival.link.index, request_of(body)))
        if waiting is None:
            return  # nobody waits for it any more
        future, expected = waiting

        # failpoint: gateway-answer
        def resolve(key: str) -> type:
            return expected if expected is not None and type_key(expected) == key else self._resolve(key)

        try:
            if arrival.flags & FLAG_COMMAND:
                _settle(future, read_outcome(body))
                return
            _settle(
                future, read_failure(body) if arrival.flags & FLAG_ERROR else read_answer(body, resolve, self._plan)
            )
        except (msgspec.MsgspecError, RingleaderError) as error:
            _settle(future, error)


def _settle(future: Future[Any], outcome: object) -> None:
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # answered before; a duplicate answer changes nothing
