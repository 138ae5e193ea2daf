"""Failpoints: comment lines of the sources, `# failpoint: append-written`, that are calls in a torture run.

What is in C, the ring, the doorbell and the sender, has the same points as in Python, `FAILPOINT("ring-claimed")`, in a
build of its own. A run with that build has them there only: the lines of these modules in Python stay comments.

A comment costs nothing, so the sources carry a failpoint at every step. In a process with the hook installed, the
packages are compiled from their sources with each such line replaced, so line numbers stay. No .pyc of the interpreter
is read or written; what was compiled is kept beside the file by which failpoints are armed.

That file is mapped by every process of a run. Each point has a word of its own which says how many hits are left until
it acts, 0 if it is not armed; so a point that is not armed costs one look at shared memory. A point acts once, whoever
comes first, and then tells in whom.
"""

from __future__ import annotations

import builtins
import marshal
import mmap
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGES = ("actors", "bus", "persist")
IN_C = {"bus._ring": ("bus.ring", "bus.doorbell"), "bus._send": ("bus.send",)}  # extension -> the same in Python
ROOT = Path(__file__).parents[2]
VARIABLE = "RINGLEADER_FAILPOINTS"  # names the directory of a run
WORKER, SUPERVISOR = 1, 2  # in whom a point acts: any worker, or the process with the supervisor and the gateway
ACTIONS = ("exit", "SIGKILL", "SIGSEGV", "SIGSTOP", "error", "tear")
FLAGS = (
    "up",
    "pile",
    "raise",
    "carry",
    "poison",
    "keep",
    "hold",
    "rest",
    "finish",
)  # between the harness and what is tortured

_LINE = re.compile(rb"^([ \t]*)# failpoint: ([a-z-]+)[ \t]*$", re.MULTILINE)
_MOST = 256  # points
_LEFT, _ACTION, _ROLE, _PID, _SERIAL = range(5)


class FailpointError(RuntimeError):
    """What the action `error` raises."""


def points_of(path: Path) -> list[str]:
    """The names of its failpoints. A name may stand in several places of a file: the same step, done in another way."""
    return list(dict.fromkeys(name.decode() for _, name in _LINE.findall(path.read_bytes())))


def points() -> list[str]:
    """The names of all failpoints in the sources."""
    names = [
        name for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) for name in points_of(path)
    ]
    assert len(set(names)) == len(names) <= _MOST, "a failpoint has the name of one in another module"
    return names


def ring_points() -> list[str]:
    """Those that both rings have."""
    return _points_in("bus._ring")


def points_in_c() -> list[str]:
    """All that are in C too."""
    return [name for extension in IN_C for name in _points_in(extension)]


def _points_in(extension: str) -> list[str]:
    return [name for module in IN_C[extension] for name in points_of(ROOT / f"{module.replace('.', '/')}.py")]


def with_calls(source: bytes, call: Callable[[str], str]) -> bytes:
    """The source with each of its failpoints being this call of `__failpoint__`."""
    return _LINE.sub(lambda found: found[1] + call(found[2].decode()).encode(), source)


