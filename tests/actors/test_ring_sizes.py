"""Which size a ring gets, as a pure function; and what this machine says that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.plan import Edge
from actors.ring_sizes import (
    DEFAULT_RING,
    LEAST_RING,
    PAGE,
    Room,
    default_message,
    fitted,
    largest_message,
    ring_for,
    ring_wrong,
)
from actors.room import memory_limit, room
from actors.system_errors import RingsDoNotFit
from bus.layout import MAX_CAPACITY, MIN_CAPACITY, check_capacity

MIB = 1 << 20
ANYTHING = Room(None, None)


def edges(count: int, most: int = DEFAULT_RING, least: int = LEAST_RING) -> list[Edge]:
    return [Edge(index, "a", f"b{index}", False, most, least) for index in range(count)]


def taken(sizes: dict[str, int]) -> int:
    return sum(size + PAGE for size in sizes.values())


def test_where_there_is_room_every_ring_has_the_most_it_may() -> None:
    assert set(fitted(edges(5000), 0, ANYTHING, {}).values()) == {MIB}
    ten_in_a_chain = edges(29)
    assert set(fitted(ten_in_a_chain, 0, Room(64 * MIB, None), {}).values()) == {MIB}  # what a container has


def test_many_rings_are_smaller_so_that_they_take_half_of_what_is_free() -> None:
    """64 workers that all talk to each other."""
    sizes = fitted(edges(64 * 63), 0, Room(1 << 30, None), {})
    assert set(sizes.values()) == {64 << 10}
    assert taken(sizes) <= 1 << 29 < taken(dict.fromkeys(sizes, 128 << 10))


def test_rings_take_a_quarter_of_the_memory_that_there_is() -> None:
    assert set(fitted(edges(300), 0, Room(1 << 40, 1 << 30), {}).values()) == {512 << 10}


def test_only_rings_without_a_size_of_their_own_are_made_smaller() -> None:
    given_one = Edge(100, "a", "big", False, 16 * MIB, 16 * MIB)
    sizes = fitted([*edges(40), given_one], 0, Room(64 * MIB, None), {})
    assert sizes["a>big"] == 16 * MIB
    assert {size for name, size in sizes.items() if name != "a>big"} == {256 << 10}


def test_what_a_ring_had_when_something_was_sent_by_it_it_has_again() -> None:
    sizes = fitted(edges(3, 4096, 4096), 0, ANYTHING, {"a>b1": MIB, "a>gone": MIB})
    assert sizes == {"a>b0": 4096, "a>b1": MIB, "a>b2": 4096}


@pytest.mark.parametrize(
    ("there", "kind", "words"),
    [
        (Room(64 * MIB, None), "shared", "64,000,000|67,108,864 bytes of shared memory are free.*--shm-size"),
        (Room(1 << 40, 64 * MIB), "memory", "67,108,864 bytes of memory is all .* a higher limit of memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sum_and_the_limit(there: Room, kind: str, words: str) -> None:
    huge = Edge(9, "a", "huge", False, 128 * MIB, 128 * MIB)
    with pytest.raises(RingsDoNotFit, match=words) as refused:
        fitted([*edges(2, MIB, MIB), huge], 8192, there, {})
    error = refused.value
    assert error.needed == 130 * MIB + 3 * PAGE + 8192
    assert (error.limit, error.kind, error.rings) == (64 * MIB, kind, 3)
    assert (error.largest, error.largest_bytes) == ("a>huge", 128 * MIB)
    assert f"{error.needed:,}" in str(error)
    assert "a>huge, has 134,217,728" in str(error)


SIZES = st.integers(12, 24).map(lambda power: 1 << power)
ROOMS = st.builds(Room, st.none() | st.integers(1 << 16, 1 << 32), st.none() | st.integers(1 << 16, 1 << 34))


@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=60), ROOMS, st.integers(0, 1 << 20))
def test_every_ring_is_between_its_least_and_its_most_and_all_fit(
    ends: list[tuple[int, int]], there: Room, other: int
) -> None:
    asked = [Edge(i, "a", f"b{i}", False, max(pair), min(pair)) for i, pair in enumerate(ends)]
    least = {edge.name: max(edge.least_ring, min(LEAST_RING, edge.ring_bytes)) for edge in asked}
    all_there_is = min([free for free in (there.shared, there.memory) if free is not None], default=1 << 60)
    if other + taken(least) > all_there_is:
        with pytest.raises(RingsDoNotFit):
            fitted(asked, other, there, {})
        return
    sizes = fitted(asked, other, there, {})
    for edge in asked:
        check_capacity(sizes[edge.name])
        assert edge.least_ring <= sizes[edge.name] <= edge.ring_bytes
    assert other + taken(sizes) <= all_there_is
    share = min([1 << 60, *(free // part for free, part in ((there.shared, 2), (there.memory, 4)) if free)])
    assert other + taken(sizes) <= share or sizes == least


@given(st.integers(1, largest_message(MAX_CAPACITY)))
def test_the_ring_for_a_message_is_the_smallest_that_holds_it(size: int) -> None:
    ring = ring_for(size)
    check_capacity(ring)
    assert largest_message(ring) >= size
    assert ring == MIN_CAPACITY or largest_message(ring // 2) < size


@pytest.mark.parametrize(
    ("value", "what", "hint"),
    [
        (True, "not a whole number", "a power of two, 4096 or more"),
        (4096.0, "not a whole number", "4096 or more"),
        ("1M", "not a whole number", "4096 or more"),
        (0, "out of range", "4096 or more"),
        (-4096, "out of range", "4096 or more"),
        (2048, "out of range", "4096 or more"),
        (1 << 32, "out of range", "2147483648 at most"),
        (5000, "not a power of two", "take 4096 or 8192"),
    ],
)
def test_what_is_no_size_of_a_ring_is_told_with_what_is(value: object, what: str, hint: str) -> None:
    wrong = ring_wrong(value)
    assert wrong is not None
    assert wrong[0] == what
    assert hint in wrong[1]


def test_sizes_of_rings_are_powers_of_two() -> None:
    assert [ring_wrong(size) for size in (4096, MIB, MAX_CAPACITY)] == [None] * 3


def test_the_default_of_a_message_is_what_a_ring_holds() -> None:
    assert default_message(None) == default_message(MIB) == 256 << 10
    assert default_message(4096) == largest_message(4096)
    assert default_message("nonsense") == 256 << 10


# ------------------------------------------------------------------------------------------------ what there is
def test_there_is_some_room_here() -> None:
    here = room()
    assert here.memory is not None
    assert here.memory > 64 * MIB
    assert here.shared is None or here.shared > 0


def test_the_memory_limit_is_the_least_of_the_control_groups(tmp_path: Path) -> None:
    for name, text in {"": "max", "jobs": "5000000", "jobs/7": "7000000"}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "memory.max").write_text(text + "\n")
    assert memory_limit(b"0::/jobs/7\n", tmp_path) == 5000000
    assert memory_limit(b"0::/jobs\n", tmp_path) == 5000000
    assert memory_limit(b"0::/\n", tmp_path) is None
    assert memory_limit(b"nonsense\n", tmp_path) is None


def test_a_container_shows_its_own_limit_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("64000000\n")
    assert memory_limit(b"0::/docker/0123\n", tmp_path) == 64000000


def test_the_memory_limit_of_the_first_kind_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "memory" / "jobs").mkdir(parents=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory" / "jobs" / "memory.limit_in_bytes").write_text("1000000\n")
    assert memory_limit(b"5:cpu,memory:/jobs\n1:cpu:/else\n", tmp_path) == 1000000
