"""The thread sanitizer finds nothing in the core of the C ring, and finds it when an order is weakened."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.bus.atomics import Atomic, atomics
from tests.bus.tsan import RACE, build, compiler, run
from tests.bus.variants import Edit

RECORDS = 100_000
TRIES = 5


def _has_sanitizer() -> bool:
    try:
        found = subprocess.run(
            [*compiler(), "-print-file-name=libtsan.so"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:
        return False
    return Path(found).is_absolute()


pytestmark = pytest.mark.skipif(
    not _has_sanitizer() and not os.environ.get("RINGLEADER_REQUIRE_C"), reason="no thread sanitizer here"
)

ORDERS = [one for one in atomics() if one.function in {"ring_load", "ring_store"}]
BELL = [one for one in atomics() if one.function in {"bell_disarm", "bell_armed"}]
PLAINLY = {"bell_disarm": "*word = IDLE", "bell_armed": "*word"}


def test_the_core_has_no_race(tmp_path: Path) -> None:
    done = run(build(tmp_path / "right"), RECORDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{RECORDS} records\n", "")


def finds(place: Path, edit: Edit) -> bool:
    program = build(place, [edit])
    done = (run(program, RECORDS) for _ in range(TRIES))
    return any(one.returncode == RACE and "data race" in one.stderr for one in done)


@pytest.mark.parametrize("one", ORDERS, ids=lambda one: one.function)
def test_a_weaker_order_is_a_race(tmp_path: Path, one: Atomic) -> None:
    weaker = one.text.replace(f"__ATOMIC_{one.order}", "__ATOMIC_RELAXED")
    assert finds(tmp_path / "weaker", Edit(one.file, one.text, weaker))


@pytest.mark.parametrize("one", BELL, ids=lambda one: one.function)
def test_a_doorbell_that_is_not_atomic_is_a_race(tmp_path: Path, one: Atomic) -> None:
    assert finds(tmp_path / "plain", Edit(one.file, one.text, PLAINLY[one.function]))
