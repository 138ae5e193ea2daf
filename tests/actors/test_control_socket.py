"""The control socket: who is heard, what is refused, and that no client can harm another or the supervisor."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from actors import control_client, control_protocol, control_socket
from actors.control_client import ConnectionLost, NobodyListens, NotAnswering, NotUnderstood, ask
from actors.control_protocol import LENGTH, MAX_REQUEST, PROTOCOL, Empty, Refused
from actors.control_socket import SOCKET, ControlServer, Peer, Progress, Registry
from actors.rundir import NotYours, RunDirectory

from .waiting import until

NOBODY = 65534


class Text(msgspec.Struct):
    text: str = ""


class Who(msgspec.Struct):
    pid: int
    uid: int


class Clock:
    """In place of the module `time`: it goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Commands:
    """What a system would do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released = threading.Event()

    def registry(self) -> Registry:
        registry = Registry()
        registry.add("echo", Text, lambda text, peer: text)
        registry.add("who", Empty, lambda empty, peer: Who(peer.pid or 0, -1 if peer.uid is None else peer.uid))
        registry.add("wait", Empty, self.wait)
        registry.add("block", Empty, self.block, blocks=True)
        registry.add("fail", Empty, self.fail)
        registry.add("fail later", Empty, lambda empty, peer: self.failing)
        registry.add("refuse", Text, self.refuse)
        registry.add("big", Text, lambda text, peer: Text("x" * 4_000_000))
        return registry

    def wait(self, empty: Empty, peer: Peer) -> Progress:
        self.asked.append("wait")
        return lambda: Text("waited") if self.released.is_set() else None

    def block(self, empty: Empty, peer: Peer) -> Text:
        self.asked.append("block")
        self.released.wait(30)
        return Text("blocked")

    def fail(self, empty: Empty, peer: Peer) -> Text:
        raise ZeroDivisionError("no good")

    def failing(self) -> Text:
        raise ZeroDivisionError("no good")

    def refuse(self, text: Text, peer: Peer) -> Text:
        raise Refused("unknown-worker", f"no worker {text.text!r}", ("a", "b"))


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The server's. It is looked at when something else happens, too."""
    monkeypatch.setattr(control_socket, "time", made := Clock())
    return made


@pytest.fixture
def path(tmp_path: Path, commands: Commands) -> Iterator[Path]:
    """A run directory that is served."""
    with RunDirectory.open(tmp_path / "home" / "trades") as directory:
        server = ControlServer(directory, commands.registry())
        server.start()
        yield directory.path
        commands.released.set()
        server.close()


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path / SOCKET))
    return connection


def said(connection: socket.socket) -> list[dict]:
    """All that it says until it hangs up."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    found = []
    while data:
        (size,) = LENGTH.unpack_from(data)
        found.append(msgspec.json.decode(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


def framed(value: object) -> bytes:
    body = msgspec.json.encode(value)
    return LENGTH.pack(len(body)) + body


# ------------------------------------------------------------------------------------------------- commands
def test_a_command_is_carried_out_and_answered(path: Path) -> None:
    assert ask(path, "echo", Text("hello"), Text).text == "hello"


def test_a_command_that_takes_long_is_waited_for_and_gives_signs_of_life(
    path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's patience is much shorter than the command."""
    patience, clock, signs = 10.0, Clock(), threading.Semaphore(0)
    taken_apart = control_protocol.taken_apart

    def heard(data: bytes, limit: int) -> bytes | None:
        """At each sign of life that the client hears nearly all of its patience is over."""
        body = taken_apart(data, limit)
        if body is not None and limit == control_protocol.MAX_ANSWER:
            clock.now += patience * 0.9
            signs.release()
        return body

    monkeypatch.setattr(control_protocol, "SIGN_EVERY", 0.01)
    monkeypatch.setattr(control_protocol, "taken_apart", heard)
    monkeypatch.setattr(control_client, "time", clock)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, path, "wait", Empty(), Text, silence=patience)
        for _ in range(5):
            assert signs.acquire(timeout=30), "no sign of life"
        commands.released.set()
        assert waiting.result(30).text == "waited"
    assert clock.now > 4 * patience


def test_a_command_that_blocks_makes_no_other_wait(path: Path, commands: Commands) -> None:
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(ask, path, "block", Empty(), Text)
        until(lambda: commands.asked, "the blocking command")
        assert ask(path, "echo", Text("meanwhile"), Text).text == "meanwhile"
        assert not blocked.done()
        commands.released.set()
        assert blocked.result(60).text == "blocked"


