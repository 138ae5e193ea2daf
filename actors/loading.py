"""Finds the topology in a Python file: `FILE` or `FILE:NAME`, for `ringleader run`.

What holds:
- The file is imported, not run: what stands under `if __name__ == "__main__"` does not happen.
- It goes by the name it would be imported by, so its messages are the same as when the file is run as a script, and a
  system started either way resumes what the other left. Its folder comes first on the path, as for a script; for a file
  inside a package it is the folder that holds the package.
- What the file defines reaches the workers by value: an incarnation started later runs the code that the system was
  started with, whatever has become of the file.
- On any error nothing stays imported.
"""

from __future__ import annotations

import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import cloudpickle

from actors.errors import RingleaderError
from actors.topology import Topology


class CannotLoad(RingleaderError):
    """The file cannot be imported; `trace` is the part of the traceback that lies in the user's code, if any."""

    def __init__(self, file: str, reason: str, trace: str = "") -> None:
        super().__init__(file, reason, trace)
        self.file, self.reason, self.trace = file, reason, trace

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class NoTopology(RingleaderError):
    """The file has no topology of that name (empty: none that could be meant without a name), only `candidates`."""

    def __init__(self, file: str, name: str, candidates: tuple[str, ...], found: str = "") -> None:
        super().__init__(file, name, tuple(candidates), found)
        self.file, self.name, self.candidates, self.found = file, name, tuple(candidates), found

    def __str__(self) -> str:
        if self.name and self.found:
            what = f"{self.file}: {self.name!r} is not a Topology but {self.found}"
        elif self.name:
            what = f"{self.file} has no Topology {self.name!r}"
        elif self.candidates:
            what = f"{self.file} has more than one Topology: choose with {self.file}:NAME"
        else:
            return (
                f"{self.file} has no Topology at the top level of the module "
                "(one that is made in a function or under `if __name__ == ...` is not seen)"
            )
        return f"{what}; there {'is' if len(self.candidates) == 1 else 'are'} {', '.join(self.candidates) or 'none'}"


def load_topology(target: str) -> Topology:
    """The topology that `FILE` or `FILE:NAME` means. NAME is a variable of the module, or the topology's own name.

    Raises CannotLoad and NoTopology.
    """
    file, name = split(target)
    return find(import_file(file), name)


def split(target: str) -> tuple[Path, str]:
    """(file, name or empty). A file whose name has a colon in it is found all the same."""
    file, colon, name = target.rpartition(":")
    if not colon or Path(target).exists():
        file, name = target, ""
    path = Path(file)
    if path.is_dir():
        raise CannotLoad(file, "is a directory; name the file that has the topology")
    if not path.is_file():
        hint = f"; there is {file}.py" if Path(f"{file}.py").is_file() else ""
        raise CannotLoad(file, f"there is no such file{hint}")
    return path, name


def import_file(path: Path) -> ModuleType:
    """The file as a module; the same one when asked again."""
    path = path.resolve()
    name, root = _place(path)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or name in sys.stdlib_module_names:
        raise CannotLoad(str(path), f"its name hides the module {name!r} that is needed itself: rename the file")
    spec = spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    paths = list(sys.path)
    sys.path[:] = [str(root), *(one for one in paths if one != str(root))]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        sys.path[:] = paths
        if isinstance(error, KeyboardInterrupt):
            raise
        # SystemExit too: status 0 would say that the system ran.
        reason = f"importing it failed with {type(error).__name__}"
        raise CannotLoad(str(path), f"{reason}: {error}" if str(error) else reason, _trace(error, path)) from error
    cloudpickle.register_pickle_by_value(module)
    return module


def find(module: ModuleType, name: str = "") -> Topology:
    """The only topology among the module's variables, or the one of this name."""
    file = Path(module.__file__ or module.__name__).name
    found = {key: value for key, value in vars(module).items() if isinstance(value, Topology)}
    distinct = {id(value): value for value in found.values()}
    candidates = tuple(key if key == value.name else f"{key} ({value.name})" for key, value in found.items())
    if not name:
        if len(distinct) == 1:
            return distinct.popitem()[1]
        raise NoTopology(file, "", candidates)
    if name in found:
        return found[name]
    by_own_name = [value for value in distinct.values() if value.name == name]
    if len(by_own_name) == 1:
        return by_own_name[0]
    other = vars(module).get(name)
    raise NoTopology(file, name, candidates, "" if other is None else f"a {type(other).__name__}")


def _place(path: Path) -> tuple[str, Path]:
    """The name to import a file by, and the folder which has to be on the path for that."""
    name, root = path.stem, path.parent
    while (root / "__init__.py").is_file() and root.name:
        name, root = f"{root.name}.{name}", root.parent
    return name, root


def _trace(error: BaseException, path: Path) -> str:
    """The traceback from the first line of the user's file on; for a syntax error that line alone."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    if trace is None and not isinstance(error, SyntaxError):
        return ""
    return "".join(traceback.format_exception(type(error), error, trace))
