"""Runs an example as a user does, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE = 90.0


def run_example(name: str, *args: object, home: Path, expect: int = 0) -> list[str]:
    """The lines that it printed. `home` takes the run directories of systems that name none."""
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "RINGLEADER_HOME": str(home / "ringleader"), "COLUMNS": "120"},
    )
    assert finished.returncode == expect, (
        f"{finished.args} ended with {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    )
    return (finished.stdout if expect in {0, 1} else finished.stderr).splitlines()
