"""Errors of the bus carry their values and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from bus import errors

ERRORS: list[tuple[errors.BusError, str]] = [
    (errors.LayoutError("ring", "magic", 255, "0x1"), "not a usable ring: magic is 0xff, expected 0x1"),
    (errors.LayoutError("board", "name", "x", "y"), "not a usable board: name is 'x', expected y"),
    (errors.RecordTooLarge(9, 8), "record of 9 bytes is larger than this ring can ever carry (8 bytes)"),
    (errors.RingCorrupt(64, 7, "unknown kind"), "ring corrupt at position 64: unknown kind (found 7)"),
    (errors.SegmentMissing("seg"), "no shared-memory segment named 'seg'"),
    (errors.SegmentExists("seg"), "a shared-memory segment named 'seg' exists already"),
    (errors.SharedMemoryFull("seg", 10, 5), "segment 'seg' needs 10 bytes, available: 5 bytes"),
    (errors.SharedMemoryFull("seg", 10, None), "segment 'seg' needs 10 bytes, available: unknown"),
    (errors.NoSuchBlock("a", ("b", "c")), "no status block named 'a'; this board has b, c"),
    (errors.NoSuchBlock("a", ()), "no status block named 'a'; this board has none"),
    (errors.UnknownImplementation("VAR", "x", ("c", "python")), "VAR='x' is not a ring implementation"),
    (errors.ImplementationNotBuilt("VAR", "no module"), "VAR=c, but the C ring cannot be imported: no module"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_errors_say_what_is_wrong_and_survive_pickling(error: errors.BusError, text: str) -> None:
    assert text in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, str(again), vars(again)) == (type(error), error.args, str(error), vars(error))


def test_every_error_of_the_bus_is_covered_here() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BusError)}
    assert kinds - {errors.BusError} == {type(error) for error, _ in ERRORS}
