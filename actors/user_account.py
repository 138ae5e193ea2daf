"""The user that a worker is to run as, where that is another one than the supervisor's; and becoming it.

Contract
- An account is looked up once, by the supervisor, before anything is started: all incarnations of a worker run as the
  same user and groups, and its journal belongs to that user.
- `become` either changes the whole process for good, or raises; there is no way back, and no privilege is left over.
- The kernel forgets at the change that this process is to die with its parent: whoever calls `become` arms that anew.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from actors.plan import Plan

# What root needs, by its number in capabilities(7): to become the user and give it its journal, to read that and to
# write to it, and to end the worker.
NEEDED = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}


class Account(msgspec.Struct, frozen=True):
    """`groups` are all of them, `gid` among them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def uid_of(user: str | int) -> int:
    """KeyError if there is no user of that name."""
    if isinstance(user, int):
        return user
    return pwd.getpwnam(user).pw_uid


def gid_of(user: str | int, group: str | int | None) -> int:
    """The group that is given, or else the user's own. KeyError if it is not known."""
    if isinstance(group, int):
        return group
    if group is not None:
        return grp.getgrnam(group).gr_gid
    return _entry(user).pw_gid


def account(user: str | int, group: str | int | None = None) -> Account:
    """KeyError if this machine does not know the user, or the group, or, of a user that is a mere number, its group."""
    uid, gid = uid_of(user), gid_of(user, group)
    try:
        entry = _entry(user)
    except KeyError:
        return Account(str(uid), uid, gid, (gid,), "/")
    return Account(entry.pw_name, uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_dir)


def accounts_of(plan: Plan) -> dict[str, Account]:
    """By worker; only those that run as another user than this process."""
    said = {worker.name: worker.process for worker in plan.workers if worker.process.user is not None}
    found = {name: account(options.user, options.group) for name, options in said.items() if options.user is not None}
    return {name: one for name, one in found.items() if one.uid != os.geteuid()}


def cannot_change() -> str:
    """Why this process cannot have others run as another user; empty if it can."""
    if os.geteuid() != 0:
        return f"the system is started as user {os.geteuid()}, and only root may have a worker run as another"
    mine = capabilities().get("CapEff", -1)
    missing = [name for name, bit in NEEDED.items() if not mine >> bit & 1]
    if missing:
        return f"root is without {', '.join(missing)} here, as in a container or a unit that withholds it"
    if _read("/proc/self/setgroups").strip() == "deny":
        return (
            "this user namespace lets nobody set groups (/proc/self/setgroups), as where no container manager made it"
        )
    return ""


def is_mapped(uid: int) -> bool:
    """Whether there is a user of that number in our user namespace; a container without root may have only a few."""
    ranges = [[int(number) for number in line.split()] for line in _read("/proc/self/uid_map").splitlines()]
    return not ranges or any(first <= uid < first + count for first, _, count in ranges)


def become(account: Account) -> None:
    """Change the user of this process for good. OSError or ValueError; what is left then must not run anything."""
    _let_go_of_the_tracker()
    try:
        os.setgroups(account.groups)
        os.setgid(account.gid)
        os.setuid(account.uid)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ValueError("this user or group does not exist in the user namespace of the supervisor") from None
        raise
    _check(account)
    os.environ.update(HOME=account.home, USER=account.name, LOGNAME=account.name)


def unreadable() -> list[str]:
    """Where this process would look for modules, and may not."""
    found = []
    for place in sys.path:
        try:
            os.scandir(place or os.curdir).close()
        except PermissionError:
            found.append(place)
        except OSError:
            continue  # a file, or nothing
    return found


def capabilities() -> dict[str, int]:
    """Those of this process, by set (CapEff, CapPrm, ...), as bits; empty where the system has none."""
    lines = _read("/proc/self/status").splitlines()
    return {name: int(value, 16) for name, _, value in (line.partition(":\t") for line in lines) if name[:3] == "Cap"}


def _check(account: Account) -> None:
    """That it is this user now, and nothing else is left of the one before: by what the kernel says, not what it was
    asked to do."""
    ids = {os.getuid(), os.geteuid()} | (set(os.getresuid()) if hasattr(os, "getresuid") else set())
    groups = {os.getgid(), os.getegid()} | (set(os.getresgid()) if hasattr(os, "getresgid") else set())
    if ids != {account.uid} or groups != {account.gid} or not set(os.getgroups()) <= {account.gid, *account.groups}:
        raise ValueError(f"it was asked for, but the process still runs as {sorted(ids)} with groups {sorted(groups)}")
    left = capabilities()
    kept = [name for name in ("CapPrm", "CapEff", "CapAmb") if left.get(name)]
    if account.uid != 0 and kept:
        raise ValueError(
            f"the worker would keep rights of root ({', '.join(kept)}); do not set secure bits (`securebits`, "
            "SecureBits=) for the supervisor"
        )


def _let_go_of_the_tracker() -> None:
    """The library's resource tracker runs as the user before, and removes whatever shared memory it is told to."""
    from multiprocessing import resource_tracker  # a worker has it; who only checks a topology does without

    tracker = vars(resource_tracker._resource_tracker)
    descriptor, tracker["_fd"] = tracker["_fd"], None
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # there is no such thing here


def _entry(user: str | int) -> pwd.struct_passwd:
    return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
