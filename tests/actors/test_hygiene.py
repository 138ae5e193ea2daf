"""What a worker process is born with and what it is granted, with real processes."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.exits import WorkerExit
from actors.hygiene import HEADROOM, OptionRefused, machine
from actors.process import WorkerProcess
from actors.process_options import ProcessOptions
from actors.reasons import Facts, tell
from tests.actors import targets
from tests.actors.waiting import text_of

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("warm_forkserver")


def ended(process: WorkerProcess) -> int:
    assert select.select([process.pidfd], [], [], 10)[0]
    code = process.poll()
    assert code is not None
    return code


def granted(started, path: Path, options: ProcessOptions) -> Any:
    started.append(WorkerProcess.start(targets.tells_what_it_was_granted, (path,), options=options))
    assert ended(started[-1]) == 0, started[-1].words()
    return json.loads(text_of(path))


def test_every_option_is_applied(started, tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    options = ProcessOptions(
        memory_bytes=2 << 30,
        open_files=100,
        cpus=(cpu,),
        nice=3,
        umask=0o027,
        cwd=str(tmp_path),
        user=os.geteuid(),
    )
    before = resource.getrlimit(resource.RLIMIT_CORE), os.nice(0)
    assert granted(started, tmp_path / "facts", options) == {
        "memory": [2 << 30, 2 << 30],
        "files": [100, 100],
        "core": list(before[0]),
        "cpus": [cpu],
        "nice": before[1] + 3,
        "mode": 0o640,
        "cwd": str(tmp_path),
    }


def test_without_options_it_is_as_the_supervisor_is(started, tmp_path: Path) -> None:
    facts = granted(started, tmp_path / "facts", ProcessOptions())
    assert facts["memory"] == list(resource.getrlimit(resource.RLIMIT_AS))
    assert facts["files"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))
    assert facts["cpus"] == sorted(os.sched_getaffinity(0))
    assert facts["nice"] == os.nice(0)
    assert facts["cwd"] == os.getcwd()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ProcessOptions(cwd="/nowhere/at/all"), "No such file or directory"),
        (ProcessOptions(cpus=(100_000,)), "Invalid argument"),
        (ProcessOptions(cpus=(min(os.sched_getaffinity(0)), 1000)), "there is no processor 1000 for this process"),
        (ProcessOptions(memory_bytes=1 << 20), "the process takes .* bytes before any handler is made; give"),
        (ProcessOptions(memory_bytes=1 << 63), "too large"),
        (ProcessOptions(open_files=1 << 64), "too large"),
        (ProcessOptions(open_files=1 << 62), "not allowed to raise maximum limit"),
        pytest.param(
            ProcessOptions(user="nobody"),
            "only root may have a worker run as another",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may: tests/actors/test_user.py"),
        ),
        (ProcessOptions(user="no such user"), "no such user"),
        (ProcessOptions(umask="x"), "integer"),  # type: ignore[arg-type]
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_option_that_cannot_be_applied_ends_the_worker_and_says_why(started, tmp_path, options, why) -> None:
    started.append(WorkerProcess.start(targets.write, (tmp_path / "ran", "it ran"), options=options))
    code = ended(started[0])
    told = tell(Facts(code, started[0].words()))
    assert code == WorkerExit.START_FAILED
    name = next(
        name for name in ("cwd", "cpus", "memory_bytes", "open_files", "user", "umask") if getattr(options, name)
    )
    assert re.search(rf"it could not start: .*process option {name}=.* could not be applied: .*{why}", told), told
    assert not (tmp_path / "ran").exists()


def test_memory_beyond_the_limit_is_a_memory_error(started) -> None:
    options = ProcessOptions(memory_bytes=512 << 20)
    started.append(WorkerProcess.start(targets.takes_memory, (1 << 30,), options=options))
    facts = Facts(ended(started[0]), started[0].words(), memory_bytes=options.memory_bytes)
    assert tell(facts).startswith("ran out of its own memory limit of 536,870,912 bytes; exit code 1")


def test_the_least_memory_is_enough_to_be_born_with(started, tmp_path: Path) -> None:
    started.append(WorkerProcess.start(targets.returns, (0,), options=ProcessOptions(memory_bytes=1 << 20)))
    ended(started[0])
    least = int(started[0].words().rpartition("give ")[2].split()[0].replace(",", ""))
    assert least > HEADROOM
    granted(started, tmp_path / "facts", ProcessOptions(memory_bytes=least + (1 << 20)))


def test_signals_are_as_python_has_them_whatever_the_supervisor_was_started_with(tmp_path: Path) -> None:
    """By a parent that ignores and blocks what it can, as some service managers and `nohup` do."""
    code = (
        "import signal, sys\n"
        "from actors.process import WorkerProcess\n"
        "from pathlib import Path\n"
        "import select\n"
        "from tests.actors import targets\n"
        "process = WorkerProcess.start(targets.tells_its_signals, (Path(sys.argv[1]),))\n"
        "select.select([process.pidfd], [], [], 20)\n"
        "process.close()\n"
    )

    def spoil() -> None:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD})

    subprocess.run([sys.executable, "-c", code, tmp_path / "facts"], cwd=ROOT, preexec_fn=spoil, check=True, timeout=60)
    facts = json.loads(text_of(tmp_path / "facts"))
    assert facts["ignored"] == ["SIGHUP", "SIGINT", "SIGPIPE", "SIGXFSZ"]
    assert int(facts["blocked"], 16) == 0


def test_nothing_is_passed_on_to_grandchildren_by_accident(started, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    started.append(WorkerProcess.start(targets.tells_its_signals, (tmp_path / "facts",), pass_fds=[writer]))
    facts = json.loads(text_of(tmp_path / "facts"))
    os.close(reader)
    os.close(writer)
    assert facts["inheritable"] == []
    nohup = ["SIGHUP"] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else []
    assert facts["ignored"] == [*nohup, "SIGINT", "SIGPIPE", "SIGXFSZ"]
    assert int(facts["mark"]) == started[0].pid


def test_errors_survive_pickling() -> None:
    error = OptionRefused("nice", -1, "no")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_is_known_of_this_machine() -> None:
    here = machine()
    assert here.cpus is not None
    assert os.sched_getaffinity(0) <= here.cpus
    assert here.root == (os.geteuid() == 0)
    assert here.uid_of("root") == here.uid_of(0) == 0
    assert here.is_directory("/")
    assert here.uid_of(7) == 7
