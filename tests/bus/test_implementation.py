"""RINGLEADER_RING chooses, and says clearly when it cannot."""

from __future__ import annotations

import pytest

from bus import ImplementationNotBuilt, UnknownImplementation
from tests.bus.implementations import RINGS, needs_c, python

SHOW = "import bus; print(bus.RING_IMPLEMENTATION, bus.Ring.__module__, bus.Doorbell.__module__)"
WITHOUT_C = "import sys; sys.modules['bus._ring'] = None; " + SHOW
OLD_C = (
    "import sys, types; old = types.ModuleType('bus._ring'); old.RING_VERSION = 0; "
    "sys.modules['bus._ring'] = old; " + SHOW
)


@pytest.mark.parametrize("name", ["python", pytest.param("c", marks=needs_c)])
def test_either_can_be_forced(name: str) -> None:
    done = python("-c", SHOW, RINGLEADER_RING=name)
    modules = "bus._ring bus._ring" if name == "c" else "bus.ring bus.doorbell"
    assert (done.stdout, done.stderr) == (f"{name} {modules}\n", "")


@pytest.mark.parametrize("unset", [None, ""])
def test_the_fast_one_is_used_where_it_was_built(unset: str | None) -> None:
    assert python("-c", SHOW, RINGLEADER_RING=unset).stdout.split()[0] == ("c" if "c" in RINGS else "python")


@pytest.mark.parametrize("code", [WITHOUT_C, OLD_C])
def test_without_the_c_ring_everything_works_in_python(code: str) -> None:
    assert python("-c", code).stdout == "python bus.ring bus.doorbell\n"


def test_any_other_value_is_refused_with_the_choices() -> None:
    done = python("-c", SHOW, RINGLEADER_RING="rust")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith("RINGLEADER_RING='rust' is not a ring implementation; choose c or python")
    assert last.startswith(f"bus.errors.{UnknownImplementation.__name__}")


@pytest.mark.parametrize(("code", "reason"), [(WITHOUT_C, "_ring"), (OLD_C, "layout 0")])
def test_a_c_ring_that_is_not_there_cannot_be_forced(code: str, reason: str) -> None:
    done = python("-c", code, RINGLEADER_RING="c")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"bus.errors.{ImplementationNotBuilt.__name__}: RINGLEADER_RING=c, but the C ring cannot")
    assert reason in last
