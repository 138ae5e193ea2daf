"""Whatever step of a ring a process dies in, what it leaves is right: at each failpoint the memory is copied as a kill
would leave it, and who takes over from there must find whole records, in order, and none that was not published.

The C ring has the same failpoints as the one in Python, in a build of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bus import Cell, PyDoorbell, PyRing
from bus import doorbell as doorbell_module
from bus import ring as ring_module
from tests.bus.implementations import needs_c as where_c_is_built
from tests.bus.implementations import new_ring
from tests.bus.variants import FAILPOINTS, ROOT, TAIL_FIRST, build, load
from tests.torture.hook import points_in_c, ring_points, with_calls

FIRST, SECOND, THIRD = b"first", b"second" * 20, b"third" * 3
OLD = b"old" * 100
NAMES = ("python", pytest.param("c", marks=where_c_is_built))


class Stop(Exception):
    """What the action `error` does."""


class Watched:
    """Ring and doorbell of one implementation with failpoints; `at` is called with the name of each."""

    def __init__(self, ring: Any, doorbell: Any) -> None:
        self.Ring, self.Doorbell = ring, doorbell
        self.at: Callable[[str], object] = lambda name: None
        self.seen: set[str] = set()

    def come_by(self, name: str) -> None:
        self.seen.add(name)
        self.at(name)


def in_python() -> Watched:
    """The modules once more, with calls for comments."""
    classes = []
    watched = Watched(None, None)
    for module, name in ((ring_module, "Ring"), (doorbell_module, "Doorbell")):
        path = Path(str(module.__file__))
        source = with_calls(path.read_bytes(), lambda point: f"__failpoint__({point!r})")
        again = ModuleType(f"{module.__name__}_with_failpoints")
        vars(again)["__failpoint__"] = watched.come_by
        exec(compile(source, str(path), "exec"), vars(again))
        classes.append(getattr(again, name))
    watched.Ring, watched.Doorbell = classes
    return watched


def in_c(module: ModuleType) -> Watched:
    watched = Watched(module.Ring, module.Doorbell)
    module.on_failpoint(watched.come_by)
    return watched


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    module = load(build(tmp_path_factory.mktemp("ring") / "variant", FAILPOINTS))
    yield module
    module.on_failpoint(lambda name: None)


@pytest.fixture
def watched(name: str, request: pytest.FixtureRequest) -> Watched:
    return in_python() if name == "python" else in_c(request.getfixturevalue("variant"))


def in_parts(ring: Any) -> None:
    assert ring.push(SECOND[:20], SECOND[20:])


def whole(ring: Any) -> None:
    assert ring.push(SECOND)


def together(ring: Any) -> None:
    assert ring.push_many([SECOND, bytearray(THIRD)]) == 2


def in_place(ring: Any) -> None:
    ring.reserve(len(SECOND))[:] = SECOND
    ring.commit()


PUSHES: dict[Callable[[Any], None], list[bytes]] = {
    in_parts: [SECOND],
    whole: [SECOND],
    together: [SECOND, THIRD],
    in_place: [SECOND],
}


def used_buffer(start: int) -> bytearray:
    """A ring whose next record begins `start` bytes into its data, over what earlier ones left; with one in it."""
    buffer = new_ring(4096)
    ring, into = PyRing(buffer), PyRing(buffer)
    while ring.get(Cell.TAIL) + 8 + len(FIRST) + 3 != 4096 + start:
        missing = 4096 + start - ring.get(Cell.TAIL) - 8 - len(FIRST) - 3
        assert ring.push((OLD * 2)[: min(len(OLD), max(missing - 8, 0))])
        into.take_many(10, 4096)
        into.release()
    assert ring.push(FIRST)
    ring.close()
    into.close()
    return buffer


def left_by_a_death(snapshot: bytearray) -> list[bytes]:
    """What those find who take over from there, and that they get on."""
    successor, into = PyRing(snapshot), PyRing(snapshot)
    found = into.take_many(100, 10**6)
    assert successor.push(b"after")
    assert into.take_many(100, 10**6) == [b"after"]
    successor.close()
    into.close()
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("push", PUSHES)
@pytest.mark.parametrize("start", [0, 16, 4096 - 16, 4096 - 8])
def test_a_death_while_pushing_leaves_all_of_it_or_nothing(
    watched: Watched, push: Callable[[Any], None], start: int
) -> None:
    all_or_nothing(watched, push, start)


def all_or_nothing(watched: Watched, push: Callable[[Any], None], start: int) -> None:
    buffer = used_buffer(start)
    ring = watched.Ring(buffer)
    left: list[tuple[str, bytearray]] = []
    watched.at = lambda point: left.append((point, bytearray(buffer)))
    push(ring)
    assert {point for point, _ in left} >= {"ring-claimed", "ring-copied", "ring-tail-stored"}
    for point, snapshot in left:
        new = PUSHES[push] if point == "ring-tail-stored" else []
        assert left_by_a_death(snapshot) == [FIRST, *new], point
    ring.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_death_while_taking_leaves_everything_that_was_not_released(watched: Watched) -> None:
    buffer = used_buffer(4096 - 16)
    ring = watched.Ring(buffer)
    ring.push_many([SECOND, THIRD])
    left: list[tuple[str, bytearray]] = []
    watched.at = lambda point: left.append((point, bytearray(buffer)))
    assert ring.take_many(2, 4096) == [FIRST, SECOND]
    ring.rewind()
    assert ring.take_many(2, 4096) == [FIRST, SECOND]
    ring.release()
    copied = ["ring-record-copied"] * 2
    assert [point for point, _ in left] == [*copied, "ring-rewound", *copied, "ring-head-stored"]
    for point, snapshot in left:
        assert left_by_a_death(snapshot) == ([THIRD] if point == "ring-head-stored" else [FIRST, SECOND, THIRD])
    ring.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("push", PUSHES)
def test_an_error_before_the_tail_is_stored_has_moved_nothing(watched: Watched, push: Callable[[Any], None]) -> None:
    in_the_push = {"ring-claimed", "ring-copied"} | ({"ring-copying"} if push is not in_place else set())
    for point in sorted(in_the_push):
        ring = watched.Ring(used_buffer(4096 - 16))
        stop_at(watched, point)
        with pytest.raises(Stop):
            push(ring)
        assert ring.take_many(9, 4096) == [FIRST]
        push(ring)
        assert ring.take_many(9, 4096) == PUSHES[push]
        ring.close()


@pytest.mark.parametrize("name", NAMES)
def test_an_error_while_taking_has_moved_nothing(watched: Watched) -> None:
    buffer = used_buffer(0)
    ring = watched.Ring(buffer)
    stop_at(watched, "ring-record-copied")
    with pytest.raises(Stop):
        ring.take_many(9, 4096)
    assert ring.take_many(9, 4096) == [FIRST]
    ring.close()


def stop_at(watched: Watched, point: str) -> None:
    """An error there, once."""

    def at(name: str) -> None:
        if name == point:
            watched.at = lambda _: None
            raise Stop

    watched.at = at


@pytest.mark.parametrize("name", NAMES)
def test_the_doorbells_steps(watched: Watched) -> None:
    word = bytearray(4)
    bell = watched.Doorbell(word)
    left: list[tuple[str, bytes]] = []
    watched.at = lambda point: left.append((point, bytes(word)))
    bell.arm()
    assert bell.ring()
    assert left == [("doorbell-armed", b"\x01\0\0\0"), ("doorbell-cleared", bytes(4))]
    for step, point in ((bell.arm, "doorbell-armed"), (bell.ring, "doorbell-cleared")):
        stop_at(watched, point)
        with pytest.raises(Stop):
            step()
    bell.close()


@where_c_is_built
def test_both_rings_have_the_same_failpoints(variant: ModuleType) -> None:
    here = in_python(), in_c(variant)
    for watched in here:
        ring, bell = watched.Ring(used_buffer(0)), watched.Doorbell(bytearray(4))
        whole(ring)
        ring.take_many(9, 4096)
        ring.rewind()
        ring.release()
        bell.arm()
        bell.ring()
        ring.close()
        bell.close()
    assert here[0].seen == here[1].seen == set(ring_points())
    named = {name for path in (ROOT / "bus").glob("_*.c") for name in names_in(path.read_text())}
    assert named == set(points_in_c())


def names_in(source: str) -> list[str]:
    return [part.partition('"')[0] for part in source.split('FAILPOINT("')[1:]]


@where_c_is_built
def test_the_normal_build_has_none() -> None:
    from bus import _ring, _send

    for extension in (_ring, _send):
        assert not hasattr(extension, "on_failpoint")
        code = Path(str(extension.__file__)).read_bytes()
        assert not [name for name in points_in_c() if name.encode() in code]
    assert all(not hasattr(module, "__failpoint__") for module in (ring_module, doorbell_module))
    assert (PyRing, PyDoorbell) == (ring_module.Ring, doorbell_module.Doorbell)


@where_c_is_built
def test_a_tail_that_moves_before_its_record_is_whole_is_caught(tmp_path: Path) -> None:
    broken = in_c(load(build(tmp_path / "broken", FAILPOINTS, edits=[TAIL_FIRST])))
    with pytest.raises(AssertionError, match="ring-claimed"):
        all_or_nothing(broken, in_parts, 0)
