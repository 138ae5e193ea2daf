"""Sockets for stream transports: bound, connected, and looked at before a byte is sent over them.

Contract
- A socket file is 0600 from its first moment, in a directory that only its owner can write to. One that a dead process
  left is replaced; one that is listened at is AddressInUse; what is no socket is never touched. Those who open the same
  path at once take turns (a lock on the directory, which leaves no file). `close` removes the file if it is still ours.
- What is not secured neither listens nor connects beyond loopback, whatever a name resolves to.
- Without a key, both ends of a Unix socket belong to the same user (where the system tells: Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from bus.streams.addresses import Address, TcpAddress, UnixAddress, is_loopback_ip, stays_here
from bus.streams.errors import AddressInUse, BeyondLoopback, ForeignUser, InsecureAddress, UnusableSocketFile

SocketAddress: TypeAlias = tuple[str, int, *tuple[int, ...]]

BACKLOG = 128
TURN = 5.0  # seconds to wait for others who open the same path
_LOOK = 0.01
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Listener:
    """A listening socket; a file of its own goes with it."""

    def __init__(self, bound: socket.socket, address: Address, identity: tuple[int, int] | None = None) -> None:
        self.socket = bound
        self.address = address
        self._identity = identity  # device and inode of the socket file

    def close(self) -> None:
        """Idempotent."""
        if self._identity is not None and isinstance(self.address, UnixAddress):
            with contextlib.suppress(OSError):
                found = os.lstat(self.address.path)
                if (found.st_dev, found.st_ino) == self._identity:
                    os.unlink(self.address.path)
            self._identity = None
        self.socket.close()


async def listen(address: Address, *, secured: bool) -> list[Listener]:
    """More than one if a name has several addresses. InsecureAddress, AddressInUse, UnusableSocketFile, OSError."""
    if isinstance(address, UnixAddress):
        return [await _listen_unix(address)]
    if not (secured or stays_here(address)):
        raise InsecureAddress(str(address), "listen at")
    found: list[Listener] = []
    refused: OSError | None = None
    try:
        for family, sockaddr in await _resolve(address):
            if not (secured or is_loopback_ip(sockaddr[0])):
                raise InsecureAddress(f"{address} ({sockaddr[0]})", "listen at")
            port = found[0].socket.getsockname()[1] if found else sockaddr[1]
            try:
                found.append(_listen_tcp(family, (sockaddr[0], port, *sockaddr[2:])))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(str(TcpAddress(sockaddr[0], port))) from None
                refused = error  # a machine without IPv6, say: one of the addresses will do
    except BaseException:
        for one in found:
            one.close()
        raise
    if not found and refused is not None:
        raise refused
    return found


def _listen_tcp(family: int, sockaddr: tuple[str | int, ...]) -> Listener:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(sockaddr)
        bound.listen(BACKLOG)
        host, port = bound.getsockname()[:2]
    except BaseException:
        bound.close()
        raise
    return Listener(bound, TcpAddress(host, port))


async def _listen_unix(address: UnixAddress) -> Listener:
    directory = os.path.dirname(os.path.abspath(address.path))
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnusableSocketFile(address.path, f"{directory}: {error.strerror}") from None
    try:
        _check_directory(address.path, descriptor)
        await _take_turn(address.path, descriptor)
        _remove_stale(address)
        return _bind_unix(address)
    finally:
        os.close(descriptor)  # gives up the turn


def _check_directory(path: str, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise UnusableSocketFile(path, f"its directory belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise UnusableSocketFile(path, f"others may write to its directory (mode {mode:04o}); make one with mode 0700")


async def _take_turn(path: str, descriptor: int) -> None:
    """Who binds looks, removes and binds in one go, as seen by all others who come through here."""
    try:
        async with asyncio.timeout(TURN):
            while True:
                try:
                    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise UnusableSocketFile(path, f"somebody has had the lock of its directory for {TURN:g} s") from None


def _remove_stale(address: UnixAddress) -> None:
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UnusableSocketFile(address.path, "there is a file of that name, which is no socket")
    if found.st_uid != os.geteuid():
        raise UnusableSocketFile(address.path, f"the socket there belongs to user {found.st_uid}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:  # nobody listens there any more
            os.unlink(address.path)
            return
        except FileNotFoundError:
            return
        except OSError:  # a full backlog, another type of socket: somebody is there
            pass
    raise AddressInUse(str(address))


def _bind_unix(address: UnixAddress) -> Listener:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        os.fchmod(bound.fileno(), 0o600)  # on Linux the file is then made with this mode
        try:
            bound.bind(address.path)
        except OSError as error:
            raise UnusableSocketFile(address.path, error.strerror or str(error)) from None
        found = os.lstat(address.path)
        listener = Listener(bound, address, (found.st_dev, found.st_ino))
    except BaseException:
        bound.close()
        raise
    try:
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.chmod(address.path, 0o600)
        bound.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect(address: Address, *, secured: bool) -> socket.socket:
    """OSError if nobody is there, BeyondLoopback."""
    if isinstance(address, UnixAddress):
        return await _connect(socket.AF_UNIX, address.path)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{address.host} has no address")
    for family, sockaddr in await _resolve(address):
        if not (secured or is_loopback_ip(sockaddr[0])):
            raise BeyondLoopback(f"{address} ({sockaddr[0]})")
        try:
            return await _connect(family, sockaddr)
        except OSError as error:
            failure = error
    raise failure


async def _connect(family: int, to: str | tuple[str | int, ...]) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, to)
    except BaseException:
        connected.close()
        raise
    return connected


async def _resolve(address: TcpAddress) -> list[tuple[int, SocketAddress]]:
    """Families and socket addresses, none twice. Literal addresses need no thread."""
    try:
        infos = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return list(_distinct(infos))


def _distinct(infos: Iterable[tuple[int, int, int, str, Any]]) -> Iterator[tuple[int, SocketAddress]]:
    seen = set()
    for family, _, _, _, sockaddr in infos:
        if sockaddr not in seen:
            seen.add(sockaddr)
            yield family, sockaddr


def check_user(connected: socket.socket) -> None:
    """ForeignUser if the other end of a Unix socket belongs to another user than this process."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # then the modes of the file and its directory have to do
        return
    _, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    if user != own_user():
        raise ForeignUser(user, own_user())


def own_user() -> int:
    return os.geteuid()
