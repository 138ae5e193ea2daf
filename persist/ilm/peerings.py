"""All peers of one ILM, and the tasks that serve them. What fails in any of them ends all, and is kept for the callers.

Contract
- `meet` knows a peer from then on; its tasks run until `close`, or until it is forgotten.
- The first failure is kept in `failure` and `refusal`, told to `report`, and wakes everyone who waits.
- What is staged by deliveries, of all peers, is one commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from persist.ilm import identity
from persist.ilm.backend import Backend, Change, PeerState, Run
from persist.ilm.commits import Commits
from persist.ilm.delivery import Deliver, Delivery, Effects, Patience, Staged
from persist.ilm.errors import ILMBroken, ILMClosed, ILMError, SendToSelf, StorageFull, TransportFailed
from persist.ilm.flight import Limits
from persist.ilm.forgetting import Forgetting
from persist.ilm.identity import USER
from persist.ilm.message import MakeMessage, PeerId, check_peer
from persist.ilm.options import Settings
from persist.ilm.outboxes import Outbox, as_bytes
from persist.ilm.peering import Peering
from persist.ilm.session import Received, Session
from persist.ilm.transport import Transport
from persist.ilm.waiting import LONGEST, Crowd

log = logging.getLogger("ringleader")

M = TypeVar("M")
FRAMES = 64  # frames received after which others have their turn
FIRST_LOOK, LOOK = 0.02, 0.5  # seconds between looks at who is connected, for transports that do not tell
LAST_WORDS = 0.5  # seconds that the end waits, at most, for acknowledgements to leave


class Peerings(Generic[M]):
    """`changed` wakes those who wait for an acknowledgement or for the end; `refusal` is why nothing more is taken."""

    def __init__(
        self, backend: Backend, deliver: Deliver[M], transport: Transport, make: MakeMessage[M], settings: Settings
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.transport = transport
        self.make = make
        self.local = check_peer(transport.local_id)
        self.commits = Commits(backend, self.fail)
        self.staged = Staged(self._commit_staged, self.check_effects)
        self.known: dict[PeerId, Peering[M]] = {}
        self.refusal: ILMError | None = None
        self.failure: ILMError | None = None
        self.is_closed = False
        self.changed = Crowd()
        self._deliver = deliver
        self._limits = Limits(
            settings.window, settings.inbox_limit, transport.max_frame_bytes, settings.retry[0], settings.retry[1]
        )
        self._patience = Patience(settings.delivery_attempts, *settings.delivery_retry)
        self._store = 0
        self._nonce = secrets.randbits(62) + 1
        self._tasks: set[asyncio.Task[None]] = set()
        self.forgetting = Forgetting(self)
        self.new_store = random_store
        self._is_running = False

    # --- the beginning

    async def open(self) -> None:
        """Recover, and start. If that fails the backend is closed."""
        states = self.backend.recover()
        try:
            self._store = identity.adopt(self.backend, self.local, random_store)
            for peer, state in states.items():
                self._meet(peer, state)
            if not self.commits.at_once:
                await self.backend.sync()
        except BaseException:
            self.backend.close()
            raise
        self._is_running = True
        for peering in self.known.values():
            self.serve(peering)
        self._spawn(self._receive, "receive")
        self._spawn(self._look_who_is_there, "look who is there")
        if not self.commits.at_once:
            self._spawn(self.commits.run, "sync")

    def meet(self, peer: PeerId) -> Peering[M]:
        """The peering with `peer`. ValueError for what cannot be a peer; SendToSelf."""
        known = self.known.get(peer)
        return known if known is not None else self._meet(check_peer(peer), PeerState())

    def _meet(self, peer: PeerId, state: PeerState) -> Peering[M]:
        if peer == self.local:
            raise SendToSelf(peer)
        try:
            if identity.is_being_forgotten(self.backend, peer):
                self.backend.forget(peer)
                self.backend.commit(identity.forgotten(peer))
                state = PeerState()
            remembered = identity.recall(self.backend, peer, self._store, state)
            self._nonce += 1 << 32  # each session counts up from its own
            session = Session(
                self.local, peer, remembered.own, remembered.store, self._nonce % (1 << 63) + 1, self._limits
            )
            session.restore(state, remembered.reach)
        except StorageFull:
            raise
        except Exception as error:
            raise self.commits.failure(error) from error
        outbox = Outbox(session, self.commits, remembered.offset, self.settings.outbox_limit, state.from_position)
        delivery = Delivery(
            session,
            self._deliver,
            self.make,
            self.staged,
            self.settings.batch,
            self._patience,
            outbox.publish.set,
            partial(self._report_delivery, peer),
        )
        peering = self.known[peer] = Peering(outbox, delivery, self.report)
        if self._is_running:
            self.serve(peering)
        return peering

    def serve(self, peering: Peering[M]) -> None:
        """Start its tasks; again, after they have ended."""
        peering.start(self._spawn, self.transport)

    # --- tasks

    def _spawn(self, work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guarded(work, name), name=f"ILM {self.local!r}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self.ended)
        return task

    def ended(self, task: asyncio.Task[None]) -> None:
        """None ends but by `close`, `fail` or `forget`, or, of deliveries, by `finish`."""
        if task.cancelled():
            if not self.is_closed:
                self.fail(ILMBroken(f"{task.get_name()}: someone else cancelled this task"))
        elif (error := task.exception()) is not None:
            log.error("%s", task.get_name(), exc_info=error)
            self.fail(ILMBroken(f"{task.get_name()}: {type(error).__name__}: {error}"))

    async def _guarded(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await work()
        except ILMError as error:
            self.fail(error)
        except Exception as error:
            log.exception("%r: %s", self.local, name)
            self.fail(ILMBroken(f"{name}: {type(error).__name__}: {error}"))

    def fail(self, error: ILMError) -> None:
        """Nothing goes on: whoever waits is told, and whoever comes later."""
        if self.failure is not None or self.is_closed:
            return
        self.failure = self.refusal = error
        for peering in self.known.values():
            peering.outbox.block()
        self.commits.abandon(error)
        self.changed.wake()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self.report(None, error)

    def refuse(self, reason: ILMError) -> None:
        """Take nothing more; senders who wait are told."""
        if self.refusal is None:
            self.refusal = reason
        for peering in self.known.values():
            peering.outbox.block()

    async def _receive(self) -> None:
        clock = asyncio.get_running_loop().time
        frames = 0
        while True:
            try:
                peer, frame = await self.transport.next_message()
            except Exception as error:
                raise TransportFailed(f"{type(error).__name__}: {error}") from error
            try:
                peering = self.known.get(peer) or self.meet(peer)
            except StorageFull as full:  # it comes again
                self.report(peer, full)
                continue
            if frame and not peering.is_leaving:
                self._received(peering, frame, clock())
            elif not frame or not peering.session.is_connected:
                peering.connected(clock())
            frames += 1
            if frames == FRAMES:
                frames = 0
                await asyncio.sleep(0)

    def _received(self, peering: Peering[M], frame: bytes, now: float) -> None:
        outcome, problem = peering.received(frame, now)
        if outcome.acked:
            try:
                self.backend.acknowledged(peering.peer, outcome.acked)
            except StorageFull:
                pass  # it was a hint
            except Exception as error:
                raise self.commits.failure(error) from error
            if peering.outbox.pending == 0:
                self.changed.wake()
        if outcome.remember or outcome.first:
            self._remember(peering, outcome)
        if problem is not None:
            self.report(peering.peer, problem)
            self.changed.wake()

    def _remember(self, peering: Peering[M], outcome: Received) -> None:
        """Nothing more is sent to this peer before that is durable."""
        try:
            self.commits.commit(identity.learned(peering.peer, outcome.remember, outcome.first))
        except StorageFull as full:
            peering.session.unlearn(outcome)
            self.report(peering.peer, full)
        else:
            peering.held += 1
            self.commits.then(peering.release)

    async def _look_who_is_there(self) -> None:
        pause = FIRST_LOOK
        while True:
            await asyncio.sleep(pause)
            pause = LOOK
            now = asyncio.get_running_loop().time()
            there = set(self.transport.connected_peers())
            for peer in there:
                with contextlib.suppress(StorageFull):  # looked at again
                    peering = self.meet(peer)
                    if not peering.session.is_connected:
                        peering.connected(now)
            for peer, peering in self.known.items():
                if peering.session.is_connected and peer not in there:
                    peering.session.lost()

    def report(self, peer: PeerId | None, error: ILMError) -> None:
        """Tell the user."""
        if self.settings.on_problem is None:
            log.warning("%r: %s", self.local, error)
            return
        try:
            self.settings.on_problem(peer, error)
        except Exception:
            log.exception("%r: on_problem failed on %s", self.local, error)

    def _report_delivery(self, peer: PeerId, error: ILMError | None) -> None:
        if error is None:
            self.known[peer].problems.pop("delivery", None)
        else:
            self.known[peer].problems["delivery"] = error
            self.report(peer, error)

    # --- what deliveries staged

    def check_effects(self, effects: Effects) -> Effects:
        """The same, with everything in it read and copied: what they were made of may change until the commit. Raises
        what is wrong with them, before anything of them is taken."""
        if not isinstance(effects, Effects):
            raise TypeError(f"a delivery target gives None or Effects, not {type(effects).__name__}")
        put = dict(effects.put)
        send = [(self.meet(peer), as_bytes(one)) for peer, one in effects.send]
        for key, value in put.items():
            if not isinstance(key, str) or not (value is None or isinstance(value, bytes)):
                raise TypeError(
                    f"a value that is put is bytes or None under a str, not {key!r}: {type(value).__name__}"
                )
            key.encode()  # UnicodeEncodeError, a ValueError, for what no backend could keep
        for peering, one in send:
            peering.outbox.check(one)
        return Effects(put, [(peering.session.peer, one) for peering, one in send])

    def _commit_staged(
        self, sends: Sequence[tuple[PeerId, bytes]], consumed: Mapping[PeerId, int], values: Mapping[str, bytes | None]
    ) -> None:
        if self.is_closed:
            raise ILMClosed("it was shut down")
        runs: list[tuple[PeerId, Run]] = []
        if sends:
            by_peer: dict[PeerId, list[bytes]] = {}
            for peer, one in sends:
                by_peer.setdefault(peer, []).append(one)
            for peer, several in by_peer.items():
                peering = self.meet(peer)
                if peering.is_leaving:
                    raise StorageFull(f"messages to {peer!r}, which is being forgotten")
                runs.extend((peer, run) for run in peering.outbox.runs(several))
        keyed = [(USER + key, value) for key, value in values.items()] if values else ()
        position = self.commits.commit(Change(runs, tuple(consumed.items()), keyed))
        for peer, run in runs:
            self.known[peer].outbox.entered(run, position)
        for peer, through in consumed.items():
            self.commits.then(partial(self._delivered, self.known[peer], through))

    @staticmethod
    def _delivered(peering: Peering[M], through: int) -> None:
        peering.session.delivered(through)
        peering.outbox.publish.set()

    async def forget(self, peer: PeerId) -> list[M]:
        """Drop all there is of a peer and meet it anew: forgetting.py."""
        return await self.forgetting.forget(self.meet(peer))

    # --- the end

    def is_waited_for(self) -> bool:
        """Whether someone may still acknowledge something."""
        return any(
            one.outbox.pending and one.session.problem is None and "forgetting" not in one.problems
            for one in self.known.values()
        )

    def is_within_delivery(self) -> bool:
        """Whether the caller is run by a delivery task."""
        current = asyncio.current_task()
        return any(current in peering.tasks for peering in self.known.values())

    async def finish(self, end: float) -> None:
        """Let deliveries end between two messages, and say what they did."""
        loop = asyncio.get_running_loop()
        deliveries = [peering.tasks[1] for peering in self.known.values() if peering.tasks]
        for peering in self.known.values():
            peering.delivery.stop()
        if deliveries and self.failure is None:
            await asyncio.wait(deliveries, timeout=max(0.01, min(end - loop.time(), 1e6)))
        if self.forgetting.tasks:
            await asyncio.wait(self.forgetting.tasks.values(), timeout=LAST_WORDS)
        if self.failure is not None:
            return
        with contextlib.suppress(StorageFull):  # delivered again when there is room
            self.staged.flush()
        last = loop.time() + LAST_WORDS
        with contextlib.suppress(TimeoutError, ILMError):  # a failure is kept
            async with asyncio.timeout(LAST_WORDS):
                await self.commits.durable()
        while loop.time() < last and any(one.has_last_words for one in self.known.values()) and not self.failure:
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """End all tasks, close the transport, then the backend."""
        self.is_closed = True
        if self.failure is None:
            self.refusal = ILMClosed("it was shut down")
        tasks = [*self._tasks, *self.forgetting.tasks.values()]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                _, running = await asyncio.wait(tasks, timeout=LONGEST)
                for task in running:
                    log.error("%r: does not let itself be cancelled: %r", self.local, task)
        finally:
            self.staged.close()
            self.commits.abandon(self.failure or ILMClosed("it was shut down"))
            try:
                await self.transport.close()
            except Exception:
                log.exception("%r: closing the transport", self.local)
            finally:
                self.backend.close()
                self.changed.wake()


def again(error: ILMError) -> ILMError:
    """The same once more, for one more who gets it."""
    return type(error)(*error.args)


def random_store() -> int:
    """The identity of a storage."""
    return secrets.randbits(64) or 1
