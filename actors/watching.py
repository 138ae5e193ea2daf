"""What a supervisor sees of its workers from outside: that one hangs, and what one has died of.

Hangs are decided by `hang`, causes are told by `reasons`; here is looked: at cells, at the kernel, at what was left.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence

from actors import hang
from actors.child import Child, Process
from actors.evidence import MemoryEvidence
from actors.orphans import Reaper
from actors.restart import ChildSpec, Death


class Watching:
    """Over all workers. `letter` asks the kernel for the state of a process; `memory_bytes` are their limits."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        limits: Mapping[str, hang.Limits] | None,
        memory_bytes: Mapping[str, int | None] | None,
        letter: Callable[[int], str],
    ) -> None:
        self._limits = limits or {spec.name: hang.Limits(spec.hung_after) for spec in specs}
        self._memory_bytes, self._letter = memory_bytes or {}, letter
        self._memory, self._reaper = MemoryEvidence(), Reaper()

    def look(self) -> None:
        """To be called at every turn."""
        self._memory.look()
        self._reaper.reap()

    def begin(self, child: Child) -> None:
        """Its new incarnation is watched from now on."""
        child.watch = hang.Watch(self._limits[child.name])

    def hung(self, child: Child, process: Process, now: float) -> hang.Hung | None:
        """Whether this incarnation, which was not killed yet, has to be."""
        if child.watch is None or child.kill_reason:
            return None
        return child.watch.look(now, hang.look_at(child.block), lambda: self._letter(process.pid))

    def death(self, child: Child, process: Process, code: int, asked: bool) -> Death:
        """Of a process that is proven dead and not closed yet, with all that is known of it. `asked`: it was to end."""
        foreign = code == -signal.SIGKILL and not child.kill_reason
        memory = self._memory.of(process.pid, process.title) if foreign else ""
        return child.death(code, asked, process.words(), memory, self._memory_bytes.get(child.name))

    def close(self) -> None:
        self._memory.close()
