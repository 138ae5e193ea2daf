"""One request to pause, drain or resume a worker, and what has become of it, judged by two cells. Pure.

The supervisor numbers the requests to a worker when it takes them, and passes on the number with each (cell PAUSE); the
worker answers with the same value when it has come about (cell PAUSED). So asking for what was asked for before is not
mistaken for done, and who was overridden by a later request learns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bus import Pause, pause_asked


class Standing(Enum):
    QUEUED = "the supervisor has not passed it on"
    PASSED_ON = "the worker has not reached it"
    OVERRIDDEN = "something else was asked for later"
    DONE = "it has come about"


@dataclass(slots=True)
class PauseRequest:
    asked: Pause
    number: int = 0  # none yet

    def standing(self, told: int, paused: int) -> Standing:
        """By the cells PAUSE and PAUSED of its worker, read in this order."""
        number, pause = pause_asked(told)
        if not 0 < self.number <= number:
            return Standing.QUEUED
        if pause is not self.asked:
            return Standing.OVERRIDDEN
        return Standing.DONE if paused == told else Standing.PASSED_ON


COMMANDS = {Pause.RUN: "resume", Pause.PAUSE: "pause", Pause.DRAIN: "drain"}


def told_to(told: int) -> str:
    """The command behind what a worker was told last."""
    return COMMANDS[pause_asked(told)[1]]