def test_too_many_blocking_commands_are_refused(path: Path, commands: Commands) -> None:
    limit = control_socket.MAX_THREADS
    with ThreadPoolExecutor(limit) as pool:
        blocked = [pool.submit(ask, path, "block", Empty(), Text) for _ in range(limit)]
        until(lambda: len(commands.asked) == limit, "all of them")
        with pytest.raises(Refused) as refused:
            ask(path, "block", Empty(), Text)
        assert refused.value.error == "busy"
        commands.released.set()
        assert [one.result(60).text for one in blocked] == ["blocked"] * limit


def test_an_unknown_command_is_refused_with_those_that_are_known(path: Path) -> None:
    with pytest.raises(Refused, match="unknown command 'ehco'; this system knows big, block, echo") as refused:
        ask(path, "ehco", Empty(), Text)
    assert refused.value.error == "unknown-command"
    assert "echo" in refused.value.known


def test_wrong_arguments_are_refused_with_what_is_wrong(path: Path) -> None:
    class Wrong(msgspec.Struct):
        text: int = 3

    with pytest.raises(Refused, match=r"echo: Expected `str`, got `int` - at `\$.text`"):
        ask(path, "echo", Wrong(), Text)


@pytest.mark.parametrize("command", ["fail", "fail later"])
def test_a_command_that_fails_is_answered_and_logged(
    path: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Refused, match="ZeroDivisionError: no good"):
        ask(path, command, Empty(), Text)
    assert "ZeroDivisionError" in caplog.text
    assert ask(path, "echo", Text("still there"), Text).text == "still there"


def test_what_a_command_refuses_arrives_with_its_values(path: Path) -> None:
    with pytest.raises(Refused) as refused:
        ask(path, "refuse", Text("c"), Text)
    assert refused.value.args == ("unknown-worker", "no worker 'c'", ("a", "b"))


def test_a_big_answer_arrives_whole(path: Path) -> None:
    assert len(ask(path, "big", Text(), Text).text) == 4_000_000


def test_a_request_of_a_newer_protocol_is_refused_whatever_else_it_says(path: Path) -> None:
    with raw(path) as connection:
        connection.sendall(framed({"version": PROTOCOL + 1, "order": "echo"}))
        (answer,) = said(connection)
    assert answer["error"] == "newer-protocol"
    assert f"speaks protocol {PROTOCOL + 1}, this system speaks {PROTOCOL}" in answer["text"]


def test_a_request_with_more_in_it_than_is_known_is_served(path: Path) -> None:
    with raw(path) as connection:
        connection.sendall(
            framed({"version": PROTOCOL, "command": "echo", "arguments": {"text": "hi", "loud": True}, "urgent": 1})
        )
        assert said(connection)[-1] == {"kind": "done", "value": {"text": "hi"}}


def test_a_command_cannot_be_registered_twice() -> None:
    registry = Commands().registry()
    with pytest.raises(ValueError, match="'echo'"):
        registry.add("echo", Text, lambda text, peer: text)


# ------------------------------------------------------------------------------------------------- bad clients
GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("!I", 2**32 - 1),
    framed([1, 2, 3]),
    framed({"version": "one"}),
    framed({"version": 1}),
    LENGTH.pack(4) + b"\xff\xfe\xfd\xfc",
    LENGTH.pack(0),
    LENGTH.pack(3) + b"{}{" + b"more" * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_refused_and_harms_nobody(path: Path, garbage: bytes) -> None:
    with raw(path) as connection:
        try:
            connection.sendall(garbage)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has stopped listening in the middle of it
        answers = said(connection)
    assert [answer["error"] for answer in answers] == ["malformed"]
    assert ask(path, "echo", Text("fine"), Text).text == "fine"


def test_a_request_that_is_too_long_is_refused_before_it_is_there(path: Path) -> None:
    with raw(path) as connection:
        connection.sendall(LENGTH.pack(MAX_REQUEST + 1))
        (answer,) = said(connection)
    assert answer["text"].endswith(
        f"a frame says that it has {MAX_REQUEST + 1} bytes, at most {MAX_REQUEST} are allowed"
    )


def test_clients_that_say_nothing_half_or_hang_up_harm_nobody(path: Path, clock: Clock) -> None:
    silent, half, gone = raw(path), raw(path), raw(path)
    half.sendall(framed({"version": 1, "command": "echo"})[:-3])
    gone.sendall(framed({"version": 1, "command": "wait"}))
    gone.close()
    assert ask(path, "echo", Text("fine"), Text).text == "fine"
    clock.now += control_socket.REQUEST_WITHIN
    assert ask(path, "echo", Text("fine"), Text).text == "fine"
    for connection in (silent, half):
        assert [answer["text"] for answer in said(connection)] == ["no whole request came within 5 s"]
        connection.close()
    assert ask(path, "echo", Text("fine"), Text).text == "fine"


