"""Sabotage: wrong orders and omissions, patched into the runtime of a worker, which the oracle must catch.

Where a mistake only shows when a process dies at the wrong moment, the patched runtime dies at that moment by itself,
once: a file beside the ledgers remembers it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from bus import Field
from persist import NEW, Inbound, Verdict
from persist.journal import Journal

COMMITS_BEFORE = 50  # the patched runtime lives for so many commits before it dies at the wrong moment
_patched: set[str] = set()


def sabotage(mutation: str, folder: Path) -> None:
    """Patch this process. Nothing for ''."""
    if mutation and mutation not in _patched:
        _patched.add(mutation)
        MUTATIONS[mutation](folder)


def _die_once(folder: Path, name: str, commits: int) -> None:
    if commits < COMMITS_BEFORE:
        return
    try:
        os.close(os.open(folder / f"died-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_before_commit(folder: Path) -> None:
    append, enter = Journal.append, Endpoint._enter_outbox
    endpoints: list[Endpoint] = []
    number = Endpoint._number

    def numbered(self: Endpoint, runs: Any) -> Any:
        endpoints[:] = [self]
        return number(self, runs)

    def appended(self: Journal, transaction: Any) -> int:
        endpoint = endpoints[0]
        if transaction.sends:
            enter(endpoint, transaction.sends, 0)
            endpoint.publish()
            _die_once(folder, f"publish-{endpoint.me.name}", endpoint.cells[Field.COMMITS])
        return append(self, transaction)

    Endpoint._number = numbered  # type: ignore[method-assign]
    Endpoint._enter_outbox = lambda self, sends, position: None  # type: ignore[method-assign]
    Journal.append = appended  # type: ignore[method-assign]


def _head_before_commit(folder: Path) -> None:
    commit = Endpoint.commit

    def committed(self: Endpoint, *arguments: Any, **named: Any) -> None:
        for link in self.links:
            if link.consuming is not None and link.inbound.seen != link.inbound.watermark:
                link.consuming.release()
        _die_once(folder, f"head-{self.me.name}", self.cells[Field.COMMITS])
        commit(self, *arguments, **named)

    Endpoint.commit = committed  # type: ignore[method-assign]


def _acknowledge_before_commit(folder: Path) -> None:
    commit = Endpoint.commit

    def committed(self: Endpoint, *arguments: Any, **named: Any) -> None:
        from bus import Cell

        for link in self.links:
            if link.consuming is not None and link.inbound.seen != link.inbound.watermark:
                link.consuming.set(Cell.ACK, link.inbound.seen)
                link.consuming.release()
        _die_once(folder, f"ack-{self.me.name}", self.cells[Field.COMMITS])
        commit(self, *arguments, **named)

    Endpoint.commit = committed  # type: ignore[method-assign]


def _no_dedupe(folder: Path) -> None:
    admit = Inbound.admit

    def admitted(self: Inbound, first: int, count: int) -> Verdict:
        verdict = admit(self, first, count)
        if first <= self.seen:
            self.seen = first - 1
            return NEW
        return verdict

    Inbound.admit = admitted  # type: ignore[method-assign]


def _state_outside(folder: Path) -> None:
    prepare = Dispatcher.prepare

    def prepared(self: Dispatcher) -> Any:
        return prepare(self)._replace(states=[])

    Dispatcher.prepare = prepared  # type: ignore[method-assign]


def _wrong_watermark(folder: Path) -> None:
    take, first = Endpoint.take, [True]

    def taken(self: Endpoint, *arguments: Any) -> Any:
        if first and first.pop():  # what recovery has found is one too high
            for link in self.links:
                if link.inbound.watermark:
                    link.inbound = Inbound(link.inbound.watermark + 1)
        return take(self, *arguments)

    Endpoint.take = taken  # type: ignore[assignment, method-assign]


MUTATIONS = {
    "wrong watermark after recovery": _wrong_watermark,
    "publish before commit": _publish_before_commit,
    "head before commit": _head_before_commit,
    "acknowledge before commit": _acknowledge_before_commit,
    "no dedupe": _no_dedupe,
    "state outside the transaction": _state_outside,
}
