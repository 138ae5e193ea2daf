"""Workers that run as another user than the supervisor, which is root: what they may, and that nothing else suffers."""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from actors import StartFailed, System, Topology, TopologyError, user_account
from actors.cli import app as cli
from actors.exits import ExitStatus, WorkerExit
from actors.identity import stale_prefix
from actors.opened import Opening, open_first
from actors.process import WorkerProcess
from actors.process_options import ProcessOptions
from actors.reasons import Facts, tell
from actors.rundir import JOURNALS, RunDirectory
from actors.user_account import NEEDED, account, cannot_change
from bus import Field
from bus.segment import remove_stale
from persist import UnsafeDirectory
from tests.actors import targets
from tests.actors.test_hygiene import ended
from tests.actors.waiting import dead_within, text_of, until

pytestmark = pytest.mark.skipif(bool(cannot_change()), reason=f"needs the rights of root: {cannot_change()}")

ROOT = Path(__file__).parents[2]
NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwnam("daemon")
ANYBODY = 54_321  # a number that no user has


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into, with the module of the handlers; `tmp_path` is for us alone."""
    with tempfile.TemporaryDirectory(prefix="ringleader-public-") as folder:
        os.chmod(folder, 0o755)
        shutil.copy(Path(__file__).with_name("as_user.py"), folder)
        os.chmod(Path(folder, "as_user.py"), 0o644)
        yield Path(folder)


@pytest.fixture
def module(public: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(public)
    yield importlib.import_module("as_user")
    del sys.modules["as_user"]


Declare = Callable[..., Topology]


@pytest.fixture
def declare(tmp_path: Path, module: ModuleType) -> Declare:
    def declare(user: Any = "nobody", level: str = "process", feed: bool = False, **options: Any) -> Topology:
        app = Topology("users", directory=tmp_path / "users", durability=level, max_restarts=50, backoff_first=0.01)
        app.worker("w", teller=module.Teller if feed else module.Once, hanging=module.Hanging)
        app.external("teller", module.Ask, module.Tick, module.Poison, module.Do)
        app.external("hanging", module.Hang)
        if feed:
            app.worker("feeder", feed=module.Feed)
            app.route("feed", module.Tick, to="teller")
            app.external("feed", module.Enough)
        if user is not None:
            app.process("w", user=user, **options)
        return app

    return declare


def ask(system: System, module: ModuleType, path: object = "") -> dict[str, Any]:
    facts: dict[str, Any] = system.ask("teller", module.Ask(str(path)), timeout=100).facts
    return facts


def owners(folder: Path) -> set[tuple[int, int]]:
    return {(found.stat().st_uid, found.stat().st_gid) for found in (folder, *folder.iterdir())}


def as_seen(entry: pwd.struct_passwd) -> list[Any]:
    groups = sorted(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return [[entry.pw_uid] * 3, [entry.pw_gid] * 3, groups]


@pytest.mark.parametrize("level", ["memory", "process", "power"])
def test_no_code_of_a_handler_ever_runs_as_root(declare: Declare, module: ModuleType, tmp_path: Path, level) -> None:
    secret = tmp_path / "secret"
    secret.write_text("only for root")
    secret.chmod(0o600)
    tmp_path.chmod(0o711)  # it is the file that keeps others out
    with declare(level=level, nice=-3, cwd="/").start() as system:
        for _ in range(2):
            facts = ask(system, module, secret)
            for when in ("import", "init", "start", "call"):
                assert facts[when] == as_seen(NOBODY), when
            assert facts["read"] == "PermissionError"
            assert facts["capabilities"] == [0, 0, 0]
            assert facts["dies with its parent by"] == signal.SIGKILL
            assert facts["others may trace it"] != 1
            assert facts["tracker"] is None
            assert (facts["cwd"], facts["home"], facts["name"]) == ("/", NOBODY.pw_dir, "nobody")
            assert facts["nice"] == os.nice(0) - 3
            os.kill(facts["pid"], signal.SIGKILL)  # the next incarnation is no different
    if level != "memory":
        assert owners(tmp_path / "users" / JOURNALS / "w") == {(NOBODY.pw_uid, NOBODY.pw_gid)}


def test_the_others_run_as_root(declare: Declare, module: ModuleType) -> None:
    with declare(None).start() as system:
        facts = ask(system, module, "/proc/self/environ")
        assert facts["call"][0] == [0, 0, 0]
        assert b"PATH=" in facts["read"].encode()


def test_groups_can_be_given_and_users_may_be_numbers(declare: Declare, module: ModuleType) -> None:
    with declare("nobody", group="daemon").start() as system:
        uids, gids, groups = ask(system, module)["call"]
        assert (uids[0], gids) == (NOBODY.pw_uid, [DAEMON.pw_gid] * 3)
        assert groups == sorted(os.getgrouplist("nobody", DAEMON.pw_gid))
    with declare(ANYBODY, group=ANYBODY + 1).start() as system:
        facts = ask(system, module)
        assert facts["call"] == [[ANYBODY] * 3, [ANYBODY + 1] * 3, [ANYBODY + 1]]
        assert (facts["home"], facts["name"]) == ("/", str(ANYBODY))


def test_it_survives_five_kills_with_every_effect_exactly_once(declare: Declare, module: ModuleType) -> None:
    with declare(feed=True).start() as system:
        for _ in range(5):
            before = ask(system, module)
            os.kill(before["pid"], signal.SIGKILL)
            until(lambda n=before["count"]: ask(system, module)["count"] > n, "it to go on")  # type: ignore[misc]
        total = system.ask("feed", module.Enough()).n
        until(lambda: ask(system, module)["count"] == total, "all to be counted", 30)
        assert system.status().workers[0].deaths == 5
        assert ask(system, module)["import"] == as_seen(NOBODY)
        assert system.stop() is ExitStatus.OK


def test_at_level_power_it_survives_as_well(declare: Declare, module: ModuleType) -> None:
    with declare(level="power", feed=True).start() as system:
        before = ask(system, module)
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: ask(system, module)["count"] > before["count"], "it to go on")
        total = system.ask("feed", module.Enough()).n
        until(lambda: ask(system, module)["count"] == total, "all to be counted", 60)
        assert system.stop() is ExitStatus.OK


def test_what_is_done_to_workers_is_done_to_it(declare: Declare, module: ModuleType) -> None:
    """Logs, stacks, last words, hangs, its own children, pause, restart, its own end."""
    with declare().start() as system:
        system.send("teller", module.Do("log"))
        log = system.directory / "log.jsonl"
        until(lambda: f"as user {NOBODY.pw_uid}" in log.read_text(), "its record to be in the log")
        assert "(most recent call first)" in system._stacks_of("w")

        left = system.ask("teller", module.Do("sleep"), timeout=100).facts["pid"]
        system.send("teller", module.Do("crash"))
        dead_within([left], 5)  # although it had left the worker's group
        until(lambda: system.status().workers[0].deaths == 1, "its death to be told")
        assert "killed by SIGSEGV" in system.status().workers[0].last_death
        assert "as_user.py" in log.read_text()  # faulthandler's stack

        system.send("hanging", module.Hang())
        until(lambda: system.status().workers[0].deaths == 2, "it to be killed")
        assert "more than its busy_limit of 1.5 s" in system.status().workers[0].last_death

        system.drain("w")
        system.resume("w")
        system.restart("w")
        assert ask(system, module)["import"] == as_seen(NOBODY)
        assert system.status().workers[0].user == "nobody"
        system.send("teller", module.Do("leave"))
        until(lambda: system.status().workers[0].restarts == 4, "it to be started again")
        assert ask(system, module)["start"] == as_seen(NOBODY)
        assert system.stop() is ExitStatus.OK


def test_it_dies_with_its_supervisor(public: Path, tmp_path: Path) -> None:
    program = public / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(public)!r}]
        import as_user
        from actors import Topology
        app = Topology("mortal", directory={str(tmp_path / "mortal")!r})
        app.worker("w", teller=as_user.Teller)
        app.external("teller", as_user.Ask, as_user.Do, as_user.Tick, as_user.Poison)
        app.process("w", user="nobody")
        if __name__ == "__main__":
            system = app.start()
            pids = [system.ask("teller", as_user.Ask()).facts["pid"]]
            pids.append(system.ask("teller", as_user.Do("sleep")).facts["pid"])
            print(*pids, flush=True)
            system.join()
        """)
    )
    for stopped in (False, True):
        with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 2
            if stopped:
                os.kill(pids[0], signal.SIGSTOP)  # then nothing of its own can help
            process.kill()
            dead_within(pids, 2.0)
    with RunDirectory.open(tmp_path / "mortal") as directory:
        identity = directory.read_identity()
    assert identity is not None
    remove_stale(stale_prefix(identity))


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code in {0, 3}, result.output
    return result.output


