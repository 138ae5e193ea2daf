"""Mistakes in process options are told when the topology is compiled: name, value, what to do."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import Handler, Message, Topology, TopologyError, handle
from actors.codecs import JSON, PICKLE
from actors.declaration import Declaration, DeclaredCodec, DeclaredOptions, DeclaredWorker
from actors.process_options import ProcessOptions
from actors.validate_options import Machine, option_problems

HERE = Machine(
    root=False,
    uid=1000,
    cpus=frozenset({0, 1, 2, 3}),
    open_files=4096,
    files_of_anybody=1 << 20,
    memory_bytes=None,
    is_directory=lambda path: path == "/srv",
    uid_of={"me": 1000, "other": 1001, "root": 0, 1000: 1000, 0: 0, 4242: 4242}.__getitem__,
    gid_of=lambda user, group: {"other": 1001, "root": 0, "staff": 50, 50: 50}[user if group is None else group],
)


class Tick(Message):
    n: int


class Sink(Handler):
    @handle
    def on_tick(self, tick: Tick) -> None: ...


def found(machine: Machine = HERE, worker: Any = "stats", **options: Any) -> list[str]:
    declaration = Declaration("trades", "process", {})
    declaration.workers.append(DeclaredWorker("stats", {"sink": Sink}, "trades.py:1"))
    declaration.processes.append(DeclaredOptions(worker, options, "trades.py:2"))
    return [str(problem) for problem in option_problems(declaration, machine)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_bytes": 1 << 30, "open_files": 1024, "cpus": (0, 3), "nice": 5, "umask": 0o077, "cwd": "/srv"},
        {"user": "me"},
        {"user": 1000},
        {"umask": 0},
        {name: getattr(ProcessOptions(), name) for name in ProcessOptions.__struct_fields__},
    ],
    ids=str,
)
def test_what_can_be_granted_is_no_problem(options: dict[str, Any]) -> None:
    assert found(**options) == []


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"memory_bytes": "1G"}, ["memory_bytes='1G': not a whole number", "a number of bytes"]),
        ({"memory_bytes": True}, ["memory_bytes=True: not a whole number"]),
        ({"memory_bytes": 1 << 20}, ["memory_bytes=1048576: a worker cannot live with less than 67108864"]),
        ({"open_files": 3}, ["open_files=3: a worker cannot live with less than 32"]),
        ({"open_files": 1.5}, ["open_files=1.5: not a whole number"]),
        ({"open_files": 5000}, ["open_files=5000: more than this process may give, which is 4096"]),
        ({"memory_bytes": 1 << 63}, ["memory_bytes=9223372036854775808: more than any process can have", "give less"]),
        ({"open_files": 1 << 64}, ["open_files=18446744073709551616: more than any process can have"]),
        ({"umask": 0o177}, ["umask=127: with 0o177 the worker could not use its own files", "as 0o077"]),
        ({"umask": 0o400}, ["umask=256: with 0o400"]),
        ({"cpus": (1, 4, 9)}, ["cpus=(1, 4, 9): there is no processor 4, 9 here; there are 0 to 3"]),
        ({"cpus": ()}, ["cpus=(): not a set of processors", "as cpus=[0, 1]"]),
        ({"cpus": ("a",)}, ["cpus=('a',): not a set of processors"]),
        ({"cpus": 3}, ["cpus=3: not a set of processors"]),
        ({"nice": -5}, ["nice=-5: only root may be less nice; give 0 to 19"]),
        ({"nice": 20}, ["nice=20: out of range; it is a whole number from -20 to 19"]),
        ({"nice": False}, ["nice=False: out of range"]),
        ({"umask": 0o1777}, ["umask=1023: not a file mode"]),
        ({"cwd": "/nowhere"}, ["cwd='/nowhere': there is no such directory"]),
        ({"cwd": 7}, ["cwd=7: not a path"]),
        ({"cwd": ""}, ["cwd='': not a path"]),
        ({"user": "nobody-here"}, ["user='nobody-here': there is no such user"]),
        ({"user": "root"}, ["user='root': the system is started as user 1000", "start the whole system as the user"]),
        ({"user": 0}, ["user=0: the system is started as user 1000"]),
        ({"user": -1}, ["user=-1: not a user"]),
        ({"user": 1 << 32}, ["user=4294967296: not a user"]),
        ({"user": True}, ["user=True: not a user"]),
        ({"group": 50}, ["group=50: it is for a worker that runs as another user", "give that user as well"]),
        ({"user": "me", "group": "staff"}, ["group='staff': it is for a worker that runs as another user"]),
        ({"user": "me", "group": 1.5}, ["group=1.5: not a group"]),
    ],
    ids=str,
)
def test_mistakes_are_told_with_worker_name_value_and_hint(options: dict[str, Any], texts: list[str]) -> None:
    (problem,) = found(**options)
    assert problem.startswith("worker 'stats': process option ")
    assert problem.endswith("[trades.py:2]")
    for text in texts:
        assert text in problem


def test_root_may_what_others_may_not() -> None:
    root = replace(HERE, root=True)
    assert found(root, nice=-5, open_files=5000) == []
    (problem,) = found(root, open_files=1 << 40)
    assert "open_files=1099511627776: more than this process may give, which is 1048576; give less" in problem
    assert found(replace(root, files_of_anybody=None), open_files=1 << 40) == []
    assert len(found(root, memory_bytes=1 << 63)) == 1
    assert found(root, memory_bytes=(1 << 63) - 1) == []


def test_root_may_have_a_worker_run_as_another_user() -> None:
    root = replace(HERE, root=True, uid=0)
    assert (
        found(root, user="other") == found(root, user="other", group="staff") == found(root, user=4242, group=50) == []
    )
    (problem,) = found(root, user=4242)
    assert (
        "user=4242: this machine knows no user of that number, so not its group either; give group= as well" in problem
    )
    (problem,) = found(root, user="other", group="stuff")
    assert "group='stuff': there is no such group; give the name of a group" in problem
    (problem,) = found(root, user="others", group="staff")
    assert "user='others': there is no such user" in problem
    (problem,) = found(replace(root, cannot_change="root is without CAP_SETUID here"), user="other")
    assert "user='other': root is without CAP_SETUID here; grant root these rights, or leave the user" in problem
    (problem,) = found(replace(root, is_mapped=lambda uid: uid == 0), user="other")
    assert "user='other': there is no user 1001 in this user namespace" in problem


def test_what_another_user_sends_is_not_executed_as_root() -> None:
    declaration = Declaration("trades", "process", {})
    declaration.workers.append(DeclaredWorker("stats", {"sink": Sink}, "trades.py:1"))
    declaration.processes.append(DeclaredOptions("stats", {"user": "other"}, "trades.py:2"))
    declaration.codecs.append(DeclaredCodec(Tick, JSON, "trades.py:3"))
    root = replace(HERE, root=True, uid=0)
    assert option_problems(declaration, root) == []
    declaration.codecs.append(DeclaredCodec(Sink, PICKLE, "trades.py:4"))
    (problem,) = option_problems(declaration, root)
    assert "worker 'stats': process option user='other': the topology has messages sent by pickle (Sink)" in str(
        problem
    )
    declaration.processes[0] = DeclaredOptions("stats", {"user": "root"}, "trades.py:2")
    assert option_problems(declaration, root) == []


def test_where_processors_cannot_be_chosen() -> None:
    (problem,) = found(replace(HERE, cpus=None), cpus=(0,))
    assert "cannot bind processes to processors" in problem


@pytest.mark.parametrize("worker", ["stat", None])
def test_an_unknown_worker_is_told_with_those_there_are(worker: Any) -> None:
    (problem,) = found(worker=worker, nice=1)
    assert "there is no worker of that name" in problem
    assert "stats" in problem


def test_every_mistake_is_told_at_once() -> None:
    assert len(found(nice=99, umask=-1, cpus=(77,))) == 3


def test_topologies_are_checked_when_they_are_compiled(tmp_path: Path) -> None:
    app = Topology("trades")
    app.worker("stats", sink=Sink)
    app.external("sink", Tick)
    app.process("stats", cpus=3, cwd=7, nice=50)  # type: ignore[arg-type]
    with pytest.raises(TopologyError) as caught:
        app.compile()
    assert [problem.kind for problem in caught.value.problems] == ["bad-process-option"] * 3
    app.process("stats", cpus=[0], cwd=tmp_path)
    with pytest.raises(TopologyError):
        app.compile()
    good = Topology("trades")
    good.worker("stats", sink=Sink)
    good.external("sink", Tick)
    good.process("stats", cpus=iter([0]), cwd=tmp_path)
    options = good.compile().worker("stats").process
    assert options == ProcessOptions(cpus=(0,), cwd=str(tmp_path))
    assert pickle.loads(pickle.dumps(options)) == options
