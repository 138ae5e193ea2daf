"""Drops all there is of a peer, so that what follows begins anew.

Contract
- Once per peer at a time: who asks meanwhile shares it. Who is cancelled while waiting does not stop it.
- It begins with a commit. Whatever fails up to then changes nothing, and the peer is served on.
- From then on it is to be finished: here, when StorageFull has been raised, by the next `forget`; else by the next
  opening. Until then `problems["forgetting"]` of the peer says so to senders, and frames from it are ignored.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from persist.ilm import identity
from persist.ilm.errors import ILMBroken, StorageFull
from persist.ilm.peering import Peering
from persist.ilm.waiting import LONGEST

if TYPE_CHECKING:
    from persist.ilm.peerings import Peerings

log = logging.getLogger("ringleader")

M = TypeVar("M")


class Forgetting(Generic[M]):
    """`tasks`: what is under way, by peer."""

    def __init__(self, peerings: Peerings[M]) -> None:
        self.tasks: dict[object, asyncio.Task[list[M]]] = {}
        self._peerings = peerings

    async def forget(self, peering: Peering[M]) -> list[M]:
        """The messages that the peer had not acknowledged."""
        task = self.tasks.get(peering.peer)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._forget(peering))
            self.tasks[peering.peer] = task
            task.add_done_callback(partial(self._ended, peering))
        return await asyncio.shield(task)

    def _ended(self, peering: Peering[M], task: asyncio.Task[list[M]]) -> None:
        peer, peerings = peering.peer, self._peerings
        del self.tasks[peer]
        if task.cancelled():
            if not peerings.is_closed:
                peerings.fail(ILMBroken(f"forgetting {peer!r}: someone else cancelled its task"))
        elif (error := task.exception()) is not None:
            log.info("%r: forgetting %r: %s", peerings.local, peer, error)

    async def _forget(self, peering: Peering[M]) -> list[M]:
        peerings = self._peerings
        for task in peering.tasks:
            task.remove_done_callback(peerings.ended)  # it is meant to end
        while running := [task for task in peering.tasks if not task.done()]:  # a target may take its time to give up
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=LONGEST)
        if not peering.is_leaving:
            self._begin(peering)
        peering.problems.pop("forgetting", None)
        try:
            return await self._finish(peering)
        except StorageFull as full:
            peering.problems["forgetting"] = full
            peering.outbox.room.wake()
            peerings.changed.wake()
            raise

    def _begin(self, peering: Peering[M]) -> None:
        peerings, outbox, session = self._peerings, peering.outbox, peering.session
        try:
            peerings.staged.flush()
            remembered = identity.Remembered(session.own_store, session.peer_store, outbox.offset)
            own = peerings.new_store()
            peerings.commits.commit(identity.forgetting(peering.peer, remembered, own, outbox.last_id))
        except BaseException:
            if peerings.failure is None:
                peerings.serve(peering)
            raise
        peering.is_leaving = True
        outbox.block()
        peerings.commits.then(nothing)

    async def _finish(self, peering: Peering[M]) -> list[M]:
        peerings, outbox, peer = self._peerings, peering.outbox, peering.peer
        await peerings.commits.durable()
        try:
            if peering.left is None:
                peering.left = outbox.unacknowledged()
            peerings.backend.forget(peer)
        except StorageFull:
            raise
        except Exception as error:
            raise peerings.commits.failure(error) from error
        peerings.commits.commit(identity.forgotten(peer))
        peerings.commits.then(nothing)
        del peerings.known[peer]
        renewed = peerings.meet(peer)
        if peering.session.is_connected:
            renewed.connected(asyncio.get_running_loop().time())
        outbox.room.wake()
        peerings.changed.wake()
        await peerings.commits.durable()
        return [peerings.make(peerings.local, peer, message_id, one) for message_id, one in peering.left]


def nothing() -> None:
    """For a commit that nothing waits for but its caller."""