def test_commands_work_on_it_while_it_runs_and_after(declare: Declare, module: ModuleType) -> None:
    with declare().start() as system:
        place = system.directory
        system.send("teller", module.Poison())
        until(lambda: system.status().dead_letters == 1, "a dead letter")
        assert "runs w as nobody" in run("status", place)
        assert "ValueError: no good" in run("dead-letters", "list", place)
        run("dead-letters", "requeue", place, "--all")
        until(lambda: system.block("w").get(Field.DEAD_LETTERS) == 1, "it to fail again")
        assert "w: ok" in run("journal", "verify", place)
        assert "in use by process" in run("journal", "ls", place, "w")
        system.stop()
    assert "ValueError: no good" in run("dead-letters", "list", place)
    assert "w: ok" in run("journal", "verify", place)
    (letter,) = json.loads(run("dead-letters", "list", place, "--json"))["dead_letters"]
    (place / JOURNALS / "w" / "lock").unlink()  # one that root has to make
    run("dead-letters", "requeue", place, letter["id"])
    assert owners(place / JOURNALS / "w") == {(NOBODY.pw_uid, NOBODY.pw_gid)}
    assert "no dead letters" in run("dead-letters", "list", place)
    with declare().start() as system:
        until(lambda: system.status().dead_letters == 1, "it to be handled, and to fail again")


