"""What `connlib up` may do: to begin with no more than it needs to begin, and then no more than it needs to go on.

Capabilities belong to threads, and a thread starts with those of the one that starts it. So the first step is taken
while there is one thread. The second may find the thread that moves packets, which is told to give up its own
(`Interface.give_up_rights`), and idle threads of the event loop, which end after seconds without work: where it changes
the user, libc does so in all threads, and those that have not asked to keep capabilities lose them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from connlib._errors import ConfigError, DeviceError

# linux/capability.h
CAP_SETGID = 6
CAP_SETUID = 7
CAP_NET_BIND_SERVICE = 10
CAP_NET_ADMIN = 12
_VERSION_3 = 0x2008_0522
_HEADER = struct.Struct("Ii")
_DATA = struct.Struct("6I")
# linux/prctl.h
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

FIRST_FREE_PORT = 1024
"""Ports below are for those who hold CAP_NET_BIND_SERVICE."""


@dataclass(frozen=True, slots=True)
class User:
    """Who to become."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """The user of that name, with all groups. Raises `ConfigError` if there is none."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        # Not repeated: whatever is not a name may be a key.
        raise ConfigError(
            "--user: there is no such user", hint="name one that `getent passwd` lists"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups)


def needed(ports: Iterable[int]) -> frozenset[int]:
    """What it takes to make a device and change it, and to open such UDP and TCP ports."""
    low = any(0 < port < FIRST_FREE_PORT for port in ports)
    return frozenset({CAP_NET_ADMIN, CAP_NET_BIND_SERVICE} if low else {CAP_NET_ADMIN})


def narrow(user: User | None, keep: Collection[int]) -> None:
    """Keep the capabilities `keep`, and what it takes to become `user`; no program that is executed gets any of them.

    To be called while there is one thread. Raises `DeviceError` if the user cannot be changed later.
    """
    changing = {CAP_SETUID, CAP_SETGID} if user is not None and not _is(user) else set()
    missing = changing - _restrict({*keep, *changing}, _libc())
    if user is not None and missing:
        raise _cannot_become(user, PermissionError(errno.EPERM, os.strerror(errno.EPERM)))


def drop(user: User | None, keep: Collection[int]) -> None:
    """Become `user`, unless it is None, and keep only the capabilities `keep`, so far as this thread has them.

    Raises `DeviceError` if the user cannot be changed; the process should end then.
    """
    libc = _libc()
    if user is not None and not _is(user):
        _prctl(libc, _PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        except OSError as error:
            raise _cannot_become(user, error) from error
        finally:
            _prctl(libc, _PR_SET_KEEPCAPS, 0)
    _restrict(keep, libc)


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Have the rights of `user` to files for the length of the block, after `narrow` and while there is one thread.

    Raises `DeviceError` if the user cannot be changed.
    """
    if _is(user):
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        try:
            os.setgroups(user.groups)
            os.setegid(user.gid)
            os.seteuid(user.uid)
        except OSError as error:
            raise _cannot_become(user, error) from error
        yield
    finally:
        # Who was root gets back by this what `narrow` has left; nobody else loses it.
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def _is(user: User) -> bool:
    return os.getresuid() == (user.uid,) * 3


def _cannot_become(user: User, error: OSError) -> DeviceError:
    hint = "start it as root, or without --user"
    return DeviceError.from_os(f"cannot become the user {user.name}", error, hint=hint)


def _restrict(keep: Collection[int], libc: ctypes.CDLL) -> set[int]:
    """Keep of the thread's capabilities what is in `keep`; which they are."""
    _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    number = 0
    while (bound := _prctl(libc, _PR_CAPBSET_READ, number)) >= 0:
        if bound:
            # Not everybody may. What is lost by that is little, as nothing that is executed gets privileges.
            _prctl(libc, _PR_CAPBSET_DROP, number)
        number += 1
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0), _HEADER.size)
    data = ctypes.create_string_buffer(_DATA.size)
    if libc.capget(header, data) != 0:
        raise _failed()
    # Effective, permitted, inheritable of the capabilities below 32, then of the others.
    _, low, _, _, high, _ = _DATA.unpack(data.raw)
    left = (low | high << 32) & sum(1 << number for number in set(keep))
    low, high = left & 0xFFFF_FFFF, left >> 32
    data = ctypes.create_string_buffer(_DATA.pack(low, low, 0, high, high, 0), _DATA.size)
    if libc.capset(header, data) != 0:
        raise _failed()
    return {number for number in keep if left >> number & 1}


def _failed() -> DeviceError:
    number = ctypes.get_errno()
    return DeviceError.from_os(
        "cannot give up capabilities",
        OSError(number, os.strerror(number)),
        hint="see what the kernel logged: dmesg",
    )


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> int:
    # Variadic in C, with arguments of the size of a long.
    zero = ctypes.c_ulong(0)
    return int(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
