"""A handler inside its worker: the instance, and its durable state as it was last committed.

After a failure the instance is thrown away and made anew from the committed state: nothing of the failed handling
remains, because nothing of it had left the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.codec import StateCodec
from actors.errors import BadState
from actors.handler import Handler
from actors.message import State
from actors.plan import HandlerPlan
from actors.table import Table
from bus import Progress


class Context:
    """What the handler at work may ask about: the message in progress. One per worker."""

    __slots__ = ("end", "flags", "handler", "local", "many", "peer", "progress", "replied", "reply", "stop")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.peer = ""
        self.flags = 0
        self.handler = ""
        self.replied = False
        self.stop = False
        self.end = False
        self.many = False  # it is not alone: a batch handler has all messages up to this one in hand
        # It is from a handler of this worker: peer and seq are those of its cause, or of its carrying.
        self.local = False
        self.reply: Callable[[Any], None] = lambda message: None

    @property
    def seq(self) -> int:
        return self.progress.seq

    def message_id(self) -> str:
        return f"{self.peer}/{self.seq}" if self.peer and not self.local and not self.many else ""

    def request_stop(self) -> None:
        self.stop = True

    def request_end(self) -> None:
        self.end = True


class Hosted:
    """One handler of the worker. `index` is its place in the worker's name table."""

    def __init__(
        self,
        index: int,
        plan: HandlerPlan,
        send: Callable[[Any], None],
        reserve: Callable[..., Any],
        context: Context,
    ) -> None:
        self.index = index
        self.name = plan.name
        self.plan = plan
        self.due = 0.0  # when on_loop is called next, monotonic seconds
        self.failures = 0  # of on_loop, in a row
        self.timed = plan.policy.busy_limit is not None  # how long it has been at work has to be known exactly
        self._send = send
        self._reserve = reserve
        self._context = context
        description = plan.description
        self.stateful = description.state is not None or description.table is not None
        self._codec = StateCodec(description.state) if description.state is not None else None
        self._committed = b""  # encoding of the committed State; empty: as the class makes it
        self._pending = b""
        self._table: Table[Any, Any] | None = Table(*description.table) if description.table is not None else None
        self.instance: Handler

    def restore(self, state: bytes | None, items: Mapping[bytes, bytes] | None) -> None:
        """The committed state that recovery found; call `make` afterwards."""
        self._committed = state or b""
        if self._table is not None:
            self._table.load(items or {})

    def reset_state(self) -> None:
        """The instance goes on with the committed state."""
        state = self._make_state()
        if state is not None:
            vars(self.instance)["state"] = state

    def make(self) -> Handler:
        """A new instance over the committed state. What its constructor raises is the user's to see."""
        cls = self.plan.spec.cls
        instance = cls.__new__(cls)
        vars(instance).update(
            name=self.name,
            send=self._send,
            reserve=self._reserve,
            reply=self._context.reply,
            stop_system=self._context.request_stop,
            stop_worker=self._context.request_end,
            _message_id=self._context.message_id,
        )
        state = self._make_state()
        if state is not None:
            vars(instance)["state"] = state
        self._context.handler = self.name
        instance.__init__(*self.plan.spec.args, **self.plan.spec.kwargs)  # type: ignore[misc]
        self.instance = instance
        return instance

    def _make_state(self) -> State | Table[Any, Any] | None:
        if self._table is not None:
            self._table.rollback()
            return self._table
        if self._codec is None:
            return None
        state: State = self._codec.decode(self._committed) if self._committed else self._codec.fresh()
        return state

    def changes(self) -> tuple[bytes | None, list[tuple[bytes, bytes | None]]]:
        """What of the state differs from the committed one: (whole value or None, changed keys).

        Raises BadState when a value does not fit its declaration: it could be written but not read again.
        """
        state: Any = vars(self.instance).get("state")
        try:
            if self._table is not None:
                if state is not self._table:
                    raise BadState("state", "the table was replaced; change its items instead")
                return None, state.changes()
            if self._codec is None:
                return None, []
            self._pending = b""  # there may be one of a transaction that was rolled back
            encoded = self._codec.encode(state)
            if encoded == self._committed:
                return None, []
            self._codec.check(encoded)
        except BadState as error:
            error.blame(self.name)
            raise
        self._pending = encoded
        return encoded, []

    def committed(self) -> None:
        """What `changes` returned last is durable."""
        if self._table is not None:
            self._table.committed()
        elif self._pending:
            self._committed, self._pending = self._pending, b""

    def whole(self) -> tuple[bytes | None, dict[bytes, bytes]]:
        """The committed state for a snapshot: (value or None, table items)."""
        if self._table is not None:
            return None, self._table.encoded()
        return self._committed or None, {}