def test_the_user_may_change_between_two_starts(declare: Declare, module: ModuleType) -> None:
    expected = 0
    for entry in (None, NOBODY, DAEMON, None, DAEMON, NOBODY):
        with declare(entry and entry.pw_name).start() as system:
            place = system.directory / JOURNALS
            expected += 1
            system.send("teller", module.Tick(expected))
            until(lambda n=expected: ask(system, module)["count"] == n, "it to be counted")  # type: ignore[misc]
            assert ask(system, module)["call"][0] == [entry.pw_uid if entry else 0] * 3
        assert owners(place / "w") == {(entry.pw_uid, entry.pw_gid) if entry else (0, 0)}
        assert owners(place / "gateway") == {(0, 0)}
        assert [place.parent.stat().st_mode & 0o777, place.stat().st_mode & 0o777] == [0o700, 0o700]


def test_a_crash_while_a_journal_changes_hands_is_seen_through(
    declare: Declare, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with declare("nobody").start() as system:
        system.send("teller", module.Tick(1))
        until(lambda: ask(system, module)["count"] == 1, "it to be counted")
        place = system.directory
    real, calls = os.fchown, [0]

    def crash(descriptor: int, uid: int, gid: int) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(errno.EIO, "as good as a crash")
        real(descriptor, uid, gid)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchown", crash)
        with pytest.raises(StartFailed, match="as good as a crash"):
            declare("daemon").start()
    journal = place / JOURNALS / "w"
    assert {uid for uid, _ in owners(journal)} == {NOBODY.pw_uid, DAEMON.pw_uid}
    (journal / "spare").unlink()
    (journal / "spare").touch()  # as one that root has just made
    with declare(ANYBODY, group=ANYBODY).start() as system:  # and by now it is to be a third one's
        assert ask(system, module)["count"] == 1
    assert owners(journal) == {(ANYBODY, ANYBODY)}


def plant_file_of_another(journal: Path) -> None:
    (journal / "00000000000000000000.journal").write_text("x")
    os.chown(journal / "00000000000000000000.journal", ANYBODY, 0)


def plant_file_of_root(journal: Path) -> None:
    (journal / "moved here").write_text("a secret of root")


def plant_hard_link(journal: Path) -> None:
    os.link(next(journal.glob("*.journal")), journal.parent / "elsewhere")


def plant_link(journal: Path) -> None:
    (journal / "00000000000000000000.journal").symlink_to("/etc/shadow")


def plant_pipe(journal: Path) -> None:
    (journal / "spare").unlink()
    os.mkfifo(journal / "spare")
    os.chown(journal / "spare", NOBODY.pw_uid, 0)


def plant_nothing(journal: Path) -> None:
    os.chown(journal, ANYBODY, 0)


PLANTS = [plant_file_of_another, plant_file_of_root, plant_hard_link, plant_link, plant_pipe, plant_nothing]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.removeprefix("plant_"))
def test_what_does_not_belong_to_the_user_is_never_given_away(declare: Declare, module: ModuleType, plant) -> None:
    with declare("nobody").start() as system:
        journal = system.directory / JOURNALS / "w"
    plant(journal)
    for user in ("daemon", "nobody"):
        with pytest.raises(StartFailed, match=r"journals/w.*(plain file|cannot be opened|belong)"):
            declare(user).start()
    shutil.rmtree(journal)
    (journal.parent / "elsewhere").unlink(missing_ok=True)
    assert Path("/etc/shadow").stat().st_uid == 0


