"""The first start in a program: the fork server is launched before anything else, imports little, and is not left
behind when nothing comes of the start."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import Handler, Message, StartFailed, Topology, TopologyError, handle
from actors import process as process_module
from actors.process import forkserver_ahead, start_forkserver, stop_forkserver
from tests.actors.waiting import dead_within, until


class Nothing(Message): ...


class Idle(Handler):
    @handle
    def on_nothing(self, nothing: Nothing) -> None: ...


@pytest.fixture(autouse=True)
def none_before_and_after() -> Iterator[None]:
    stop_forkserver()
    yield
    stop_forkserver()


def topology(tmp_path: Path, handler: type[Handler] = Idle, *types: type[Any], **options: object) -> Topology:
    app = Topology("first", directory=tmp_path / "run", **options)  # type: ignore[arg-type]
    app.worker("one", one=handler)
    app.external("one", *types)
    return app


def guardian() -> int | None:
    return process_module._server.pid


def wrong(tmp_path: Path) -> Topology:
    app = topology(tmp_path)
    app.route("one", Nothing, to="nobody")
    return app


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]


def test_it_is_launched_before_the_topology_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Topology.compile, []

    def compile_(self: Topology) -> object:
        seen.append(guardian())
        return real(self)

    monkeypatch.setattr(Topology, "compile", compile_)
    with topology(tmp_path).start():
        assert seen == [guardian()]
        assert seen[0] is not None


def test_a_topology_with_mistakes_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    for begin in (wrong(tmp_path).start, wrong(tmp_path).run):
        with pytest.raises((TopologyError, SystemExit)):
            begin()
        assert guardian() is None
    assert children() == before


def test_a_start_that_fails_later_leaves_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what a module has started that was preloaded meanwhile."""
    (tmp_path / "code").mkdir()
    left = tmp_path / "left"
    code = "import os, subprocess\nleft = subprocess.Popen(['sleep', '77'])\n"
    code += f"open('{left}.new', 'x').write(str(left.pid))\n"
    code += f"os.rename('{left}.new', '{left}')\n"
    (tmp_path / "code" / "starts_by_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))

    def full(*_: object) -> None:
        until(left.exists, "the module to be imported")
        raise OSError(errno.ENOSPC, "no room by test")

    monkeypatch.setattr("actors.system.create_segments", full)
    before = children()
    with pytest.raises(StartFailed, match="no room by test"):
        topology(tmp_path, preload=["starts_by_test"]).start()
    assert guardian() is None
    assert children() == before
    dead_within([int(left.read_text())], 2)


def test_one_that_was_there_before_stays(tmp_path: Path) -> None:
    start_forkserver(())
    before = guardian()
    with pytest.raises(TopologyError):
        wrong(tmp_path).start()
    assert guardian() == before is not None


def test_one_that_another_start_needs_stays(tmp_path: Path) -> None:
    with forkserver_ahead():
        before = guardian()
        with pytest.raises(TopologyError):
            wrong(tmp_path).start()
        assert guardian() == before is not None
    with topology(tmp_path).start():
        assert guardian() == before
        with pytest.raises(TopologyError):
            wrong(tmp_path).start()
        assert guardian() == before


def test_all_modules_are_told_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.forkserver.AT_ONCE", 2)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f"told_by_test_{number}" for number in range(5)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / f'{name}.seen')!r}, 'x')\n")
    start_forkserver((*names[:2], "no_such_module", *names[2:]))
    until(lambda: all((tmp_path / f"{name}.seen").exists() for name in names), "all to be imported")


def asks() -> tuple[type[Handler], type[Message], type[Any]]:
    """What reaches a worker by value, as the classes of a script do."""

    class Ask(Message): ...

    class New(Message):
        modules: list[str]

    class Tells(Handler):
        @handle
        def on_ask(self, ask: Ask) -> None:
            import seen_by_test  # type: ignore[import-not-found]

            self.reply(New(sorted(set(sys.modules) - seen_by_test.THERE)))

    return Tells, Ask, New


def test_a_worker_imports_nothing_that_all_workers_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be imported in each of them."""
    (tmp_path / "seen_by_test.py").write_text("import sys\nTHERE = set(sys.modules)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tells, ask, new = asks()
    with topology(tmp_path, tells, ask, preload=["seen_by_test"]).start() as system:
        assert system.ask("one", ask(), reply=new).modules == []


def test_workers_come_again_when_the_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Where(Message): ...

    class Place(Message):
        pid: int
        number: int
        moved: str

    class Stands(Handler):
        @handle
        def on_where(self, where: Where) -> None:
            try:
                path = os.getcwd()
            except FileNotFoundError:
                path = "gone"
            self.reply(Place(os.getpid(), os.stat(".").st_ino, path))

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    with topology(tmp_path, Stands, Where).start() as system:

        def place() -> tuple[int, str]:
            found = system.ask("one", Where(), reply=Place)
            return found.number, found.moved

        assert place() == (number, str(here))
        here.rename(tmp_path / "there")
        system.restart("one")
        assert place() == (number, str(tmp_path / "there"))
        (tmp_path / "there").rmdir()
        for _ in range(2):  # the first one may have been born before
            system.restart("one")
            assert place() == (number, "gone")
