"""The control socket: `control.sock` in the run directory, where a running system takes commands of its own user.

What holds:
- Only processes of the same user, and root, are heard: the kernel says who a client is (SO_PEERCRED), on top of a
  directory with mode 0700 and a socket with mode 0600.
- One thread serves all clients, and no client can make it wait: nothing blocks, a request is at most `MAX_REQUEST`
  bytes and must be there within `REQUEST_WITHIN` seconds, an answer must be taken within `ANSWER_WITHIN`. Who sends
  garbage, half a frame or nothing, or hangs up, is alone with that. The supervisor's own loop is in another thread and
  never waits for this one.
- The socket appears under its name when it listens already, by a rename, in place of one that a dead supervisor has
  left; `close` removes it.

Which commands there are is a `Registry`. A command answers at once, or returns a function that is asked again and again
until it has an answer (`Progress`), or runs in a thread of its own (`blocks`). It refuses by raising Refused.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from actors import control_protocol as protocol
from actors.control_protocol import BadFrame, Refused
from actors.rundir import RunDirectory

SOCKET: Final = "control.sock"
REQUEST_WITHIN: Final = 5.0
ANSWER_WITHIN: Final = 10.0
MAX_CLIENTS: Final = 64  # at once; more wait to be accepted
MAX_THREADS: Final = 8
BACKLOG: Final = 64
LOOK: Final = 0.01  # seconds between two questions to what is under way
DEAF: Final = 0.2  # seconds without accepting after that has failed, for lack of descriptors, say

log = logging.getLogger("ringleader")


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says. None: it does not say that."""

    pid: int | None
    uid: int | None

    def __str__(self) -> str:
        return f"process {'unknown' if self.pid is None else self.pid}"


Progress = Callable[[], msgspec.Struct | None]
R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Command:
    """`call` gets the request and who asks."""

    arguments: type[msgspec.Struct]
    call: Callable[[Any, Peer], msgspec.Struct | Progress]
    blocks: bool


class Registry:
    """The commands by name. To be complete before the server starts."""

    def __init__(self) -> None:
        self.commands: dict[str, Command] = {}

    def add(
        self,
        name: str,
        arguments: type[R],
        call: Callable[[R, Peer], msgspec.Struct | Progress],
        *,
        blocks: bool = False,
    ) -> None:
        """`blocks`: it takes its time and must run in a thread; what it returns then is the answer, no Progress."""
        if name in self.commands:
            raise ValueError(f"there is a command {name!r} already")
        self.commands[name] = Command(arguments, call, blocks)


@dataclass(slots=True, eq=False)
class _Client:
    socket: socket.socket
    peer: Peer
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)  # for the socket to take it
    progress: Progress | None = None
    asked: bool = False  # its request was complete
    answered: bool = False
    next_sign: float = 0.0