def test_commands_refuse_a_journal_of_anybody_else(declare: Declare, module: ModuleType) -> None:
    with declare("nobody").start() as system:
        place = system.directory
        system.send("teller", module.Poison())
        until(lambda: system.status().dead_letters == 1, "a dead letter")
    os.chown(place / JOURNALS / "w", DAEMON.pw_uid, 0)
    told = f"belongs to user {DAEMON.pw_uid}, and has to belong to user {NOBODY.pw_uid}"
    result = CliRunner().invoke(cli, ["journal", "verify", str(place)], env={"COLUMNS": "200"})
    assert (result.exit_code, told in result.output) == (5, True), result.output
    result = CliRunner().invoke(cli, ["dead-letters", "list", str(place)], env={"COLUMNS": "200"})
    assert told in result.output
    assert result.exit_code != 0


def test_a_worker_opens_no_journal_but_that_of_its_user(tmp_path: Path) -> None:
    journal = tmp_path / "w"
    journal.mkdir(mode=0o700)
    os.chown(journal, DAEMON.pw_uid, 0)
    opened = open_first(Opening((), str(journal), "process", NOBODY.pw_uid))
    with pytest.raises(UnsafeDirectory, match=f"user {DAEMON.pw_uid}, and its worker runs as {NOBODY.pw_uid}"):
        opened.directory(str(journal))
    opened = open_first(Opening((), str(journal), "process", DAEMON.pw_uid))
    opened.directory(str(journal)).close()
    with pytest.raises(UnsafeDirectory, match="was not opened"):
        opened.directory(str(journal))


def test_refusals_name_worker_user_and_remedy(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TopologyError, match=r"worker 'w': process option user='no-such-user': there is no such user"):
        declare("no-such-user").compile()
    with pytest.raises(TopologyError, match=rf"user={ANYBODY}: .*; give group= as well"):
        declare(ANYBODY).compile()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    remedy = "start the system as root, or start the whole system as the user that it is to run as"
    with pytest.raises(TopologyError, match=rf"worker 'w': process option user='nobody': .* user 1000, .*; {remedy}"):
        declare("nobody").compile()


def test_root_without_the_right_to_change_users_is_told_at_compile_time() -> None:
    def drop() -> None:
        ctypes.CDLL(None).prctl(24, NEEDED["CAP_SETUID"], 0, 0, 0)  # PR_CAPBSET_DROP: the exec that follows gives it up

    code = "from actors.user_account import cannot_change; print(cannot_change())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, preexec_fn=drop, capture_output=True, check=True)
    assert out.stdout.decode().startswith("root is without CAP_SETUID here")


