"""What a benchmark ran on: without it, a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

from bus import RING_IMPLEMENTATION

ROOT = Path(__file__).parents[2]
PACKAGES = ("ringleader", "msgspec", "multiprocess", "cloudpickle", "psutil", "pyzmq")


class Machine(msgspec.Struct, frozen=True):
    system: str
    processor: str
    processors: int
    memory_bytes: int
    file_system: str  # where the journals were


class Revision(msgspec.Struct, frozen=True):
    commit: str  # empty if this is not a checkout
    changed: bool  # there were changes that are not committed


def machine(directory: Path) -> Machine:
    return Machine(
        f"{platform.system()} {platform.release()} {platform.machine()}",
        _processor(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        psutil.virtual_memory().total,
        _file_system(directory),
    )


def versions() -> dict[str, str]:
    found = {"python": f"{platform.python_implementation()} {sys.version.split()[0]}", "ring": RING_IMPLEMENTATION}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def revision() -> Revision:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return Revision(commit or "", bool(changes))


def load() -> float:
    """Processes that wanted to run in the last minute, other people's too."""
    return os.getloadavg()[0]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _file_system(directory: Path) -> str:
    """The one with the longest mount point that lies above the directory."""
    resolved = directory.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if resolved.is_relative_to(one.mountpoint)]
    best = max(mounts, key=lambda one: len(one.mountpoint), default=None)
    return "" if best is None else f"{best.fstype} ({best.device})"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