class ControlServer:
    """Made and closed by who holds the run directory. `start` and `close` from any thread, each once or more."""

    def __init__(self, directory: RunDirectory, registry: Registry) -> None:
        self._directory, self._commands = directory, dict(registry.commands)
        self._uid = os.geteuid()
        self._listener = _listen(directory)
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._clients: set[_Client] = set()
        self._threads: set[threading.Thread] = set()
        self._accepts = False
        self._deaf_until = 0.0
        self._closing = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ringleader-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """No more commands: the socket goes, who still waits is told. Idempotent; before the directory is closed."""
        if self._closed:
            return
        self._closed = self._closing = True
        _unlink(self._directory, SOCKET)
        self._rouse()
        deadline = time.monotonic() + timeout
        for thread in [self._thread, *self._threads]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            self._selector.close()
            for one in (self._listener, self._woken, self._wake):
                one.close()

    def _rouse(self) -> None:
        try:
            self._wake.send(b"\0")
        except OSError:
            pass  # full, so it will wake anyway; or closed

    # ------------------------------------------------------------------------------------------------ the loop
    def _run(self) -> None:
        try:
            while not self._closing:
                self._open_ears()
                for key, events in self._selector.select(self._longest_wait()):
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                    elif key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._for(key.data, self._hear if events & selectors.EVENT_READ else self._speak)
                for client in list(self._clients):
                    self._for(client, self._look_after)
        except Exception:
            log.exception("the control socket of %s failed: no more commands are taken", self._directory.path)
        finally:
            for client in list(self._clients):
                if client.asked and not client.answered:
                    self._for(client, _tell_that_it_ends)
                self._drop(client)

    def _longest_wait(self) -> float | None:
        now = time.monotonic()
        dues = [client.deadline - now for client in self._clients if not client.progress]
        if any(client.progress for client in self._clients):
            dues.append(LOOK)
        if not self._accepts:
            dues.append(max(self._deaf_until - now, LOOK))
        return max(0.0, min(dues)) if dues else None

    def _open_ears(self) -> None:
        """Accept as long as there is room, and again when there is."""
        wanted = len(self._clients) < MAX_CLIENTS and time.monotonic() >= self._deaf_until
        if wanted != self._accepts:
            if wanted:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)
            self._accepts = wanted

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has hung up meanwhile
        except OSError as error:
            log.warning("the control socket could not accept a client: %s", error)
            self._deaf_until = time.monotonic() + DEAF
            return
        try:
            connection.setblocking(False)
            client = _Client(connection, peer_of(connection), time.monotonic() + REQUEST_WITHIN)
            self._selector.register(connection, selectors.EVENT_READ, client)
        except OSError:
            connection.close()
            return
        self._clients.add(client)
        if client.peer.uid not in {None, 0, self._uid}:
            log.warning("%s of user %s was refused at the control socket", client.peer, client.peer.uid)
            text = f"this system belongs to user {self._uid}, you are {client.peer.uid}"
            self._for(client, lambda one: self._refuse(one, Refused(protocol.OTHER_USER, text)))

    def _for(self, client: _Client, step: Callable[[_Client], None]) -> None:
        """What goes wrong with one client is its own affair."""
        if client not in self._clients:
            return
        try:
            step(client)
        except OSError:
            self._drop(client)  # it has hung up
        except Exception:
            log.exception("the control socket failed on a client (%s)", client.peer)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        try:
            self._selector.unregister(client.socket)
        except (KeyError, ValueError):
            pass  # never registered
        client.socket.close()

    # ------------------------------------------------------------------------------------------------ one client
    def _hear(self, client: _Client) -> None:
        data = client.socket.recv(protocol.MAX_REQUEST)
        if not data:
            self._drop(client)
            return
        if client.asked or client.answered:
            return  # one request a connection
        client.received += data
        try:
            body = protocol.taken_apart(client.received, protocol.MAX_REQUEST)
        except BadFrame as error:
            self._refuse(client, Refused(protocol.MALFORMED, f"this is not a request of `ringleader`: {error}"))
            return
        if body is not None:
            client.asked = True
            client.received.clear()
            try:
                result = self._answer_to(protocol.read_request(body), client.peer)
            except Refused as refused:
                self._refuse(client, refused)
                return
            if callable(result):
                client.progress = result
                self._look_after(client)
            else:
                self._finish(client, result)

    def _answer_to(self, request: protocol.Request, peer: Peer) -> msgspec.Struct | Progress:
        command = self._commands.get(request.command)
        if command is None:
            known = tuple(sorted(self._commands))
            text = f"unknown command {request.command!r}; this system knows {', '.join(known)}"
            raise Refused(protocol.UNKNOWN_COMMAND, text, known)
        try:
            arguments = msgspec.json.decode(request.arguments, type=command.arguments)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(protocol.BAD_ARGUMENTS, f"{request.command}: {error}") from None
        log.debug("%s asks: %s %s", peer, request.command, arguments)

        def call() -> msgspec.Struct | Progress:
            return command.call(arguments, peer)

        return self._in_thread(request.command, call) if command.blocks else _guarded(request.command, call)

    def _in_thread(self, name: str, call: Callable[[], msgspec.Struct | Progress]) -> Progress:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        if len(self._threads) >= MAX_THREADS:
            raise Refused(protocol.BUSY, f"{name}: {MAX_THREADS} such commands are under way; try again later")
        ended: list[msgspec.Struct | Progress | Refused] = []

        def work() -> None:
            try:
                ended.append(_guarded(name, call))
            except Refused as refused:
                ended.append(refused)
            self._rouse()

        def progress() -> msgspec.Struct | None:
            if not ended:
                return None
            if isinstance(ended[0], Refused):
                raise ended[0]
            return ended[0] if isinstance(ended[0], msgspec.Struct) else ended[0]()

        thread = threading.Thread(target=work, name=f"ringleader-{name}", daemon=True)
        self._threads.add(thread)
        thread.start()
        return progress

    def _look_after(self, client: _Client) -> None:
        now = time.monotonic()
        if client.progress is not None:
            try:
                result = _guarded("the command", client.progress)
            except Refused as refused:
                self._refuse(client, refused)
                return
            if result is not None:
                self._finish(client, result)
            elif now >= client.next_sign:
                client.next_sign = now + protocol.SIGN_EVERY
                if len(client.waiting) < protocol.MAX_REQUEST:  # it reads, so it wants to know
                    self._put(client, protocol.Taken())
        elif now >= client.deadline:
            if client.answered:
                self._drop(client)
            else:
                text = f"no whole request came within {REQUEST_WITHIN:g} s"
                self._refuse(client, Refused(protocol.MALFORMED, text))

    def _finish(self, client: _Client, value: object) -> None:
        self._last_word(client, protocol.Done(msgspec.Raw(msgspec.json.encode(value))))

    def _refuse(self, client: _Client, refused: Refused) -> None:
        self._last_word(client, protocol.NotDone(refused.error, refused.text, refused.known))

    def _last_word(self, client: _Client, answer: protocol.Answer) -> None:
        client.progress, client.answered = None, True
        client.deadline = time.monotonic() + ANSWER_WITHIN
        self._put(client, answer)

    def _put(self, client: _Client, answer: protocol.Answer) -> None:
        client.waiting += protocol.frame(answer)
        self._speak(client)

    def _speak(self, client: _Client) -> None:
        try:
            while client.waiting:
                del client.waiting[: client.socket.send(client.waiting)]
        except BlockingIOError:
            self._selector.modify(client.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
            return
        if client.answered:
            self._drop(client)
        else:
            self._selector.modify(client.socket, selectors.EVENT_READ, client)


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """What a command does not refuse by itself but fails at is told to who asked, and to the log."""
    try:
        return call()
    except Refused:
        raise
    except Exception as error:
        log.exception("a command failed: %s", name)
        raise Refused(protocol.FAILED, f"{name} failed: {type(error).__name__}: {error}") from None


def _tell_that_it_ends(client: _Client) -> None:
    text = "the system has ended before this was done"
    client.socket.send(bytes(client.waiting) + protocol.frame(protocol.NotDone(protocol.ENDING, text)))


# ---------------------------------------------------------------------------------------------------- the socket file
def address(directory: RunDirectory, name: str = SOCKET) -> str:
    """Relative to the open directory, which was checked; so it also does not matter how long its path is."""
    return f"/proc/self/fd/{directory.fd}/{name}" if sys.platform == "linux" else str(directory.path / name)


def _listen(directory: RunDirectory) -> socket.socket:
    temporary = f".{SOCKET}.new"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink(directory, temporary)  # there only after a crash in the middle of this
        os.fchmod(listener.fileno(), 0o600)  # the mode that the file gets, whatever the umask
        listener.bind(address(directory, temporary))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        os.rename(temporary, SOCKET, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    except BaseException:
        listener.close()
        raise
    return listener


def _unlink(directory: RunDirectory, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory.fd)
    except FileNotFoundError:
        pass  # somebody has tidied up by hand


def peer_of(connection: socket.socket) -> Peer:
    """Where the kernel does not tell (it is not Linux), the mode of the directory alone keeps others out."""
    if not hasattr(socket, "SO_PEERCRED"):
        return Peer(None, None)
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid or None, uid)  # 0: in a PID namespace that we cannot see
