"""The run directory: whose it is, who holds it, and what it tells of the dead."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from actors import identity as identity_module
from actors.identity import EdgeIdentity, Exit, Identity, WorkerEnd, boot_id, new_identity, process_start
from actors.rundir import (
    AlreadyRunning,
    NotYours,
    RunDirectory,
    RunDirectoryError,
    default_home,
    list_systems,
    segment_name,
    stale_prefix,
)

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ringleader"


# ------------------------------------------------------------------------------------------------------- whose it is
def test_directories_and_files_are_for_this_user_only_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        with RunDirectory.open(home / "trades") as directory:
            directory.lock()
            journal = directory.journal("stats")
            directory.write_identity(new_identity("trades"))
            directory.write_exit(Exit(run_id="0" * 8, status=0, reason=""))
    finally:
        os.umask(before)
    assert journal == home / "trades" / "journals" / "stats"
    for path in (home, home / "trades", home / "trades" / "journals", journal):
        assert mode(path) == 0o700, path
    for path in (home / "trades").iterdir():
        if path.is_file():
            assert mode(path) == 0o600, path


def test_home_that_others_may_write_to_is_refused(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o770)
    with pytest.raises(RunDirectoryError, match=r"ringleader: is writable by others \(mode 0770\)"):
        RunDirectory.open(home / "trades")
    assert not (home / "trades").exists()


def test_run_directory_that_others_may_write_to_is_refused(home: Path) -> None:
    (home / "trades").mkdir(parents=True)
    (home / "trades").chmod(0o702)
    with pytest.raises(RunDirectoryError, match="trades: is writable by others"):
        RunDirectory.open(home / "trades")


def test_run_directory_that_others_may_look_into_is_closed_to_them(home: Path) -> None:
    (home / "trades").mkdir(parents=True, mode=0o755)
    RunDirectory.open(home / "trades").close()
    assert mode(home / "trades") == 0o700


@pytest.mark.parametrize("link", ["run directory", "journals", "journal", "lock", "identity"])
def test_links_are_not_followed(home: Path, tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    at = {
        "run directory": home / "trades",
        "journals": home / "trades" / "journals",
        "journal": home / "trades" / "journals" / "stats",
        "lock": home / "trades" / "lock",
        "identity": home / "trades" / "identity.json",
    }[link]
    at.parent.mkdir(parents=True)
    at.symlink_to(elsewhere / "file" if link in {"lock", "identity"} else elsewhere)

    def use_all_of_it() -> None:
        with RunDirectory.open(home / "trades") as directory:
            directory.lock()
            directory.journal("stats")
            directory.read_identity()

    with pytest.raises((RunDirectoryError, OSError)):
        use_all_of_it()
    assert list(elsewhere.iterdir()) == []


def test_directory_of_another_user_is_refused_with_the_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDirectory.open(home / "trades").close()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(NotYours) as refused:
        RunDirectory.open(home / "trades")
    assert (refused.value.path, refused.value.uid) == (home / "trades", me)
    assert str(refused.value) == f"{home / 'trades'}: belongs to user {me}, you are {me + 1}"


def test_a_parent_that_others_can_write_to_is_fine_if_it_is_sticky(tmp_path: Path) -> None:
    """As /tmp is: nobody can put another directory in the place of one there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    RunDirectory.open(shared / "trades").close()
    shared.chmod(0o777)
    with pytest.raises(RunDirectoryError, match="writable by others"):
        RunDirectory.open(shared / "trades")