class Switchboard:
    """The mapped file. One process arms, all of them look."""

    def __init__(self, folder: Path, *, create: bool = False, ring: Path | None = None) -> None:
        self.folder = folder
        if create:
            (folder / "cache").mkdir()
            (folder / "ring").write_text(str(ring or ""))
            (folder / "points").write_text("\n".join(points()))
            (folder / "armed").write_bytes(bytes(8 * (len(FLAGS) + 1 + 5 * _MOST)))
        self.names = (folder / "points").read_text().split()
        self.ring = (folder / "ring").read_text()  # the C ring with failpoints, the sender beside it; "": in Python
        self.index = {name: at for at, name in enumerate(self.names)}
        with open(folder / "armed", "r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self.left, self._action, self._role, self._pid, self._serial = (
            words[at * _MOST : (at + 1) * _MOST] for at in range(5)
        )
        self._rest = words[5 * _MOST :]  # the supervisor's process, then the flags

    def arm(self, name: str, action: str, nth: int, role: int, serial: int) -> None:
        at = self.index[name]
        self._action[at], self._role[at], self._pid[at] = ACTIONS.index(action), role, 0
        self._serial[at] = serial
        self.left[at] = nth

    def disarm(self, name: str) -> None:
        self.left[self.index[name]] = 0

    def claimed(self, name: str) -> float:
        """Since when (time of the file system) somebody is about to act; 0 if nobody is."""
        try:
            return (self.folder / f"acted-{self._serial[self.index[name]]}").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def state(self, name: str) -> str:
        at = self.index[name]
        claim = self.folder / f"acted-{self._serial[at]}"
        return f"{self.left[at]} hits left, claimed: {claim.exists()}, acted in {self._pid[at]}"

    def acted_in(self, name: str) -> int:
        """The process in which it acted; 0 if it has not."""
        return self._pid[self.index[name]]

    def supervise(self) -> None:
        """This process is the one with the supervisor."""
        self._rest[0] = os.getpid()

    def set(self, flag: str, value: int = 1) -> None:
        self._rest[1 + FLAGS.index(flag)] = value

    def flag(self, name: str) -> int:
        return self._rest[1 + FLAGS.index(name)]

    def hit(self, at: int) -> None:
        """An armed point was come by."""
        me = os.getpid()
        if self._role[at] != (SUPERVISOR if me == self._rest[0] else WORKER):
            return
        left = self.left[at]
        if left > 1:
            self.left[at] = left - 1
            return
        if not left:
            return
        try:
            os.close(os.open(self.folder / f"acted-{self._serial[at]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self.left[at] = 0
        self._pid[at] = me
        _act(ACTIONS[self._action[at]], self.names[at])


def _act(action: str, name: str) -> None:
    match action:
        case "exit":
            os._exit(1)
        case "error":
            raise FailpointError(name)
        case "tear":
            # Half of what is about to be written is; only a kernel that dies does this.
            frame: Any = sys._getframe(3).f_locals
            frame["self"]._file.write(frame["data"][: len(frame["data"]) // 2], frame["offset"])
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            os.kill(os.getpid(), signal.Signals[action])


_board: Switchboard | None = None


def switchboard() -> Switchboard:
    """Of this process."""
    assert _board is not None
    return _board


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        assert _board is not None
        kept = _board.folder / "cache" / fullname
        try:
            code: CodeType = marshal.loads(kept.read_bytes())
            return code
        except FileNotFoundError:
            pass
        index, source = _board.index, self.get_data(self.path)
        if not (_board.ring and any(fullname in modules for modules in IN_C.values())):
            source = with_calls(source, lambda name: f"__failpoint__({index[name]})")
        code = compile(source, self.path, "exec", dont_inherit=True)
        new = kept.with_name(f"{fullname}.{os.getpid()}")
        new.write_bytes(marshal.dumps(code))
        new.rename(kept)
        return code


class _CLoader(ExtensionFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        assert _board is not None
        index = _board.index
        failpoint = vars(builtins)["__failpoint__"]
        module.on_failpoint(lambda name: failpoint(index[name]))  # no other build has this


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        assert _board is not None
        if fullname in IN_C and _board.ring:
            built = str(next(Path(_board.ring).parent.glob(f"{fullname.rpartition('.')[2]}.*")))
            return spec_from_file_location(fullname, built, loader=_CLoader(fullname, built))
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(folder: str) -> None:
    """In this process, before any of the packages is imported."""
    global _board
    _board = board = Switchboard(Path(folder))
    left, hit = board.left, board.hit

    def failpoint(at: int) -> None:
        if left[at]:
            hit(at)

    vars(builtins)["__failpoint__"] = failpoint
    sys.meta_path.insert(0, _Finder())