def test_a_user_that_this_namespace_does_not_have_is_told_at_compile_time() -> None:
    code = "from actors.user_account import is_mapped; print([is_mapped(uid) for uid in (0, 1, 65534)])"
    command = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip(f"no user namespaces here: {out.stderr}")
    assert out.stdout == "[True, False, False]\n"
    assert all(user_account.is_mapped(uid) for uid in (0, NOBODY.pw_uid, ANYBODY))


def test_a_worker_that_would_keep_rights_of_root_never_runs(tmp_path: Path) -> None:
    def keep() -> None:
        ctypes.CDLL(None).prctl(28, 1 << 2, 0, 0, 0)  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP

    code = (
        "import select, sys\n"
        "from pathlib import Path\n"
        "from actors.process import WorkerProcess\n"
        "from actors.process_options import ProcessOptions\n"
        "from tests.actors import targets\n"
        "options = ProcessOptions(user='nobody')\n"
        "process = WorkerProcess.start(targets.write, (Path(sys.argv[1]), 'it ran'), options=options)\n"
        "select.select([process.pidfd], [], [], 20)\n"
        "print(process.poll(), process.words())\n"
        "process.close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ran")]
    out = subprocess.run(command, cwd=ROOT, preexec_fn=keep, capture_output=True, check=True, timeout=60)
    words = out.stdout.decode()
    assert words.startswith(str(int(WorkerExit.START_FAILED)))
    assert "process option user='nobody' could not be applied: the worker would keep rights of root (CapPrm" in words
    assert not (tmp_path / "ran").exists()


def started_as(started: list[WorkerProcess], options: ProcessOptions, *args: object) -> str:
    started.append(WorkerProcess.start(targets.write, args, options=options))
    code = ended(started[-1])
    return tell(Facts(code, started[-1].words()))


def test_limits_are_those_that_root_may_give_and_the_directory_one_that_the_user_may_enter(
    warm_forkserver, started, tmp_path: Path, public: Path
) -> None:
    """The target's own file is made by the user, in a folder of the user's."""
    theirs = public / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)
    options = ProcessOptions(user="nobody", nice=-2, open_files=64, memory_bytes=2 << 30, cwd=str(theirs))
    started.append(WorkerProcess.start(targets.tells_what_it_was_granted, (theirs / "facts",), options=options))
    assert ended(started[-1]) == 0, started[-1].words()
    facts = json.loads(text_of(theirs / "facts"))
    assert (facts["nice"], facts["files"], facts["memory"]) == (os.nice(0) - 2, [64, 64], [2 << 30] * 2)
    assert (theirs / "facts").stat().st_uid == NOBODY.pw_uid

    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    told = started_as(started, ProcessOptions(user="nobody", cwd=str(secret)), theirs / "ran", "it ran")
    assert f"process option cwd={str(secret)!r} could not be applied: Permission denied" in told
    assert not (theirs / "ran").exists()


def test_users_that_the_kernel_refuses_are_told(monkeypatch: pytest.MonkeyPatch, warm_forkserver, started) -> None:
    told = started_as(started, ProcessOptions(user="no-such-user"))
    assert "process option user='no-such-user' could not be applied" in told

    def refuse(gid: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "setgroups", lambda groups: None)
    monkeypatch.setattr(os, "setgid", refuse)
    with pytest.raises(ValueError, match="does not exist in the user namespace"):
        user_account.become(account("nobody"))


def test_code_that_the_user_may_not_read_is_a_start_that_fails_and_says_so(
    declare: Declare, public: Path, tmp_path: Path
) -> None:
    public.chmod(0o700)
    began = time.monotonic()
    with pytest.raises(StartFailed) as failed:
        declare().start(timeout=100)
    assert time.monotonic() - began < 60
    told = (
        "process option user='nobody' could not be applied: No module named 'as_user', and this user may not look into"
    )
    assert f"{told} {public}" in str(failed.value)