def test_a_client_that_does_not_read_is_dropped(path: Path, clock: Clock) -> None:
    before = sockets()
    with raw(path) as connection:
        connection.sendall(framed({"version": 1, "command": "big"}))
        assert select.select([connection], [], [], 60)[0], "it has begun to answer"
        clock.now += control_socket.ANSWER_WITHIN * 0.9
        assert ask(path, "echo", Text("fine"), Text).text == "fine"
        until(lambda: sockets() == before + 2, "the other client's end to be closed")
        assert ask(path, "echo", Text("fine"), Text).text == "fine"
        assert sockets() >= before + 2, "it has its time"
        clock.now += control_socket.ANSWER_WITHIN
        assert ask(path, "echo", Text("fine"), Text).text == "fine"
        until(lambda: sockets() == before + 1, "the server's end to be dropped")  # the client's is still there
        assert ask(path, "echo", Text("fine"), Text).text == "fine"


def sockets() -> int:
    """How many this process has."""
    return sum(one.startswith("socket:") for one in open_files())


def open_files() -> list[str]:
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.append(os.readlink(entry.path))
        except OSError:
            continue
    return found


def test_more_clients_than_places_wait_for_their_turn(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "MAX_CLIENTS", 2)
    before = sockets()
    silent = [raw(path) for _ in range(5)]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, path, "echo", Text("at last"), Text, silence=60)
        for pair in (silent[:2], silent[2:4]):
            until(lambda: sockets() == before + 5 + 1 + 2, "the next two to have their places")
            assert not waiting.done(), "two times two silent ones have to go before it"
            clock.now += control_socket.REQUEST_WITHIN
            for connection in pair:
                assert "no whole request" in said(connection)[0]["text"]
        assert waiting.result(30).text == "at last"
    for connection in silent:
        connection.close()


def test_many_clients_at_once_are_all_served(path: Path) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: ask(path, "echo", Text(str(n)), Text).text, range(400)))
    assert answers == [str(n) for n in range(400)]


# ------------------------------------------------------------------------------------------------- who is heard
def test_the_socket_is_its_users_alone_whatever_the_umask(tmp_path: Path, commands: Commands) -> None:
    before = os.umask(0)
    try:
        with RunDirectory.open(tmp_path / "home" / "trades") as directory:
            server = ControlServer(directory, commands.registry())
            found = os.lstat(directory.path / SOCKET)
            server.close()
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    finally:
        os.umask(before)


def test_the_server_knows_who_asks(path: Path) -> None:
    who = ask(path, "who", Empty(), Who)
    assert (who.pid, who.uid) == (os.getpid(), os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_by_the_server(
    path: Path, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """With every mode opened up, so that what the kernel says of the client is all that is left."""
    modes = {opened: stat.S_IMODE(opened.stat().st_mode) for opened in (path, *path.parents[:4])}
    (path / SOCKET).chmod(0o777)
    try:
        for opened, mode in modes.items():
            opened.chmod(mode | 0o011)
        os.seteuid(NOBODY)
        connection = raw(path)
    finally:
        os.seteuid(0)
        for opened, mode in modes.items():
            opened.chmod(mode)
    with connection:
        try:
            connection.sendall(framed({"version": 1, "command": "wait"}))
        except BrokenPipeError:
            pass  # it did not even listen
        (answer,) = said(connection)
    assert answer["error"] == "other-user"
    assert answer["text"] == f"this system belongs to user 0, you are {NOBODY}"
    assert commands.asked == []
    assert f"user {NOBODY} was refused" in caplog.text


def test_the_client_refuses_a_server_of_another_user(
    path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "peer_of", lambda connection: Peer(1, NOBODY))
    with pytest.raises(NotYours, match=f"belongs to user {NOBODY}"):
        ask(path, "wait", Empty(), Text)
    assert commands.asked == [], "not even the command was sent to it"


# ------------------------------------------------------------------------------------------------- the file
def test_the_socket_of_a_dead_supervisor_is_replaced(tmp_path: Path, commands: Commands) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory:
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(directory.path / SOCKET))
        left.close()
        with pytest.raises(NobodyListens, match="nobody listens"):
            ask(directory.path, "echo", Text(), Text)
        (directory.path / f".{SOCKET}.new").write_text("a crash in the middle")
        server = ControlServer(directory, commands.registry())
        server.start()
        assert ask(directory.path, "echo", Text("new"), Text).text == "new"
        server.close()
        assert sorted(os.listdir(directory.path)) == []


def test_the_socket_goes_at_the_end_and_who_still_waits_is_told(tmp_path: Path, commands: Commands) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory, ThreadPoolExecutor() as pool:
        server = ControlServer(directory, commands.registry())
        server.start()
        waiting = pool.submit(ask, directory.path, "wait", Empty(), Text)
        until(lambda: commands.asked, "the command")
        server.close()
        server.close()
        with pytest.raises(Refused, match="ended before this was done") as refused:
            waiting.result(60)
        assert refused.value.error == "ending"
        with pytest.raises(NobodyListens, match="no control socket"):
            ask(directory.path, "echo", Text(), Text)


def test_a_server_that_never_started_closes(tmp_path: Path, commands: Commands) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory:
        ControlServer(directory, commands.registry()).close()
        assert os.listdir(directory.path) == []


def test_a_path_longer_than_a_socket_address_may_be(tmp_path: Path, commands: Commands) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100) / "trades"
    with RunDirectory.open(deep) as directory:
        server = ControlServer(directory, commands.registry())
        server.start()
        assert len(str(directory.path / SOCKET)) > 200
        assert ask(directory.path, "echo", Text("deep"), Text).text == "deep"
        server.close()
        assert os.listdir(directory.path) == []


