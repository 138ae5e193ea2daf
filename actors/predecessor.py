"""What a start does about the run before it, with the run directory locked: nobody else can be at work there.

In this order: the segments of one that was killed go, journals change hands where the user of a worker has changed, the
state of handlers that moved is carried to their new journals, and the new identity is written. A crash in between only
repeats it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

import msgspec

from actors.exits import ExitStatus
from actors.handing_over import hand_over_journals, users_of
from actors.identity import EdgeIdentity, Identity, new_identity, stale_prefix
from actors.plan import Plan
from actors.resume import Names
from actors.ring_sizes import DEFAULT_RING, fitted
from actors.room import room
from actors.rundir import RunDirectory
from actors.takeover import Move, carry, moves
from actors.user_account import Account
from actors.wiring import board_name, ring_name
from bus import Board, Field, LayoutError, Segment, SegmentMissing, board_size
from bus.segment import remove_stale
from persist import Journal, Recovered, Snapshot, read


class Suspect(NamedTuple):
    """A message that was in progress when the run before was killed, the epoch of the worker that was at it, and
    whether it was the last of several."""

    peer: int  # index in the present plan
    seq: int
    epoch: int
    many: bool


Suspects = dict[str, Suspect]  # by worker
NOBODY_ELSE: Mapping[str, Account] = {}


def take_over(
    directory: RunDirectory, plan: Plan, accounts: Mapping[str, Account] = NOBODY_ELSE
) -> tuple[Identity, str, Suspects]:
    """The identity of this run, which is on record then, its session, which goes on until it has ended cleanly, and the
    messages that were in progress when the run before was killed: one of them may have done it."""
    old, ending = directory.read_identity(), directory.read_exit()
    suspects: Suspects = {}
    if old is not None:
        suspects = _in_progress(old, plan)
        remove_stale(stale_prefix(old))
        # failpoint: stale-removed
    hand_over_journals(directory, plan, old, accounts)
    kept = kept_rings(old, _adopt(directory, plan, old))
    sizes = fitted(plan.edges, board_size(plan.peers), room(), kept)
    session = secrets.token_hex(4)
    if old is not None and old.session and (ending is None or ending.status != ExitStatus.OK):
        session = old.session
    identity = new_identity(plan.name)
    identity = msgspec.structs.replace(
        identity,
        session=session,
        level=plan.level,
        started_ns=time.time_ns(),
        board=board_name(identity.run_id),
        workers=tuple(worker.name for worker in plan.workers),
        handlers={worker.name: tuple(one.name for one in worker.handlers) for worker in plan.workers},
        groups=plan.paths,
        peers=plan.peers,
        edges=tuple(EdgeIdentity(e.source, e.target, ring_name(identity.run_id, e)) for e in plan.edges),
        rings=kept | sizes,
        users=users_of(accounts),
    )
    # Before the first segment exists: whoever comes after a crash finds its name.
    directory.write_identity(identity)
    # failpoint: identity-written
    return identity, session, suspects


def _in_progress(old: Identity, plan: Plan) -> Suspects:
    """What the board of a run that was killed says; nothing where there is none any more."""
    found: Suspects = {}
    try:
        with closing(Segment.attach(old.board)) as segment, closing(Board(segment.buf)) as board:
            for worker in (one.name for one in plan.workers if one.name in board.names):
                block = board.block(worker)
                peer, seq = block.get(Field.BUSY_PEER) - 1, block.get(Field.BUSY_SEQ)
                whence = block.get(Field.EPOCH), bool(block.get(Field.BUSY_MANY))
                if 0 <= peer < len(old.peers) and old.peers[peer] in plan.peers:
                    found[worker] = Suspect(plan.peers.index(old.peers[peer]), seq, *whence)
    except (SegmentMissing, LayoutError, OSError, ValueError):
        pass  # it ended by itself, the machine was restarted, or it was killed before there was a board
    return found


def kept_rings(old: Identity | None, journals: Mapping[str, Recovered]) -> dict[str, int]:
    """The rings of the last run, by the names of their edges, through which a sender may have to send something again:
    what it does not know to be consumed. By the journals, and by what the last run had itself kept."""
    before = old.rings if old is not None else {}
    pending = [
        f"{sender}>{receiver}"
        for sender, left in journals.items()
        for receiver, assigned in left.assigned.items()
        if sender != receiver and assigned > left.acked.get(receiver, 0)
    ]
    return {name: before.get(name, DEFAULT_RING) for name in pending}


def _adopt(directory: RunDirectory, plan: Plan, old: Identity | None) -> dict[str, Recovered]:
    """Carries the state of handlers that moved; returns what was in the journals. Before the new identity is written: a
    crash only repeats it."""
    found = {name: read(directory.journal(name)) for name in directory.journals()}
    for move in moves(plan, found, old.handlers if old is not None else {}):

        def first(recovered: Recovered | None, epoch: int, move: Move = move) -> Snapshot:
            target = recovered if recovered is not None else Recovered()
            carry(move, found[move.source], target)
            return Names(plan, move.target).first(target, None)

        journal = directory.journal(move.target)
        Journal.open(journal, epoch=0, level=plan.level, make_snapshot=first)[0].close()
    return found
