"""Which tests run, and what is told of them, when they run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.side_by_side import parts, worst

ROOT = Path(__file__).parents[1]


def test_every_file_of_tests_is_in_one_part() -> None:
    there = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py"))
    assert sorted(file for part in parts() for file in part) == there
    assert str(Path(__file__).relative_to(ROOT)) in there
    assert all(parts())


@pytest.mark.parametrize(
    ("statuses", "told"),
    [([0, 0], 0), ([0, 1, 0], 1), ([1, 2], 2), ([5, 0], 0), ([5, 1], 1), ([5, 5], 5), ([0, 139], 139)],
)
def test_the_worst_status_is_told_and_a_part_without_tests_is_none(statuses: list[int], told: int) -> None:
    assert worst(statuses) == told
