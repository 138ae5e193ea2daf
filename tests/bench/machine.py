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
OURS = ("ringleader", "msgspec", "cloudpickle", "psutil")
PEERS = ("pyzmq", "faster-fifo", "ray", "pykka", "redis", "nats-py")
SERVERS = ("redis-server", "nats-server")


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
    for package in OURS + PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found | {server: _said([server, "--version"]) for server in SERVERS}


def revision() -> Revision:
    return Revision(_said(["git", "rev-parse", "HEAD"]), bool(_said(["git", "status", "--porcelain"])))


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


def _said(command: list[str]) -> str:
    """What a command prints; nothing if it is not there, or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
