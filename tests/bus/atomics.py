"""The atomic operations of the C sources: in which function, which one, in which order of memory."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.bus.variants import SOURCES

KINDS = {"load_n": "load", "store_n": "store", "exchange_n": "exchange", "thread_fence": "fence"}
_FUNCTION = re.compile(r"^(?:[\w*]+ )+\*?(\w+)\([^;]*?\)\s*\{", re.MULTILINE)
_ATOMIC = re.compile(r"__atomic_(\w+)\(([^;]*?)__ATOMIC_(\w+)\)")


class Atomic(NamedTuple):
    file: str
    function: str
    number: int  # in its function
    kind: str
    order: str
    text: str  # as it stands in the source


def atomics() -> list[Atomic]:
    found: list[Atomic] = []
    for path in SOURCES:
        source = path.read_text()
        starts = [(one.start(), one[1]) for one in _FUNCTION.finditer(source)]
        for one in _ATOMIC.finditer(source):
            function = [name for start, name in starts if start < one.start()][-1]
            number = sum(other.function == function for other in found)
            found.append(Atomic(path.name, function, number, KINDS[one[1]], one[3], one[0]))
        assert source.count("__atomic_") == sum(one.file == path.name for one in found), path.name
        assert "__sync_" not in source, path.name
        assert "stdatomic" not in source, path.name
    return found
