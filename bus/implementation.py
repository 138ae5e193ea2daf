"""Which ring, doorbell, progress and sender this process uses: the C ones where they were built, unless
RINGLEADER_RING forces either.

Both write the same memory, so that processes with different choices talk to each other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

from bus.doorbell import Doorbell as PyDoorbell
from bus.errors import ImplementationNotBuilt, UnknownImplementation
from bus.layout import RING_VERSION
from bus.progress import Progress as PyProgress
from bus.ring import Ring as PyRing
from bus.send import Sender as PySender

VARIABLE: Final = "RINGLEADER_RING"
CHOICES: Final = ("c", "python")

__all__ = [
    "CHOICES",
    "RING_IMPLEMENTATION",
    "VARIABLE",
    "Doorbell",
    "Packer",
    "Progress",
    "PyDoorbell",
    "PyProgress",
    "PyRing",
    "PySender",
    "Ring",
    "Sender",
    "Unpacker",
]


def _choose() -> Literal["c", "python"]:
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in CHOICES:
        raise UnknownImplementation(VARIABLE, wanted, CHOICES)
    if wanted == "python":
        return "python"
    try:
        from bus import _progress, _ring, _send  # noqa: F401

        problem = "" if _ring.RING_VERSION == RING_VERSION else f"it was built for layout {_ring.RING_VERSION}"
    except ImportError as error:
        problem = str(error)
    if problem and wanted == "c":
        raise ImplementationNotBuilt(VARIABLE, problem)
    return "python" if problem else "c"


RING_IMPLEMENTATION: Final = _choose()

if TYPE_CHECKING:
    from bus._progress import Unpacker
    from bus._send import Packer, Sender

    Ring = PyRing
    Doorbell = PyDoorbell
    Progress = PyProgress
elif RING_IMPLEMENTATION == "c":
    from bus._progress import Progress, Unpacker
    from bus._ring import Doorbell, Ring
    from bus._send import Packer, Sender
else:
    Ring, Doorbell, Progress, Sender = PyRing, PyDoorbell, PyProgress, PySender
    Packer = Unpacker = None
