"""Which ring and doorbell this process uses: the C ones where they were built, unless RINGLEADER_RING forces either.

Both write the same memory, so that processes with different choices talk to each other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

from bus.doorbell import Doorbell as PyDoorbell
from bus.errors import ImplementationNotBuilt, UnknownImplementation
from bus.ring import Ring as PyRing

VARIABLE: Final = "RINGLEADER_RING"
CHOICES: Final = ("c", "python")

__all__ = ["CHOICES", "RING_IMPLEMENTATION", "VARIABLE", "Doorbell", "PyDoorbell", "PyRing", "Ring"]


def _choose() -> Literal["c", "python"]:
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in CHOICES:
        raise UnknownImplementation(VARIABLE, wanted, CHOICES)
    if wanted == "python":
        return "python"
    try:
        import bus._ring  # noqa: F401
    except ImportError as error:
        if wanted == "c":
            raise ImplementationNotBuilt(VARIABLE, str(error)) from error
        return "python"
    return "c"


RING_IMPLEMENTATION: Final = _choose()

if TYPE_CHECKING:
    Ring = PyRing
    Doorbell = PyDoorbell
elif RING_IMPLEMENTATION == "c":
    from bus._ring import Doorbell, Ring
else:
    Ring, Doorbell = PyRing, PyDoorbell
