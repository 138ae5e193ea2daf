"""What a worker does with a route: how to decode its messages, whom to call, and what its handlers tolerate."""

from __future__ import annotations

from typing import Any

from actors.attempts import Tolerance, strictest
from actors.codec import RunCodec
from actors.hosted import Hosted


class Inlet:
    """One route, as it arrives at the worker."""

    __slots__ = ("calls", "codec", "targets", "type_name")

    def __init__(self, codec: RunCodec, type_name: str, targets: list[tuple[Hosted, str]]) -> None:
        self.codec = codec
        self.type_name = type_name
        self.targets = targets
        self.calls: list[tuple[Hosted, Any]] = []

    def bind(self) -> None:
        """To the handlers' present instances."""
        calling = self.codec.calling
        self.calls = [(hosted, calling(getattr(hosted.instance, method))) for hosted, method in self.targets]

    @property
    def handlers(self) -> str:
        """The receivers, as a dead letter names them."""
        return ",".join(hosted.name for hosted, _ in self.targets)

    def tolerance(self, max_attempts: int) -> Tolerance:
        """`max_attempts` is the topology's."""
        return strictest([hosted.plan.policy for hosted, _ in self.targets], max_attempts)
