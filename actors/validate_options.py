"""The mistakes in what `topology.process(...)` says, each with the worker, the value and what to do about it.

Pure: what this machine has and allows is in `Machine`, as far as it can be known before a worker is started. What can
only be known later ends the worker (`hygiene.OptionRefused`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import fields

from actors.codecs import PICKLE
from actors.declaration import Declaration, DeclaredOptions
from actors.errors import Problem
from actors.naming import closest
from actors.process_options import ProcessOptions
from actors.ring_sizes import ring_wrong

LEAST_FILES = 32  # what a worker has open before its handlers are made, and some more
LEAST_MEMORY = 64 << 20
MOST = (1 << 63) - 1  # larger numbers are no limits to the operating system


@dataclass(frozen=True, slots=True)
class Machine:
    """What is here. None: not known, or without limit."""

    root: bool
    uid: int
    cpus: frozenset[int] | None
    open_files: int | None  # what others than root may have
    files_of_anybody: int | None  # what root may have
    memory_bytes: int | None
    is_directory: Callable[[str], bool]
    uid_of: Callable[[str | int], int]
    gid_of: Callable[[str | int, str | int | None], int]  # of a user, with the group that is given for it
    cannot_change: str = ""  # why no worker can run as another user; empty if it can
    is_mapped: Callable[[int], bool] = lambda uid: True  # whether the kernel lets anybody be that user here


def option_problems(declaration: Declaration, machine: Machine) -> list[Problem]:
    """Every mistake in the process options of a declaration, in the order in which they were given."""
    found: list[Problem] = []
    for said in declaration.processes:
        found += _of(said, declaration, machine)
    return found


def _of(said: DeclaredOptions, declaration: Declaration, machine: Machine) -> Iterator[Problem]:
    workers = [worker.name for worker in declaration.workers if isinstance(worker.name, str)]
    if said.worker not in workers:
        text = f"process options for {said.worker!r}: there is no worker of that name"
        yield Problem("unknown-worker", str(said.worker), text, closest(said.worker, workers, "workers"), said.where)
    defaults = {one.name: one.default for one in fields(ProcessOptions)}
    for name, value in said.options.items():
        if value == defaults[name] and not isinstance(value, bool):
            continue
        wrong = _wrong(name, value, machine, said.options)
        if wrong is None and name == "user" and machine.uid_of(value) != machine.uid:
            wrong = _pickled(declaration)
        if wrong is not None:
            text = f"worker {said.worker!r}: process option {name}={value!r:.80}: {wrong[0]}"
            yield Problem("bad-process-option", str(said.worker), text, wrong[1], said.where)


def _wrong(name: str, value: Any, machine: Machine, options: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a value, and what to do."""
    match name:
        case "memory_bytes":
            return _size(value, LEAST_MEMORY, None if machine.root else machine.memory_bytes, "a number of bytes")
        case "open_files":
            limits = [machine.files_of_anybody, None if machine.root else machine.open_files]
            most = min((limit for limit in limits if limit is not None), default=None)
            return _size(value, LEAST_FILES, most, "a number of descriptors")
        case "cpus":
            return _cpus(value, machine.cpus)
        case "nice":
            if not _is_whole(value) or not -20 <= value <= 19:
                return "out of range", "it is a whole number from -20 to 19"
            if value < 0 and not machine.root:
                return "only root may be less nice", "give 0 to 19, or start the system as root"
        case "umask":
            if not _is_whole(value) or not 0 <= value <= 0o777:
                return "not a file mode", "it is a number from 0 to 0o777, as 0o077"
            if value & 0o700:
                return f"with 0o{value:03o} the worker could not use its own files", "leave the owner's bits, as 0o077"
        case "cwd":
            if not isinstance(value, str) or not value or "\0" in value:
                return "not a path", "give the path of a directory"
            if not machine.is_directory(value):
                return "there is no such directory", "make it before the system is started"
        case "user":
            return _user(value, machine, options.get("group"))
        case "group":
            return _group(value, machine, options.get("user"))
        case "ring_bytes":
            return ring_wrong(value)
    return None


def _size(value: Any, least: int, most: int | None, noun: str) -> tuple[str, str] | None:
    if not _is_whole(value):
        return "not a whole number", f"it is {noun}"
    if value < least:
        return f"a worker cannot live with less than {least}", f"it is {noun}, {least} or more"
    if value > MOST:
        return f"more than any process can have, which is {MOST}", "give less, or leave it out for no limit of its own"
    if most is not None and value > most:
        return f"more than this process may give, which is {most}", "give less, or raise the limit of the system"
    return None


def _cpus(value: Any, there: frozenset[int] | None) -> tuple[str, str] | None:
    if there is None:
        return "this operating system cannot bind processes to processors", "leave it out"
    if not isinstance(value, tuple) or not value or not all(_is_whole(cpu) and cpu >= 0 for cpu in value):
        return "not a set of processors", "give their numbers, as cpus=[0, 1]"
    missing = sorted(set(value) - there)
    if missing:
        names = ", ".join(map(str, missing))
        return f"there is no processor {names} here", f"there are {min(there)} to {max(there)}"
    return None


def _user(value: Any, machine: Machine, group: Any) -> tuple[str, str] | None:
    if not _is_id(value):
        return "not a user", "give a name or a number"
    try:
        uid = machine.uid_of(value)
    except KeyError:
        return "there is no such user", "give the name of a user of this machine, or a number"
    if uid == machine.uid:
        return None
    if not machine.root:
        return (
            f"the system is started as user {machine.uid}, and only root may have a worker run as another",
            "start the system as root, or start the whole system as the user that it is to run as",
        )
    if machine.cannot_change:
        return machine.cannot_change, "grant root these rights, or leave the user out"
    if not machine.is_mapped(uid):
        return (
            f"there is no user {uid} in this user namespace, as in a container that root did not start",
            "map it (/etc/subuid), or leave it out",
        )
    if group is None and not _has_group(value, machine):
        return "this machine knows no user of that number, so not its group either", "give group= as well"
    return None


def _group(value: Any, machine: Machine, user: Any) -> tuple[str, str] | None:
    if not _is_id(value):
        return "not a group", "give a name or a number"
    try:
        if not _is_id(user) or machine.uid_of(user) == machine.uid:
            return "it is for a worker that runs as another user", "give that user as well, or leave the group out"
        machine.gid_of(user, value)
    except KeyError as unknown:
        if user in unknown.args:
            return None  # said of the user
        return "there is no such group", "give the name of a group of this machine, or a number"
    return None


def _pickled(declaration: Declaration) -> tuple[str, str] | None:
    """Who unpickles a message does what its sender says: with the rights of root, where root is the receiver."""
    names = [getattr(one.type, "__name__", str(one.type)) for one in declaration.codecs if one.codec is PICKLE]
    if not names:
        return None
    return (
        f"the topology has messages sent by pickle ({', '.join(names)}): who gets one executes what its sender says",
        "give them another codec, or leave the user out",
    )


def _has_group(user: str | int, machine: Machine) -> bool:
    try:
        machine.gid_of(user, None)
    except KeyError:
        return False
    return True


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (_is_whole(value) and 0 <= value < (1 << 32) - 1)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
