"""What is imported once for all workers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from actors import Handler, Message, Topology, TopologyError, handle
from actors import process as process_module
from actors.process import stop_forkserver
from tests.actors.waiting import until


class Where(Message): ...


class Pid(Message):
    imported_in: int
    runs_in: int


class Asked(Handler):
    @handle
    def on_where(self, where: Where) -> None:
        import preloaded_by_test  # type: ignore[import-not-found]

        self.reply(Pid(preloaded_by_test.PID, os.getpid()))


def topology(tmp_path: Path, **options: object) -> Topology:
    app = Topology("preload", directory=tmp_path / "run", **options)  # type: ignore[arg-type]
    app.worker("one", asked=Asked)
    app.worker("two", again=Asked)
    app.external("asked", Where)
    app.external("again", Where)
    return app


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "preloaded_by_test.py").write_text("import os\nPID = os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    stop_forkserver()
    return "preloaded_by_test"


@pytest.mark.parametrize("preload", [True, False])
def test_a_preloaded_module_is_imported_once_for_all_workers(tmp_path: Path, module: str, preload: bool) -> None:
    with topology(tmp_path, preload=[module] if preload else []).start() as system:
        found = [system.ask(name, Where(), reply=Pid) for name in ("asked", "again")]
    stop_forkserver()
    assert (len({one.imported_in for one in found}) == 1) is preload
    assert all((one.imported_in == one.runs_in) is not preload for one in found)
    assert all(one.imported_in != os.getpid() for one in found)


@pytest.mark.parametrize("spare", [True, False])
def test_a_restart_finds_what_was_preloaded(
    tmp_path: Path, module: str, spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not its process was ready before the death."""
    if not spare:
        monkeypatch.setattr("actors.system.keep_spare", lambda: None)
    with topology(tmp_path, preload=[module]).start() as system:
        before = system.ask("asked", Where(), reply=Pid)
        if spare:
            until(lambda: process_module._spare is not None and process_module._spare.pid, "a spare to be born")
        ready = process_module._spare.pid if process_module._spare is not None else 0
        os.kill(before.runs_in, signal.SIGKILL)
        after = system.ask("asked", Where(), reply=Pid)
    stop_forkserver()
    assert after.runs_in not in {before.runs_in, after.imported_in}
    assert after.imported_in == before.imported_in
    assert (after.runs_in == ready) is spare


def test_what_cannot_be_preloaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken_by_test").mkdir()
    (tmp_path / "broken_by_test" / "__init__.py").write_text("1 / 0\n")
    sys.path.insert(0, str(tmp_path))
    try:
        for wrong, told in {
            "numpy": "preload='numpy' is no list of modules",
            ("no_such_module",): "preload of 'no_such_module': no such module is found",
            ("broken_by_test.inner",): "preload of 'broken_by_test.inner': ZeroDivisionError",
            (3,): "preload of 3: no such module",
            (".relative",): "preload of '.relative'",
            ("",): "preload of ''",
        }.items():
            with pytest.raises(TopologyError, match=told.replace(".", r"\.")):
                topology(tmp_path, preload=wrong).compile()
    finally:
        sys.path.remove(str(tmp_path))


def test_nothing_is_preloaded_for_a_worker_of_another_user(tmp_path: Path) -> None:
    app = topology(tmp_path, preload=["json"])
    app.process("two", user=os.getuid())
    with pytest.raises(TopologyError, match="worker 'two' must not have them"):
        app.compile()
