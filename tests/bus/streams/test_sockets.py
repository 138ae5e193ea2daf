"""Socket files are private and never taken from the living; nothing unprotected leaves the machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from bus import TLS, AddressInUse, InsecureAddress, StreamTransport, TcpAddress, UnixAddress, UnusableSocketFile
from bus.streams import sockets
from bus.streams.addresses import Address, is_loopback_ip, stays_here
from bus.streams.errors import BeyondLoopback, ForeignUser
from tests.bus.streams.building import KEY, QUICK, Watch, asynchronous, pair

LOCALHOST = TcpAddress("127.0.0.1", 0)


async def listen(address: Address, *, secured: bool = False) -> Any:
    [listener] = await sockets.listen(address, secured=secured)
    return listener


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o700)
    return str(tmp_path / "alice.sock")


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
@asynchronous
async def test_the_socket_file_is_for_its_owner_only_whatever_the_mask(path, mask):
    before = os.umask(mask)
    try:
        listener = await listen(UnixAddress(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    listener.close()
    assert not os.path.lexists(path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mode is set after the file was made")
@asynchronous
async def test_the_socket_file_has_its_mode_from_the_beginning(path, monkeypatch):
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(0)
    try:
        listener = await listen(UnixAddress(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    listener.close()


@asynchronous
async def test_the_file_of_a_dead_process_is_replaced(path):
    dead = "import os, socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); os.kill(os.getpid(), 9)"
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", dead, path], check=False)
    assert died.returncode == -9
    left = os.lstat(path).st_ino
    listener = await listen(UnixAddress(path))
    assert os.lstat(path).st_ino != left or stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    (await sockets.connect(UnixAddress(path), secured=False)).close()
    listener.close()


@asynchronous
async def test_a_socket_that_somebody_listens_at_is_left_alone_and_named(path):
    first = await listen(UnixAddress(path))
    with pytest.raises(AddressInUse) as caught:
        await listen(UnixAddress(path))
    assert path in str(caught.value)
    (await sockets.connect(UnixAddress(path), secured=False)).close()
    first.close()


@asynchronous
async def test_a_socket_with_a_full_backlog_is_not_taken_for_a_dead_one(path):
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(path)
        with pytest.raises(AddressInUse):
            await listen(UnixAddress(path))
        for one in waiting:
            one.close()


@asynchronous
async def test_what_is_no_socket_is_never_touched(path):
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(UnusableSocketFile, match="no socket"):
        await listen(UnixAddress(path))
    os.rename(path, path + ".target")
    os.symlink(path + ".target", path)
    with pytest.raises(UnusableSocketFile, match="no socket"):
        await listen(UnixAddress(path))
    assert os.path.islink(path)
    with open(path) as file:
        assert file.read() == "precious"


@asynchronous
async def test_a_link_to_a_dead_socket_is_not_followed(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path + ".target")
    os.symlink(path + ".target", path)
    with pytest.raises(UnusableSocketFile):
        await listen(UnixAddress(path))
    assert os.path.exists(path + ".target")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@asynchronous
async def test_a_directory_that_others_can_write_to_is_refused(path, tmp_path, mode):
    tmp_path.chmod(mode)
    try:
        with pytest.raises(UnusableSocketFile, match="others may write"):
            await listen(UnixAddress(path))
    finally:
        tmp_path.chmod(0o700)
    assert not os.path.lexists(path)


@asynchronous
async def test_paths_that_cannot_be_are_errors_that_name_them(tmp_path):
    for path in (str(tmp_path / "none" / "a.sock"), str(tmp_path / ("x" * 120))):
        with pytest.raises(UnusableSocketFile) as caught:
            await listen(UnixAddress(path))
        assert path in str(caught.value)


@asynchronous
async def test_those_who_open_the_same_path_at_once_take_turns(path, tmp_path):
    """All find the same dead socket; one gets it, the others see a live one."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    found = await asyncio.gather(*(listen(UnixAddress(path)) for _ in range(8)), return_exceptions=True)
    got = [one for one in found if isinstance(one, sockets.Listener)]
    assert len(got) == 1
    assert all(isinstance(one, AddressInUse) for one in found if one not in got)
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody kept it
    os.close(directory)
    got[0].close()


@asynchronous
async def test_a_turn_that_never_comes_is_an_error(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "TURN", 0.05)
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        with pytest.raises(UnusableSocketFile, match="lock"):
            await listen(UnixAddress(path))
    finally:
        os.close(directory)


@asynchronous
async def test_closing_removes_only_the_own_file(path):
    listener = await listen(UnixAddress(path))
    os.unlink(path)
    second = await listen(UnixAddress(path))
    listener.close()
    assert os.path.exists(path)
    second.close()
    second.close()
    assert not os.path.exists(path)


# ------------------------------------------------------------------------------------------------ users
@asynchronous
async def test_the_same_user_at_the_other_end_is_let_in(path):
    listener = await listen(UnixAddress(path))
    connected = await sockets.connect(UnixAddress(path), secured=False)
    sockets.check_user(connected)
    connected.close()
    listener.close()


