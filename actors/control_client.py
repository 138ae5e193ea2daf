"""Sends commands to a running system through its control socket, and tells apart why none could be sent.

Every wait is bounded: a supervisor that is stopped or hangs accepts connections (the kernel does that) and never
answers; after `silence` seconds without a sign of life this is NotAnswering. One that takes long gives such signs. Who
stood still himself, with the whole machine maybe, cannot judge others: he begins to wait anew.
A socket that another user's process serves is not talked to; root's is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from actors import control_protocol as protocol
from actors.control_protocol import BadFrame, NotDone, Refused, Taken
from actors.control_socket import SOCKET, address, peer_of
from actors.errors import RingleaderError
from actors.rundir import NotYours, RunDirectory

AGAIN: Final = 0.02  # seconds; between two tries to connect while the queue of a stopped supervisor is full
LATE: Final = 0.25  # seconds that a wait may end too late; after more of them this process stood still

A = TypeVar("A", bound=msgspec.Struct)


class CannotAsk(RingleaderError):
    """The command did not reach the system, or what became of it is not known. `path` is the run directory."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class NobodyListens(CannotAsk):
    """There is no control socket, or only one that a dead supervisor has left."""


class NotAnswering(CannotAsk):
    """The supervisor is stopped, or hangs."""


class ConnectionLost(CannotAsk):
    """The supervisor ended before it answered."""


class NotUnderstood(CannotAsk):
    """Something answers, but not as this version does."""


def ask(path: Path, command: str, arguments: msgspec.Struct, answer: type[A], *, silence: float | None = None) -> A:
    """Has the system with that run directory carry out a command, and waits for the answer.

    `silence`: so many seconds without a sign of life mean that nobody is listening; `SILENCE` if not given.
    Raises Refused when the system says no, CannotAsk when it says nothing, NotYours when it is another user's.
    """
    silence = protocol.SILENCE if silence is None else silence
    with RunDirectory.open(path, create=False) as directory, _connect(directory, silence) as connection:
        connection.settimeout(silence)
        try:
            connection.sendall(protocol.request(command, arguments))
        except TimeoutError:
            raise _silent(path, silence) from None
        except OSError:
            pass  # it may have been refused before it was heard: the answer says why
        return _result(path, connection, silence, answer)


def _result(path: Path, connection: socket.socket, silence: float, answer: type[A]) -> A:
    received = bytearray()
    deadline = time.monotonic() + silence
    while True:
        try:
            body = protocol.taken_apart(received, protocol.MAX_ANSWER)
            if body is None:
                deadline = _receive(path, connection, received, deadline, silence)
                continue
            del received[: protocol.LENGTH.size + len(body)]
            said = protocol.read_answer(body)
            if isinstance(said, Taken):
                deadline = time.monotonic() + silence
            elif isinstance(said, NotDone):
                raise Refused(said.error, said.text, said.known)
            else:
                return msgspec.json.decode(said.value, type=answer)
        except (BadFrame, msgspec.DecodeError) as error:
            raise NotUnderstood(path, f"what its control socket says is not understood: {error}") from None


def _receive(path: Path, connection: socket.socket, received: bytearray, deadline: float, silence: float) -> float:
    """What comes next. Returns the deadline, which is another one if this process stood still meanwhile."""
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = connection.recv(65536)
            break
        except TimeoutError:
            now = time.monotonic()
            if now - deadline < LATE:
                raise _silent(path, silence) from None
            deadline = now + silence
        except ConnectionError:
            data = b""
            break
    if not data:
        raise ConnectionLost(path, "its supervisor ended the connection without an answer")
    received += data
    return deadline


def _connect(directory: RunDirectory, silence: float) -> socket.socket:
    path = directory.path
    try:
        found = os.stat(SOCKET, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        raise NobodyListens(path, "it has no control socket") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise NobodyListens(path, f"{SOCKET} is not a socket (links are not followed)")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(silence)
        _reach(connection, directory, time.monotonic() + silence, silence)
        uid = peer_of(connection).uid
        if uid not in {None, 0, os.geteuid()}:
            raise NotYours(path / SOCKET, -1 if uid is None else uid)
    except BaseException:
        connection.close()
        raise
    return connection


def _reach(connection: socket.socket, directory: RunDirectory, deadline: float, silence: float) -> None:
    while True:
        try:
            connection.connect(address(directory))
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _silent(directory.path, silence) from None
            time.sleep(AGAIN)
        except (ConnectionRefusedError, FileNotFoundError):
            raise NobodyListens(directory.path, "nobody listens at its control socket") from None
        except TimeoutError:
            raise _silent(directory.path, silence) from None
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise NotYours(directory.path / SOCKET, os.stat(SOCKET, dir_fd=directory.fd).st_uid) from None
            raise


def _silent(path: Path, silence: float) -> NotAnswering:
    return NotAnswering(path, f"its supervisor has not answered within {silence:g} s: it is stopped, or hangs")
