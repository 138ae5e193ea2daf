"""What worker processes run in the tests of the supervising side. Imports little: it is loaded after the fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def returns(code: int | None) -> int | None:
    return code


def exits(code: int) -> None:
    sys.exit(code)


def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def holds() -> None:
    while True:
        signal.pause()


def spins() -> None:
    while True:
        pass


def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def tells_about_itself(path: Path) -> None:
    main = sys.modules["__main__"]
    facts = {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "parent": os.getppid(),
        "sigint ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "sigterm default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "main": getattr(main, "__file__", None),
        "cmdline": Path("/proc/self/cmdline").read_text(),
        "comm": Path("/proc/self/comm").read_text().strip(),
    }
    write(path, json.dumps(facts))


def starts_a_grandchild(path: Path, then: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    write(path, str(child.pid))
    if then == "hold":
        holds()


def write(path: Path, text: str) -> None:
    """Whole or not at all: the test waits for the file to be there."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


def works(segment: str, name: str, epoch: int, behaviour: str) -> int:
    """A worker without handlers: keeps the supervisor's side of the protocol, or breaks it as `behaviour` says."""
    from bus import Board, Control, Field, Segment, Text, WorkerState

    board = Board(Segment.attach(segment).buf)
    block = board.block(name)
    block.set(Field.PID, os.getpid())
    block.set(Field.EPOCH, epoch + 1)
    if behaviour == "cannot start":
        block.set_text(Text.LAST_WORDS, "ValueError: no such file")
        return 64
    block.set(Field.STATE, WorkerState.RUNNING)
    if behaviour == "deaf":
        spins()
    if behaviour == "asks for stop":
        block.set(Field.STOP_REQUESTED, 1)
    while (control := block.get(Field.CONTROL)) != Control.STOP:
        block.set(Field.CONTROL_SEEN, control)
        block.doorbell.arm()
        if block.get(Field.CONTROL) == control:
            block.doorbell.wait(1.0)
        block.doorbell.disarm()
    block.set(Field.STATE, WorkerState.STOPPED)
    return 66 if behaviour == "fails at the end" else 0


def writes_to_what_it_was_given() -> None:
    from actors.newborn import inherited

    for number, descriptor in enumerate(inherited()):
        os.write(descriptor, str(number).encode())


def crashes(how: str) -> None:
    import faulthandler

    if how == "abort":
        os.abort()
    if how == "stack overflow":
        faulthandler._stack_overflow()  # type: ignore[attr-defined]
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def raises(text: str) -> None:
    raise ValueError(text)


def crashes_after_stacks(path: Path) -> None:
    write(path, "up")
    while not path.with_suffix(".go").exists():
        pass
    crashes("")


def waits_with_a_thread(path: Path, how: str) -> None:
    import threading

    inside = threading.Event()

    def thread_of_its_own() -> None:
        inside.set()
        threading.Event().wait()

    threading.Thread(target=thread_of_its_own, daemon=True).start()
    inside.wait()  # a thread that is started need not have come to its function
    write(path, "up")
    if how == "C":
        sum(range(10**12))  # in C, and the interpreter lock is never given up
    if how == "deaf":
        import faulthandler

        from actors.last_words import DUMP_SIGNAL

        faulthandler.unregister(DUMP_SIGNAL)
        write(path, "deaf")
    spins() if how == "Python" else holds()


def tells_what_it_was_granted(path: Path) -> None:
    import resource

    handle = os.open(path.with_suffix(".mode"), os.O_CREAT | os.O_WRONLY, 0o666)
    facts = {
        "memory": resource.getrlimit(resource.RLIMIT_AS),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "cpus": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "mode": os.fstat(handle).st_mode & 0o777,
        "cwd": os.getcwd(),
    }
    write(path, json.dumps(facts))


def tells_its_signals(path: Path) -> None:
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    status = Path("/proc/self/status").read_text()
    facts = {
        "ignored": sorted(signal.Signals(number).name for number in ignored),
        "blocked": next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")),
        "inheritable": [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and _inheritable(int(fd))],
        "mark": os.environ["RINGLEADER_WORKER"],
    }
    write(path, json.dumps(facts))


def _inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def takes_memory(size: int) -> None:
    bytearray(size)


def starts_descendants(path: Path, then: str) -> None:
    """One of each kind: in its group, in a session of its own, a daemon that forked twice, one that only forks."""
    pids = [subprocess.Popen(["sleep", "600"]).pid, subprocess.Popen(["sleep", "600"], start_new_session=True).pid]
    script = "setsid sleep 600 >/dev/null & echo $!"
    pids.append(int(subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout))
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writer, b"%d\n" % os.getpid())
        holds()
    pids.append(int(os.read(reader, 20)))
    write(path, " ".join(map(str, pids)))
    if then == "hold":
        holds()


def starts_a_chain(path: Path, length: int) -> None:
    """Daemons, each the child of the one before, in sessions of their own."""
    reader, writer = os.pipe()
    for _ in range(length):
        if os.fork():
            break
        os.setsid()
        os.write(writer, b"%d\n" % os.getpid())
    else:
        holds()
    if os.environ["RINGLEADER_WORKER"] != f"{os.getpid():010d}":
        holds()
    pids = b""
    while pids.count(b"\n") < length:
        pids += os.read(reader, 100)
    write(path, pids.decode())
    holds()
