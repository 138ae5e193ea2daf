"""What a worker does with a route: how to decode its messages, whom to call, and what its handlers tolerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.attempts import Tolerance, strictest
from actors.codec import RunCodec
from actors.hosted import Hosted
from actors.unpacking import PlainInlet

Call = Callable[[Any], object]


class Inlet:
    """One route, as it arrives at the worker."""

    __slots__ = ("alone", "batched", "calls", "codec", "exact", "targets", "together", "type_name")

    def __init__(self, codec: RunCodec, type_name: str, targets: list[tuple[Hosted, str]]) -> None:
        self.codec = codec
        self.type_name = type_name
        self.targets = targets
        self.calls: list[tuple[Hosted, Call]] = []  # with one message
        self.together: list[tuple[Hosted, Call, bool]] = []  # the methods; whether they take a list of messages
        self.batched = any(method in hosted.plan.description.batches for hosted, method in targets)
        self.alone: tuple[Hosted, Call] | None = None  # the only one, if one message is given to it as it was decoded
        self.exact = any(hosted.timed for hosted, _ in targets)  # when each message began has to be known

    def bind(self) -> None:
        """To the handlers' present instances."""
        self.together = []
        for hosted, method in self.targets:
            batch = method in hosted.plan.description.batches
            self.together.append((hosted, self.codec.calling(getattr(hosted.instance, method), batch), batch))
        self.calls = [(hosted, _alone(call) if batch else call) for hosted, call, batch in self.together]
        plain = type(self.codec) in {RunCodec, PlainInlet} and not self.batched and not self.exact
        self.alone = self.calls[0] if plain and len(self.calls) == 1 else None

    @property
    def handlers(self) -> str:
        """The receivers, as a dead letter names them."""
        return ",".join(hosted.name for hosted, _ in self.targets)

    def tolerance(self, max_attempts: int) -> Tolerance:
        """`max_attempts` is the topology's."""
        return strictest([hosted.plan.policy for hosted, _ in self.targets], max_attempts)


def _alone(call: Call) -> Call:
    """A batch handler's method, for one message."""
    return lambda message: call([message])
