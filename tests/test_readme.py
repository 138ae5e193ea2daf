"""The README is true: its snippets run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = {0: "quickstart.py", 2: "ilm_quickstart.py"}  # snippet -> the example that it is
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(script: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "RINGLEADER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("number", "example"), EXAMPLES.items())
def test_snippets_that_are_examples(number: int, example: str) -> None:
    assert PYTHON[number] == (ROOT / "examples" / example).read_text()


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_snippet_runs(tmp_path: Path, number: int) -> None:
    script = tmp_path / f"snippet{number}.py"
    script.write_text(PYTHON[number])
    done = run(script, tmp_path / "home")
    assert (done.returncode, done.stderr) == (0, "")
    if number in EXAMPLES:
        shown = re.search(rf"\$ python examples/{EXAMPLES[number]}\n((?:    .*\n)+)", README)
        assert shown is not None
        assert [line.strip() for line in shown[1].splitlines()] == done.stdout.splitlines()


def test_every_command_exists() -> None:
    commands = sorted(set(re.findall(r"`ringleader ([a-z-]+(?: [a-z]+)?)", README.replace("\n", " "))))
    assert len(commands) >= 4
    for command in commands:
        done = CliRunner().invoke(app, [*command.split(), "--help"])
        assert done.exit_code == 0, f"ringleader {command} --help: {done.stderr!r}"


def test_every_file_named_is_there() -> None:
    for name in re.findall(r"(?:\]\(|`)((?:actors|bus|persist|tests|examples)/[\w/.]+)", README):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_every_promise_names_a_test_that_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [(ROOT / "actors" / name).read_text() for name in ("SEMANTICS.md", "SUPERVISION.md")]
    named = [name for page in pages for name in re.findall(r"`(test_\w+)`", page)]
    assert len(named) > 20
    missing = [name for name in named if f"def {name}(" not in tests]
    assert not missing
