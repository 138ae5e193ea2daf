"""What a worker answers to the gateway: replies of handlers, failures, outcomes of commands.

An answer is part of the transaction that handles its question, on the edge that carries nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.codec import FLAG_ASK, FLAG_COMMAND, FLAG_ERROR, FLAG_REPLY, FLAG_REQUEUED, RunCodec
from actors.codec_runs import run_codec
from actors.errors import MessageTooLarge, SenderError
from actors.hosted import Context
from actors.outgoing import EncodedRun, Outgoing
from actors.plan import GATEWAY, Plan
from actors.replies import pack_answer, pack_failure, pack_outcome
from actors.system_errors import NothingToReply


class Answers:
    """Of one worker, into its `outgoing`. `context` tells of the message in progress."""

    def __init__(self, plan: Plan, worker: str, outgoing: Outgoing, context: Context) -> None:
        self._route = plan.reply_route(worker).id
        self._gateway = plan.peers.index(GATEWAY)
        self._plan = plan
        self._limit = plan.limits.max_message_bytes
        self._outgoing = outgoing
        self._context = context
        self._codecs: dict[type, RunCodec] = {}
        context.reply = self.reply

    def reply(self, message: object) -> None:
        """What `Handler.reply` does. To a message that was requeued the answer goes nowhere: whoever asked was
        told that it was given up."""
        context = self._context
        asked = context.flags & FLAG_ASK and context.peer == GATEWAY and not context.local
        if not (asked or context.flags & FLAG_REQUEUED) or context.replied:
            raise NothingToReply(context.handler, type(message).__name__, context.message_id(), context.replied)
        codec = self._codecs.get(type(message))
        if codec is None:
            codec = self._codecs[type(message)] = run_codec(self._plan, type(message))
        try:
            body = pack_answer(context.seq, message, codec)
            if len(body) > self._limit:
                raise MessageTooLarge(codec.type_name, len(body), self._limit)
        except SenderError as error:
            error.blame(context.handler)
            raise
        # failpoint: reply-packed
        context.replied = True
        if asked:
            self._add(0, body)

    def fail(self, seq: int, handler: str, type_name: str, reason: str) -> None:
        """The question `seq` was given up."""
        body = pack_failure(seq, handler, type_name, reason)
        while len(body) > self._limit and reason:
            reason = reason[: len(reason) // 2]
            body = pack_failure(seq, handler, type_name, reason)
        self._add(FLAG_ERROR, body)

    def tell(self, seq: int, problems: Sequence[str]) -> None:
        """What the command `seq` has done."""
        self._add(FLAG_COMMAND, pack_outcome(seq, problems))

    def _add(self, flags: int, body: bytes) -> None:
        self._outgoing.add(EncodedRun(self._route, 1, FLAG_REPLY | flags, (self._gateway,), body))
