"""The direction of the packages, and that what decides is apart from what acts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "actors": {"actors", "bus", "persist"},
    "bus": {"bus"},
    "bus.streams": {"bus"},
    "persist": {"persist"},
    "persist.ilm": {"persist"},
}

# Modules that only decide: no process, no file, no socket, no clock.
PURE = {
    "bus": {"errors", "layout"},
    "bus.streams": {"addresses", "errors", "events", "frames", "handshake", "policy"},
    "persist": {"errors", "format", "history_errors", "link", "names", "recovery", "retention"},
    "persist.ilm": {"backend", "errors", "flight", "identity", "message", "options", "session", "transport", "wire"},
    "actors": {
        "annotations", "attempts", "beside", "codec", "codec_runs", "codecs", "components", "control_progress",
        "control_protocol", "control_view", "declaration", "declared_rings", "errors", "exits", "fingerprint", "fixed",
        "fixed_runs", "handler", "handler_policy", "hang", "layout", "letter_commands", "log_record", "message",
        "message_pickler", "naming", "outgoing", "packing", "pause_request", "plan", "process_options", "reasons",
        "replies", "reserving", "restart", "resume", "ring_sizes", "sealed", "sends", "shipping", "spinning",
        "supervision", "system_errors", "table", "tickets", "unpacking", "validate", "validate_codecs",
        "validate_fixed", "validate_options", "validate_preload", "validate_rings", "validate_supervision", "views",
    },
}  # fmt: skip
ACTING = {
    "asyncio", "fcntl", "mmap", "multiprocess", "multiprocessing", "os", "psutil", "select", "selectors",
    "shutil", "socket", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package.replace(".", "/")).glob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of all imports, those for type checking only left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_downwards(package: str) -> None:
    for path in modules(package):
        ours = {name.split(".")[0] for name in imports(path)} & {"actors", "bus", "persist", "tests", "examples"}
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("package", sorted(PURE))
def test_pure_modules_touch_no_process_file_socket_or_clock(package: str) -> None:
    stems = {path.stem for path in modules(package)} - PURE[package] - {"__init__"}
    acting = {f"{package}.{stem}" for stem in stems}
    for name in sorted(PURE[package]):
        path = ROOT / package.replace(".", "/") / f"{name}.py"
        found = imports(path)
        assert not {one.split(".")[0] for one in found} & ACTING, f"{path.name} imports {found & ACTING}"
        assert not found & acting, f"{path.name}, which is pure, imports {found & acting}"


def test_every_module_says_what_it_is_for() -> None:
    for package in ALLOWED:
        for path in modules(package):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


def test_tests_mirror_packages() -> None:
    for folder in (ROOT / "tests").rglob("*.py"):
        # Otherwise `import bus` would find tests/bus.
        assert (folder.parent / "__init__.py").exists(), f"{folder.parent} is not a package"
