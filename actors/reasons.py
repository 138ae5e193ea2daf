"""How a death is told: one line that names the cause, then as much of the last words as there is room for.

Pure. What is known of a death is more than its exit code, and the best known cause comes first:

    killed by the supervisor    and why: hung, not up in time, did not stop in time
    killed for memory           the kernel has said so (`evidence`), or an exception was a MemoryError
    killed by a signal          by name; where the process was, if it crashed
    an exit code                what it stands for, and the exception

The exit code or the signal is named in any case, in the words of `exits.describe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from actors.exits import describe

LIMIT = 1000  # bytes of an account
CRASH = "Fatal Python error: "  # how a dump of faulthandler begins
_CRASH_SIGNALS = frozenset({4, 6, 7, 8, 11})  # SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV
_KILL = 9
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a death.

    code          the exit code, minus the signal, None if there never was a process
    words         the traceback that the worker left, or why it could not start
    dump          what faulthandler wrote, if anything
    killed        why the supervisor killed it; empty if it did not
    requested     its end was asked for
    memory        what the kernel says, if it killed it for memory
    memory_bytes  the limit of its address space
    """

    code: int | None
    words: str = ""
    dump: str = ""
    killed: str = ""
    requested: bool = False
    memory: str = ""
    memory_bytes: int | None = None


def tell(facts: Facts) -> str:
    """The reason, in one line."""
    ended = describe(facts.code)
    last = _last_line(facts.words)
    if facts.killed:
        return f"{facts.killed}; {ended}"
    if facts.code == -_KILL and facts.memory:
        return f"killed for memory: {facts.memory}; {ended}"
    if facts.requested and facts.code == 0:
        return f"stopped by request; {ended}"
    if facts.code is not None and -facts.code in _CRASH_SIGNALS:
        where = _innermost(crash(facts.dump))
        if where:
            return f"{ended} in {where}"
    if is_memory_error(last):
        limit = f" of {facts.memory_bytes:,} bytes" if facts.memory_bytes is not None else ""
        own = "its own memory limit" if limit else "memory"
        return f"ran out of {own}{limit}; {ended}: {last}"
    return f"{ended}: {last}" if last else ended


def account(reason: str, facts: Facts, limit: int = LIMIT) -> str:
    """The reason and the last words, in at most `limit` bytes of UTF-8.

    Of a traceback the end is kept, which says what happened; of a crash the beginning, where the innermost frames are.
    """
    head = _cut(reason, limit)
    room = limit - len(head.encode()) - 1
    dump = crash(facts.dump) if facts.code is not None and facts.code < 0 else ""
    words = _plain(facts.words).strip()
    rest = _cut(dump, room) if dump else _cut_front(words, room)
    return f"{head}\n{rest}" if rest and rest != head else head


def crash(dump: str) -> str:
    """The crash in what faulthandler wrote: the last one, for nothing is written after it. Empty if there is none."""
    at = _plain(dump).rfind(CRASH)
    return _plain(dump)[at:].strip() if at >= 0 else ""


def is_memory_error(line: str) -> bool:
    return line.startswith("MemoryError") or "[Errno 12]" in line


def _innermost(dump: str) -> str:
    """The frame where it happened: that of the thread at work, or of the first one that has any."""
    current = dump.find("Current thread")
    frame = _FRAME.search(dump, max(0, current))
    if frame is None:
        return ""
    return f"{frame['name']} ({frame['file'].rpartition('/')[2]}:{frame['line']})"


def _last_line(words: str) -> str:
    lines = _plain(words).strip().splitlines()
    return lines[-1].strip() if lines else ""


def _plain(text: str) -> str:
    """As it can be encoded: file names may hold what is no text."""
    return text.encode("utf-8", "replace").decode()


def _cut(text: str, limit: int) -> str:
    return _plain(text).encode()[: max(0, limit)].decode("utf-8", "ignore")


def _cut_front(text: str, limit: int) -> str:
    return text.encode()[-limit:].decode("utf-8", "ignore") if limit > 0 else ""