@asynchronous
async def test_another_user_is_refused_without_a_key_by_either_end(path, monkeypatch):
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[UnixAddress(path)], timing=QUICK) as alice:
        monkeypatch.setattr(sockets, "own_user", lambda: os.geteuid() + 1)
        async with await StreamTransport.open(
            "bob", connect={"alice": UnixAddress(path)}, timing=QUICK, on_event=watch
        ):
            fault = await watch.fault("ForeignUser")
            assert (fault.found, fault.expected) == (os.geteuid(), os.geteuid() + 1)
            assert alice.statistics().connections == 0
    async with pair(UnixAddress(path), key=KEY):
        pass  # with a key it does not matter


@asynchronous
async def test_an_acceptor_refuses_another_user_before_it_says_a_word(path, monkeypatch):
    async with await StreamTransport.open(
        "alice", listen=[UnixAddress(path)], timing=QUICK, on_event=(watch := Watch())
    ):
        monkeypatch.setattr(sockets, "own_user", lambda: os.geteuid() + 1)
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""
        await watch.fault("ForeignUser")
        writer.close()
        await writer.wait_closed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@asynchronous
async def test_a_process_of_another_user_is_known_by_the_kernel():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)  # everybody may come in, nobody may change anything
        path = os.path.join(directory, "alice.sock")
        listener = await listen(UnixAddress(path))
        os.chmod(path, 0o666)
        nobody = "import os, socket, sys; os.setresuid(65534, 65534, 65534); socket.socket(1).connect(sys.argv[1])"
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", nobody, path)
        accepted, _ = await asyncio.get_running_loop().sock_accept(listener.socket)
        with pytest.raises(ForeignUser) as caught:
            sockets.check_user(accepted)
        assert (caught.value.found, caught.value.expected) == (65534, 0)
        accepted.close()
        listener.close()
        assert await child.wait() == 0


# ------------------------------------------------------------------------------------------------ addresses
@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.3", "::1", "localhost", "LocalHost"])
def test_loopback_stays_here(host):
    assert stays_here(TcpAddress(host, 1))


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "192.168.0.1",
        "8.8.8.8",
        "fe80::1%lo",
        "printer",
        "127.0.0.1.example.org",
        "localhost.x",
        "127.1x",
    ],
)
@asynchronous
async def test_nothing_unprotected_listens_or_connects_beyond_loopback(host):
    address = TcpAddress(host, 4711)
    for open_it in (
        StreamTransport.open("alice", listen=[address]),
        StreamTransport.open("alice", connect={"bob": address}),
        StreamTransport.open("alice", listen=[address], tls=TLS(server=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))),
    ):
        with pytest.raises(InsecureAddress) as caught:
            await open_it
        assert host in str(caught.value)
        assert "key=" in str(caught.value)


def test_a_name_is_never_a_loopback_address():
    assert not is_loopback_ip("localhost")
    assert is_loopback_ip("::1")


@asynchronous
async def test_a_key_or_tls_that_authenticates_lets_it_listen_anywhere():
    authenticating = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authenticating.verify_mode = ssl.CERT_REQUIRED
    for options in ({"key": KEY}, {"tls": TLS(server=authenticating)}):
        async with await StreamTransport.open("alice", listen=[TcpAddress("0.0.0.0", 0)], **options) as alice:
            assert isinstance(alice.addresses[0], TcpAddress)


@asynchronous
async def test_localhost_that_is_somewhere_else_is_refused_when_it_is_resolved(monkeypatch):
    async def elsewhere(address):
        return [(socket.AF_INET, ("192.0.2.1", address.port))]

    monkeypatch.setattr(sockets, "_resolve", elsewhere)
    with pytest.raises(InsecureAddress, match=r"192\.0\.2\.1"):
        await sockets.listen(TcpAddress("localhost", 0), secured=False)
    with pytest.raises(BeyondLoopback, match=r"192\.0\.2\.1"):
        await sockets.connect(TcpAddress("localhost", 9), secured=False)


@asynchronous
async def test_a_port_in_use_is_named():
    listener = await listen(LOCALHOST)
    with pytest.raises(AddressInUse) as caught:
        await listen(listener.address)
    assert str(listener.address.port) in str(caught.value)
    listener.close()


@asynchronous
async def test_localhost_listens_at_all_its_addresses_with_one_port():
    listeners: list[Any] = await sockets.listen(TcpAddress("localhost", 0), secured=False)
    assert len({one.address.port for one in listeners}) == 1
    assert all(is_loopback_ip(one.address.host) for one in listeners)
    (await sockets.connect(TcpAddress("localhost", listeners[0].address.port), secured=False)).close()
    for one in listeners:
        one.close()


@asynchronous
async def test_an_error_while_opening_leaves_nothing_open(path):
    with pytest.raises(InsecureAddress):
        await StreamTransport.open("alice", listen=[UnixAddress(path), LOCALHOST, TcpAddress("0.0.0.0", 0)])
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    "wrong",
    [lambda: UnixAddress(""), lambda: UnixAddress("a\0b"), lambda: TcpAddress("h", 65536), lambda: TcpAddress("", 1)],
)
def test_addresses_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()
