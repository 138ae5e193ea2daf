"""The tables of README.md name tests that exist, and every fault and every mutation has its line."""

from __future__ import annotations

import re
from pathlib import Path

from tests.torture.sabotage import MUTATIONS

ROOT = Path(__file__).parents[2]
README = (Path(__file__).parent / "README.md").read_text()
FAULTS = 22  # rows of the table of faults


def section(title: str) -> list[str]:
    """The rows of its table, but for the head."""
    text = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_every_fault_names_tests_that_exist() -> None:
    rows = section("Faults")
    assert len(rows) == FAULTS
    missing = []
    for row in [*rows, *section("Sabotage")]:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for path, name in named:
            file = ROOT / path
            if not file.exists() or f"def {name}(" not in file.read_text():
                missing.append(f"{path}::{name}")
    assert not missing


def test_every_mutation_is_caught_by_its_suite() -> None:
    mine = [row for row in section("Sabotage") if "test_sabotage_is_caught" in row]
    assert len(mine) == len(MUTATIONS)
    assert len(section("Sabotage")) >= 6
