"""Both implementations by name, whatever RINGLEADER_RING says. Tests of a C ring that was not built are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import PyDoorbell, PyRing, Segment, format_ring, ring_size

NAMES = ("python", "c")
ROOT = Path(__file__).parents[2]
RINGS: dict[str, Any] = {"python": PyRing}
DOORBELLS: dict[str, Any] = {"python": PyDoorbell}
try:
    from bus import _ring
except ImportError as error:
    _missing = [pytest.mark.skip(reason=f"the C ring was not built: {error}")]
else:
    _missing = []
    RINGS["c"] = _ring.Ring
    DOORBELLS["c"] = _ring.Doorbell

needs_c = pytest.mark.skipif("c" not in RINGS, reason="the C ring was not built")
each = pytest.mark.parametrize("name", ["python", pytest.param("c", marks=_missing)])
pairs = pytest.mark.parametrize(
    ("producer", "consumer"),
    [pytest.param(p, c, marks=_missing if "c" in {p, c} else []) for p in NAMES for c in NAMES],
)


def new_ring(capacity: int = 4096, epoch: int = 1) -> bytearray:
    """A formatted ring of exactly the size it needs, so that one byte beyond is outside."""
    buffer = bytearray(ring_size(capacity))
    format_ring(buffer, capacity, epoch)
    return buffer


_serial = iter(range(10**9))


def segment_name() -> str:
    return f"ringleader-test-{os.getpid()}-{next(_serial)}"


@contextmanager
def new_segment(size: int, name: str | None = None) -> Iterator[Segment]:
    segment = Segment.create(name or segment_name(), size)
    try:
        yield segment
    finally:
        segment.unlink()
        segment.close()


def environment(**changes: str | None) -> dict[str, str]:
    """For child processes: ours, without a forced implementation, and with these changes."""
    changes = {"RINGLEADER_RING": None, "PYTHONPATH": str(ROOT), **changes}
    kept = {key: value for key, value in os.environ.items() if key not in changes}
    return kept | {key: value for key, value in changes.items() if value is not None}


def python(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a child interpreter to its end, and to the end of whatever it started that holds its output."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def peer(*arguments: object) -> subprocess.Popen[bytes]:
    """Starts `tests.bus.peer` in a process of its own."""
    command = [sys.executable, "-m", "tests.bus.peer", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
