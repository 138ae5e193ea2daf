"""What stream transports decide, without clock, dice or socket: when to try again, who is dead, which connection stays.

All times are seconds; `now` and the like are of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.streams.addresses import PeerId
from bus.streams.handshake import encode_id

LONGEST_HEARTBEAT = 60.0  # of what a peer may announce


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a transport is.

    handshake      a connection that does not stand by then is given up; connecting and TLS count
    heartbeat      something is sent at least this often
    missed         so many heartbeats in a row may be missing; the peer announces how long its heartbeat is
    retry_first    before connecting again for the first time; doubles with every failure
    retry_longest  up to this; also what is waited after a failure that somebody has to mend
    steady         a connection that stood for this long ends a row of failures
    linger         for `close`: how long the last frames may take to leave
    """

    handshake: float = 5.0
    heartbeat: float = 2.0
    missed: int = 4
    retry_first: float = 0.05
    retry_longest: float = 5.0
    steady: float = 1.0
    linger: float = 1.0

    def __post_init__(self) -> None:
        for name in ("handshake", "heartbeat", "missed", "retry_first", "retry_longest"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than {getattr(self, name)}")
        if not 0.001 <= self.heartbeat <= LONGEST_HEARTBEAT:
            raise ValueError(f"a heartbeat every {self.heartbeat} s: give 0.001 to {LONGEST_HEARTBEAT:g}")


def retry_delay(timing: Timing, failures: int, lasting: bool, dice: float) -> float:
    """Before trying to connect again after so many failures in a row; `dice`, from 0 to 1, keeps peers apart that all
    lost the same one."""
    longest = timing.retry_longest
    doubled = longest if lasting else timing.retry_first * 2.0 ** min(max(0, failures - 1), 32)
    return min(longest, doubled) * (0.5 + 0.5 * dice)


def failures_after(timing: Timing, failures: int, stood: float) -> int:
    """How long the row of failures is, once a connection has ended that stood for so long."""
    return 1 if stood >= timing.steady else failures + 1


def silence_limit(timing: Timing, announced: float) -> float:
    """How long the peer may be silent that announced to be heard this often."""
    return (timing.missed + 1) * min(announced, LONGEST_HEARTBEAT)


@dataclass(slots=True)
class Pulse:
    """When one connection was last heard. `looks` come regularly; one that comes late says that this process stood
    still itself, so that what it did not hear counts for nothing."""

    limit: float
    heard: float
    looked: float

    def look(self, now: float, every: float, deaf: bool) -> float | None:
        """How long the peer has been silent, if that is too long. `deaf`: this end does not read at the moment."""
        late = now - self.looked > 2 * every
        self.looked = now
        if deaf or late:
            self.heard = now
        silent = now - self.heard
        return silent if silent > self.limit else None

    def suspect(self, now: float, grace: float) -> None:
        """The peer asked for another connection: it must be heard on this one within the grace, once."""
        self.heard = min(self.heard, now + grace - self.limit)


@dataclass(frozen=True, slots=True)
class Tie:
    """What is compared of two connections with the same peer."""

    instance: int
    outgoing: bool


def newer_stays(local: PeerId, peer: PeerId, older: Tie, newer: Tie) -> bool:
    """Of two connections with the same peer one stays, and both ends choose the same.

    A peer that was opened anew has no use for the older one, nor has one that connects again. Only if each end
    connected to the other, both may have meant to: then the connection stays that the lesser id asked for.
    """
    if older.instance != newer.instance or older.outgoing == newer.outgoing:
        return True
    return newer.outgoing == (encode_id(local) < encode_id(peer))
