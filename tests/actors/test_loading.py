"""Which topology `FILE[:NAME]` means, and how what the file defines reaches the workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from actors import Message, System
from actors.loading import CannotLoad, NoTopology, load_topology, split
from actors.message import type_name
from bus import Field

from .waiting import until

Write = Callable[..., str]

PLAIN = """
    from actors import Handler, Message, Topology, handle

    class Ping(Message):
        n: int

    class Pong(Message):
        text: str

    PREFIX = "pong"

    def text(n: int) -> str:
        return f"{PREFIX} {n}"

    class Player(Handler):
        @handle
        def on_ping(self, ping: Ping) -> None:
            self.reply(Pong(text(ping.n)))

    app = Topology("plain")
    app.worker("one", player=Player)
    app.external("player", Ping)

    if __name__ == "__main__":
        raise SystemExit("the file was run")
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test imports, it alone has imported."""
    modules, paths = set(sys.modules), list(sys.path)
    registered = set(cloudpickle.list_registry_pickle_by_value())
    yield
    for name in set(cloudpickle.list_registry_pickle_by_value()) - registered:
        cloudpickle.unregister_pickle_by_value(sys.modules[name])
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(("/tmp", os.environ.get("TMPDIR", "/tmp"))):
            del sys.modules[name]
    sys.path[:] = paths


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "loaded_shop.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def two(first: str = "app", second: str = "other") -> str:
    return f"from actors import Topology\n{first} = Topology('trades')\n{second} = Topology('weather')\n"


# ------------------------------------------------------------------------------------------------------- which one
def test_the_only_topology_of_a_file_is_found(write: Write) -> None:
    assert load_topology(write(PLAIN)).name == "plain"


def test_code_for_when_the_file_is_run_does_not_run(write: Write) -> None:
    load_topology(write("from actors import Topology\napp = Topology('x')\nif __name__ == '__main__': app.run()"))


@pytest.mark.parametrize("name", ["other", "weather"])
def test_one_of_several_is_chosen_by_its_variable_or_by_its_own_name(write: Write, name: str) -> None:
    assert load_topology(f"{write(two())}:{name}").name == "weather"


def test_the_same_topology_under_two_names_is_one(write: Write) -> None:
    assert load_topology(write("from actors import Topology\nx = y = Topology('trades')")).name == "trades"


def test_several_without_a_name_are_an_error_that_lists_them(write: Write) -> None:
    with pytest.raises(NoTopology) as caught:
        load_topology(write(two()))
    assert str(caught.value) == (
        "loaded_shop.py has more than one Topology: choose with loaded_shop.py:NAME; "
        "there are app (trades), other (weather)"
    )


def test_a_wrong_name_is_an_error_that_lists_the_candidates(write: Write) -> None:
    with pytest.raises(NoTopology, match=r"has no Topology 'nosuch'; there are app \(trades\), other \(weather\)"):
        load_topology(f"{write(two())}:nosuch")


def test_a_name_that_means_something_else_is_told(write: Write) -> None:
    with pytest.raises(NoTopology, match=r"'app' is not a Topology but a dict; there are none"):
        load_topology(f"{write('app = dict()')}:app")


def test_a_file_without_a_topology_is_an_error_that_says_where_it_has_to_be(write: Write) -> None:
    with pytest.raises(NoTopology, match="has no Topology at the top level of the module"):
        load_topology(write("def make():\n    from actors import Topology\n    return Topology('x')"))


# ------------------------------------------------------------------------------------------------------- which file
def test_a_missing_file_is_told_with_what_may_be_meant(write: Write) -> None:
    path = write(PLAIN)
    with pytest.raises(CannotLoad, match=r"there is no such file; there is .*loaded_shop\.py"):
        load_topology(path.removesuffix(".py"))
    with pytest.raises(CannotLoad, match=r"nosuch: there is no such file$"):
        load_topology("nosuch")


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CannotLoad, match="is a directory"):
        load_topology(str(tmp_path))


def test_a_file_with_a_colon_in_its_name_is_found(write: Write) -> None:
    path = write(PLAIN, "a:b.py")
    assert split(path) == (Path(path), "")
    assert split(f"{path}:app") == (Path(path), "app")


def test_a_file_whose_name_hides_a_module_is_refused(write: Write) -> None:
    for name in ("json", "bus", "queue", "pytest"):
        with pytest.raises(CannotLoad, match=f"hides the module '{name}' that is needed itself: rename the file"):
            load_topology(write(PLAIN, f"{name}.py"))
    assert json.loads("1") == 1


def test_modules_beside_the_file_can_be_imported(write: Write) -> None:
    write("NAME = 'from beside'", "loaded_beside.py")
    app = load_topology(write("from actors import Topology\nfrom loaded_beside import NAME\napp = Topology(NAME)"))
    assert app.name == "from beside"


def test_a_file_inside_a_package_can_import_its_neighbours(write: Write) -> None:
    write("", "loaded_package/__init__.py")
    write("NAME = 'neighbour'", "loaded_package/names.py")
    text = "from actors import Topology\nfrom .names import NAME\napp = Topology(NAME)"
    assert load_topology(write(text, "loaded_package/shop.py")).name == "neighbour"


def test_messages_have_the_names_that_they_have_when_the_file_is_run(write: Write) -> None:
    load_topology(write(PLAIN))
    assert type_name(sys.modules["loaded_shop"].Ping) == "loaded_shop.Ping"


def test_a_file_that_is_loaded_twice_is_imported_once(write: Write) -> None:
    path = write(PLAIN)
    assert load_topology(path) is load_topology(path)


# ------------------------------------------------------------------------------------------------------- what fails
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def broken():\n    return 1 / 0\n\nbroken()", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("app = ", "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_file_that_cannot_be_imported_shows_the_users_part_of_the_traceback(
    write: Write, text: str, told: str
) -> None:
    path = write(text)
    before = list(sys.path)
    with pytest.raises(CannotLoad) as caught:
        load_topology(path)
    error = caught.value
    assert error.reason.startswith(f"importing it failed with {told}")
    assert "loaded_shop.py" in error.trace
    assert "importlib" not in error.trace
    assert "loading.py" not in error.trace
    assert ("loaded_shop" in sys.modules, sys.path) == (False, before)


def test_errors_survive_pickling(write: Write) -> None:
    for error in (CannotLoad("f", "r", "t"), NoTopology("f", "n", ("a", "b"), "a dict")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))


# ------------------------------------------------------------------------------------------------------- the workers
def started(path: str, directory: Path) -> System:
    app = load_topology(path)
    app.directory = directory
    return app.start()


def ask(system: System, n: int) -> Any:
    message: Message = sys.modules["loaded_shop"].Ping(n)
    return system.ask("player", message)


def test_handlers_of_the_file_reach_the_workers_and_answer(write: Write, tmp_path: Path) -> None:
    with started(write(PLAIN), tmp_path / "run") as system:
        assert ask(system, 7).text == "pong 7"


def test_a_restarted_worker_runs_the_code_that_the_system_was_started_with(write: Write, tmp_path: Path) -> None:
    path = write(PLAIN)
    with started(path, tmp_path / "run") as system:
        Path(path).write_text("raise RuntimeError('this is not what was started')")
        block = system.block("one")
        os.kill(block.get(Field.PID), signal.SIGKILL)
        until(lambda: block.get(Field.RESTARTS) == 1, "the restart")
        assert ask(system, 8).text == "pong 8"