def test_a_link_in_place_of_the_socket_is_not_followed(path: Path, tmp_path: Path, commands: Commands) -> None:
    with RunDirectory.open(tmp_path / "home" / "other") as other:
        (other.path / SOCKET).symlink_to(path / SOCKET)
        with pytest.raises(NobodyListens, match="links are not followed"):
            ask(other.path, "echo", Text(), Text)


def test_no_descriptor_stays(tmp_path: Path, commands: Commands) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory:
        before = len(open_files())
        for _ in range(3):
            server = ControlServer(directory, commands.registry())
            server.start()
            assert ask(directory.path, "echo", Text("x"), Text).text == "x"
            server.close()
        assert len(open_files()) == before


# ------------------------------------------------------------------------------------------------- bad servers
def served(directory: RunDirectory, answer: Callable[[socket.socket], None] | None, backlog: int = 8) -> socket.socket:
    """Something that listens there; without `answer` it never does more than the kernel does for it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory.path / SOCKET))
    listener.listen(backlog)
    if answer is not None:

        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        threading.Thread(target=once, daemon=True).start()
    return listener


def test_a_supervisor_that_does_not_answer_is_told_from_one_that_is_gone(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory:
        with served(directory, None):
            started = time.monotonic()
            with pytest.raises(NotAnswering, match=r"has not answered within 0\.2 s"):
                ask(directory.path, "echo", Text(), Text, silence=0.2)
            assert 0.2 <= time.monotonic() - started < 60
        with pytest.raises(NobodyListens):
            ask(directory.path, "echo", Text(), Text)


def test_who_stood_still_himself_waits_for_the_answer_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole machine, say: whoever is to answer has had no time either, and answers only now."""
    stood = threading.Event()

    class Stands(Clock):
        """Still for a while, once the client has begun to wait; its next look at the clock is after that."""

        looks = 0

        def monotonic(self) -> float:
            self.looks += 1
            if self.looks == 3:
                self.now += 100
            if self.looks == 4:
                stood.set()
            return self.now

    def answers(connection: socket.socket) -> None:
        connection.recv(100)
        assert stood.wait(60)
        connection.sendall(framed({"kind": "done", "value": {"text": "at last"}}))

    monkeypatch.setattr(control_client, "time", clock := Stands())
    with RunDirectory.open(tmp_path / "home" / "trades") as directory, served(directory, answers):
        assert ask(directory.path, "echo", Text(), Text, silence=60).text == "at last"
    assert clock.looks > 4


def test_a_full_queue_of_a_supervisor_that_does_not_answer(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "home" / "trades") as directory, served(directory, None, backlog=0):
        waiting = raw(directory.path)
        with pytest.raises(NotAnswering):
            ask(directory.path, "echo", Text(), Text, silence=0.2)
        waiting.close()


def test_a_supervisor_that_ends_before_it_answers(tmp_path: Path) -> None:
    with (
        RunDirectory.open(tmp_path / "home" / "trades") as directory,
        served(directory, lambda connection: None),
        pytest.raises(ConnectionLost),
    ):
        ask(directory.path, "echo", Text(), Text)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n", framed({"kind": "maybe"}), framed({"kind": "done", "value": {"text": 3}})],
)
def test_an_answer_that_is_not_understood(tmp_path: Path, answer: bytes) -> None:
    def answers(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)

    with (
        RunDirectory.open(tmp_path / "home" / "trades") as directory,
        served(directory, answers),
        pytest.raises(NotUnderstood),
    ):
        ask(directory.path, "echo", Text(), Text)
