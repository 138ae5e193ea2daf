"""Builds of the C ring other than the normal one, each into a directory of its own, where nothing else picks it up."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "bus").glob("_*.[ch]"))
FAILPOINTS = "-DRING_FAILPOINTS"


class Edit(NamedTuple):
    """A mistake to build in: this text of this file, which stands there once, becomes that one."""

    file: str
    text: str
    instead: str


# As if the tail were moved when there is room for the record, before it is whole.
TAIL_FIRST = Edit(
    "_ring_core.h",
    "    *start = tail + skip;\n    return RING_OK;\n",
    "    *start = tail + skip;\n    ring_store(end, TAIL, after);\n    return RING_OK;\n",
)


def copy_sources(place: Path, edits: Iterable[Edit] = ()) -> None:
    for source in SOURCES:
        shutil.copy(source, place)
    for edit in edits:
        file = place / edit.file
        before = file.read_text()
        assert before.count(edit.text) == 1, f"{edit.file} has {edit.text!r} {before.count(edit.text)} times"
        file.write_text(before.replace(edit.text, edit.instead))


def build(place: Path, *flags: str, edits: Iterable[Edit] = ()) -> Path:
    """The extension `bus._ring`, compiled as always but for these flags and edits; `place` is made."""
    (place / "bus").mkdir(parents=True)
    copy_sources(place / "bus", edits)
    shutil.copy(ROOT / "setup.py", place)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built"],
        cwd=place,
        env=os.environ | {"CFLAGS": " ".join(flags), "RINGLEADER_REQUIRE_C": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next((place / "built" / "bus").glob("_ring.*so"))


def load(path: Path) -> ModuleType:
    """That build, beside the normal one, which stays what `import bus._ring` gives."""
    spec = importlib.util.spec_from_file_location("bus._ring", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