def test_a_relative_path_is_one_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory.open(Path("inner/../trades")) as directory:
        assert directory.path == tmp_path / "trades"
    with pytest.raises(RunDirectoryError, match="name one inside"):
        RunDirectory.open(Path("/"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_not_believed(home: Path) -> None:
    with RunDirectory.open(home / "trades") as directory:
        directory.write_identity(new_identity("trades"))
        os.chown(home / "trades" / "identity.json", 12345, -1)
        with pytest.raises(NotYours) as refused:
            directory.read_identity()
    assert refused.value.uid == 12345


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_worker_name_cannot_lead_out_of_the_directory(home: Path, name: str) -> None:
    with (
        RunDirectory.open(home / "trades") as directory,
        pytest.raises(ValueError, match="cannot be the name of a file"),
    ):
        directory.journal(name)


def test_home_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("RINGLEADER_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_home() == tmp_path / "ringleader"


# ------------------------------------------------------------------------------------------------------- who holds it
def test_second_start_in_this_process_is_refused_and_does_not_break_the_lock(home: Path) -> None:
    with RunDirectory.open(home / "trades") as first:
        first.lock()
        with RunDirectory.open(home / "trades") as second, pytest.raises(AlreadyRunning) as refused:
            second.lock()
        assert refused.value.pid == os.getpid()
        # Closing any descriptor of the lock file would have dropped the lock of the whole process.
        assert try_to_lock(home / "trades") == f"held by {os.getpid()}"


def test_start_in_another_process_is_refused_until_the_holder_ends(home: Path) -> None:
    directory = RunDirectory.open(home / "trades")
    directory.lock()
    assert try_to_lock(home / "trades") == f"held by {os.getpid()}"
    directory.close()
    directory.close()
    assert try_to_lock(home / "trades") == "taken"
    with RunDirectory.open(home / "trades") as again:
        again.lock()


def test_lock_of_a_killed_process_is_free(home: Path) -> None:
    with holder(home / "trades") as process:
        with RunDirectory.open(home / "trades") as directory, pytest.raises(AlreadyRunning) as refused:
            directory.lock()
        assert refused.value.pid == process.pid
        process.kill()
        process.wait()
        with RunDirectory.open(home / "trades") as directory:
            directory.lock()


def test_fork_of_the_holder_does_not_hold_it(home: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORK, home / "trades"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "held by its parent\nheld by its parent\n"


# The second child comes when the first one has closed its copy of everything: the lock must have stayed.
FORK = """
import os, sys
from pathlib import Path
from actors.rundir import AlreadyRunning, RunDirectory
directory = RunDirectory.open(Path(sys.argv[1]))
directory.lock()
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        try:
            RunDirectory.open(Path(sys.argv[1])).lock()
            print("taken", flush=True)
        except AlreadyRunning as refused:
            directory.close()
            print("held by", "its parent" if refused.pid == os.getppid() else refused.pid, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_of_many_starts_at_once_exactly_one_wins(home: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MANY, home / "trades"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    answers = dict(line.split(": ") for line in ran.stdout.splitlines())
    assert len(answers) == 50
    (winner,) = (pid for pid, answer in answers.items() if answer == "taken")
    assert all(answer == f"held by {winner}" for pid, answer in answers.items() if pid != winner)


# 50 processes begin when the write end of the first pipe is closed, and end when that of the second one is.
MANY = """
import os, sys
from pathlib import Path
from actors.rundir import AlreadyRunning, RunDirectory
begin, begin_w = os.pipe()
end, end_w = os.pipe()
answers, answers_w = os.pipe()
pids = []
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        os.close(begin_w)
        os.close(end_w)
        os.read(begin, 1)
        directory = RunDirectory.open(Path(sys.argv[1]))
        try:
            directory.lock()
            answer = "taken"
        except AlreadyRunning as refused:
            answer = f"held by {refused.pid}"
        os.write(answers_w, f"{os.getpid()}: {answer}\\n".encode())
        os.read(end, 1)
        os._exit(0)
    pids.append(pid)
os.close(begin_w)
os.close(answers_w)
with open(answers) as file:
    for _ in pids:
        sys.stdout.write(file.readline())
os.close(end_w)
for pid in pids:
    os.waitpid(pid, 0)
"""


TRY = """
import sys
from pathlib import Path
from actors.rundir import AlreadyRunning, RunDirectory
directory = RunDirectory.open(Path(sys.argv[1]))
try:
    directory.lock()
    print("taken", flush=True)
except AlreadyRunning as refused:
    print("held by", refused.pid, flush=True)
if sys.argv[2:]:
    sys.stdin.readline()
"""


def try_to_lock(path: Path) -> str:
    ran = subprocess.run([sys.executable, "-c", TRY, path], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


class holder:  # noqa: N801  (reads as a function)
    """A process that holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TRY, str(self.path), "hold"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "taken"
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


# ------------------------------------------------------------------------------------------------------- who runs it
def test_identity_is_read_as_it_was_written(home: Path) -> None:
    identity = msgspec.structs.replace(
        new_identity("trades"),
        level="process",
        workers=("ingest", "stats"),
        handlers={"ingest": ("feed",), "stats": ("averager", "report")},
        edges=(EdgeIdentity("ingest", "stats", "ringleader-0123abcd-1"),),
    )
    with RunDirectory.open(home / "trades") as directory:
        assert directory.read_identity() is None
        directory.write_identity(identity)
        assert directory.read_identity() == identity


def test_this_process_is_alive() -> None:
    assert new_identity("trades").alive()


@pytest.mark.parametrize(
    ("forged", "value"),
    [("pid", 1), ("pid", 0), ("pid", -1), ("pid", 2**22 + 1), ("start_time", 12345), ("boot_id", "another boot")],
)
def test_forged_identity_is_not_alive(forged: str, value: object) -> None:
    assert not msgspec.structs.replace(new_identity("trades"), **{forged: value}).alive()


def test_number_that_was_given_to_another_process_is_not_alive(home: Path) -> None:
    """As after the reuse of a pid: the process exists, but it is not the one that wrote the identity."""
    with holder(home / "trades") as process:
        start = process_start(process.pid)
        assert start is not None
        mine = new_identity("trades")
        assert msgspec.structs.replace(mine, pid=process.pid, start_time=start).alive()
        assert not msgspec.structs.replace(mine, pid=process.pid, start_time=start - 1).alive()


def test_process_that_ended_but_was_not_waited_for_is_not_alive(home: Path) -> None:
    with holder(home / "trades") as process:
        start = process_start(process.pid)
        assert start is not None
        identity = Identity(name="trades", pid=process.pid, start_time=start, boot_id=boot_id(), run_id="0" * 8)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.alive()


def test_process_name_with_brackets_does_not_confuse(tmp_path: Path) -> None:
    """The second field of /proc/PID/stat is a name that a process chooses for itself."""
    code = "from pathlib import Path; Path('/proc/self/comm').write_text('a) R 1 (b'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = process_start(os.getpid())
        start = process_start(process.pid)
        process.communicate(b"\n")
    assert before is not None
    assert start is not None
    assert start >= before


@pytest.mark.parametrize("name", ["identity.json", "exit.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 5}', b"\xff\xfe"])
def test_damaged_file_is_told_with_its_path(home: Path, name: str, content: bytes) -> None:
    with RunDirectory.open(home / "trades") as directory:
        (home / "trades" / name).write_bytes(content)
        with pytest.raises(RunDirectoryError, match="is damaged") as damaged:
            directory.read_identity() if name == "identity.json" else directory.read_exit()
    assert damaged.value.path == home / "trades" / name


def test_identity_of_a_newer_version_is_understood(home: Path) -> None:
    identity = new_identity("trades")
    with RunDirectory.open(home / "trades") as directory:
        directory.write_identity(identity)
        path = home / "trades" / "identity.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"of the future": 1}))
        assert directory.read_identity() == identity


def test_identity_is_replaced_whole_even_after_a_crash_in_the_middle(home: Path) -> None:
    with RunDirectory.open(home / "trades") as directory:
        (home / "trades" / ".identity.json.new").write_text('{"half')
        first, second = new_identity("trades"), new_identity("trades")
        directory.write_identity(first)
        with open(home / "trades" / "identity.json", "rb") as reader:
            directory.write_identity(second)
            assert msgspec.json.decode(reader.read(), type=Identity) == first
        assert directory.read_identity() == second
    assert sorted(path.name for path in (home / "trades").iterdir()) == ["identity.json"]


def test_exit_is_kept_until_the_next_run(home: Path) -> None:
    ending = Exit(run_id="0" * 8, status=3, reason="gave up", workers={"stats": WorkerEnd(6, "killed by SIGSEGV")})
    with RunDirectory.open(home / "trades") as directory:
        assert directory.read_exit() is None
        directory.write_exit(ending)
        assert directory.read_exit() == ending
        directory.write_identity(new_identity("trades"))
        assert directory.read_exit() is None


def test_segment_names_carry_the_run() -> None:
    identity = new_identity("trades")
    assert segment_name(identity.run_id, 12) == f"ringleader-{identity.run_id}-12"
    assert segment_name(identity.run_id, 12).startswith(stale_prefix(identity))


@pytest.mark.parametrize("run_id", ["", "0123abc", "0123abcde", "0123ABCD", "*", "../../ab", "0123abcd\n"])
def test_run_id_that_would_name_segments_of_others_is_refused(run_id: str) -> None:
    with pytest.raises(ValueError, match="not 8 hexadecimal digits"):
        stale_prefix(msgspec.structs.replace(new_identity("trades"), run_id=run_id))


# ------------------------------------------------------------------------------------------------------- all of them
def test_systems_are_listed_running_ended_crashed_and_unreadable(home: Path) -> None:
    assert list_systems(home) == []
    mine = new_identity("running")
    for name, identity in {
        "running": mine,
        "ended": msgspec.structs.replace(mine, pid=2**22 + 1),
        "crashed": msgspec.structs.replace(mine, pid=2**22 + 1),
    }.items():
        with RunDirectory.open(home / name) as directory:
            directory.write_identity(identity)
            if name == "ended":
                directory.write_exit(Exit(run_id=mine.run_id, status=0, reason="requested"))
    RunDirectory.open(home / "empty").close()
    RunDirectory.open(home / "open to all").close()
    (home / "open to all").chmod(0o777)
    (home / "a file").touch()
    found = {system.name: system for system in list_systems(home)}
    assert list(found) == ["crashed", "ended", "open to all", "running"]
    assert [name for name, system in found.items() if system.running] == ["running"]
    ending = found["ended"].exit
    assert ending is not None
    assert ending.reason == "requested"
    assert found["crashed"].exit is None
    assert "is writable by others" in found["open to all"].problem


def test_listing_does_not_drop_the_lock_of_this_process(home: Path) -> None:
    with RunDirectory.open(home / "trades") as directory:
        directory.lock()
        directory.write_identity(new_identity("trades"))
        list_systems(home)
        assert try_to_lock(home / "trades") == f"held by {os.getpid()}"


def test_errors_survive_pickling() -> None:
    for error in (AlreadyRunning(Path("/a"), 7), NotYours(Path("/a"), 7), RunDirectoryError(Path("/a"), "why")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def test_start_time_is_taken_from_psutil_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "_PROC", False)
    assert process_start(os.getpid()) == process_start(os.getpid()) is not None
    assert process_start(2**22 + 1) is None


def test_holder_is_unknown_rather_than_wrong_where_the_system_does_not_tell(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(home / "trades"), RunDirectory.open(home / "trades") as directory:
        monkeypatch.setattr(sys, "platform", "other")
        with pytest.raises(AlreadyRunning, match="held by another supervisor, process unknown"):
            directory.lock()
