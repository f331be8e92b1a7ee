"""TUN devices: making one, and the driver's end of it.

A device that is made here has a header before each packet (IFF_VNET_HDR), with which the kernel and we exchange many
packets of a flow as one. What of that happens is `InterfaceConfig.offload`, and can change at any time.

The device lives as long as its descriptor: closing it removes the device, and with it its addresses and routes. So
nothing has to be cleaned up one by one, not even after SIGKILL.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import anyio

from ._errors import ClosedError, ConfigError, DeviceError
from ._native import Node, TunIo
from .config import check_interface_name, offload_names
from .memory import MemoryTun, MemoryTunEnd

_log = logging.getLogger("connlib")

_CLONE_DEVICE = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF = 0x4004_54CA
_TUNGETIFF = 0x8004_54D2
_IFF_TUN = 0x0001
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
# Fail if there is such a device, instead of taking over one that somebody else has made persistent.
_IFF_TUN_EXCL = 0x8000
# struct ifreq: 16 bytes of name, then a union of which the flags are the first 16 bits.
_IFREQ = struct.Struct("16sH22x")
# linux/sockios.h; the union's first 32 bits are the value.
_SIOCSIFMTU = 0x8922
_SIOCSIFTXQLEN = 0x8943
_IFREQ_INT = struct.Struct("16si20x")

QUEUE = 1_000
"""Packets, or superpackets, that a device holds for us (txqueuelen) before it drops what comes, as many as of a network
card. The 500 of the kernel's TUN devices are full within 3 ms of a fast sender, and our loop may take as long."""


class TunEnd(Protocol):
    """What the driver needs of a TUN device, real or in memory."""

    @property
    def name(self) -> str:
        """What to call it."""

    async def wait_readable(self) -> None:
        """Until there is a packet."""

    def read(self, node: Node, now: float, budget: int) -> int:
        """Hand up to `budget` packets to the node; how many they were."""

    def write(self, node: Node) -> None:
        """Write what waits in the node, where that is possible without Python objects."""

    def deliver(self, packets: list[bytes]) -> None:
        """Write what `write` left."""

    def check(self) -> None:
        """Raise `DeviceError` if the device is gone."""

    def blocked(self) -> tuple[int, ...]:
        """Descriptors that have to become writable before what waits for them can be written."""

    def set_offload(self, offload: bool | tuple[str, ...]) -> None:
        """Use these offloads from now on (`InterfaceConfig.offload`), as far as the device has them, and no others."""

    def stats(self) -> dict[str, int]:
        """Counters, and errors by what was done and the name of their errno."""

    def close(self) -> None:
        """Close what was opened here; a device that was made here is gone then."""


def open_tun(
    tun: int | MemoryTun | None, name: str | None, offload: bool | tuple[str, ...] = True, queues: int = 1
) -> TunEnd:
    """Open the device of an interface.

    tun: None makes a device called `name` (None: the kernel chooses connlib0 or the like); a descriptor of a TUN
    device that the caller has made (IFF_TUN | IFF_NO_PI) is used as it is and left open, without offloads unless it has
    IFF_VNET_HDR; or a `MemoryTun`.

    offload: which to use (`InterfaceConfig.offload`).

    queues: of a device that is made; the kernel keeps a flow in one of them. Each has to be read (`queues_of`).

    Raises `DeviceError` with one line if that cannot be done, and `TypeError` for anything else; nothing is left open
    then.
    """
    if isinstance(tun, MemoryTun):
        return MemoryTunEnd(tun)
    if tun is not None:
        if type(tun) is not int:  # True is an int, too, and no descriptor that anybody means
            raise TypeError(f"tun must be a file descriptor, a MemoryTun or None, not {type(tun).__name__}")
        return _DeviceEnd([tun], name_of(tun) or name or f"descriptor {tun}", offload, owned=False)
    fd, made = make_device(name, headers=True, several=queues > 1)
    descriptors = [fd]
    try:
        while len(descriptors) < queues:
            descriptors.append(add_queue(fd, made))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return _DeviceEnd(descriptors, made, offload, owned=True)


def make_device(name: str | None, *, headers: bool = False, several: bool = False) -> tuple[int, str]:
    """Make a TUN device; its descriptor and its name. The device is down and has no address.

    name: 1 to 15 letters, digits and _=+.- ; None lets the kernel choose.
    headers: whether each packet has a `struct virtio_net_hdr` before it (IFF_VNET_HDR), where this kernel has such.
    several: whether it may have more queues (IFF_MULTI_QUEUE, `add_queue`).

    Raises `DeviceError`: bad name, name taken, no permission, no TUN in this kernel, or none with several queues.
    """
    import fcntl

    if name is not None:
        try:
            check_interface_name(name)
        except ConfigError as error:
            raise DeviceError(error.problem, hint=error.hint) from None
    try:
        fd = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(error) from error
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL | (several and _IFF_MULTI_QUEUE)
        # "%d" is for the kernel to fill in; a name that a caller chose never gets there with one.
        pattern = b"connlib%d" if name is None else name.encode("ascii")
        try:
            answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(pattern, flags | (headers and _IFF_VNET_HDR)))
        except OSError as error:
            # What has no such header, a kernel that only looks like Linux for example, does not know the flag.
            if not headers or error.errno != errno.EINVAL:
                raise
            answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(pattern, flags))
        made = _IFREQ.unpack(answer)[0].rstrip(b"\0").decode()
        # Without it packets of a burst are lost, and all else works.
        with suppress(OSError):
            _set_of_device(made, _SIOCSIFTXQLEN, QUEUE)
        return fd, made
    except OSError as error:
        os.close(fd)
        if several and error.errno == errno.EINVAL:
            raise DeviceError(
                "this kernel makes no TUN device with several queues", hint="leave queues at 1"
            ) from error
        raise _make_error(name, error) from error
    except BaseException:
        os.close(fd)
        raise


def add_queue(fd: int, name: str) -> int:
    """Another queue of a device that was made for `several`; its descriptor. Raises `DeviceError`."""
    import fcntl

    try:
        other = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(error) from error
    try:
        flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))[1]
        # The kernel wants those of the first one again.
        flags &= _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE
        fcntl.ioctl(other, _TUNSETIFF, _IFREQ.pack(name.encode("ascii"), flags))
    except OSError as error:
        os.close(other)
        hint = "ask for fewer queues, or see what the kernel logged: dmesg"
        raise DeviceError.from_os(f"cannot add a queue to {name}", error, hint=hint) from error
    except BaseException:
        os.close(other)
        raise
    return other


def set_mtu(name: str, mtu: int) -> None:
    """Set the MTU of a device in the network namespace of this thread. Raises `DeviceError`."""
    try:
        _set_of_device(name, _SIOCSIFMTU, mtu)
    except OSError as error:
        hint = "run as root or with CAP_NET_ADMIN"
        raise DeviceError.from_os(f"cannot set the MTU of {name} to {mtu}", error, hint=hint) from error


def _set_of_device(name: str, request: int, value: int) -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, request, _IFREQ_INT.pack(name.encode("ascii"), value))


def _open_error(error: OSError) -> DeviceError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return DeviceError(
            f"there is no {_CLONE_DEVICE}", hint="load it (modprobe tun), or give it to the container"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceError(f"no permission to open {_CLONE_DEVICE}", hint="run as root or with CAP_NET_ADMIN")
    return DeviceError.from_os(
        f"cannot open {_CLONE_DEVICE}", error, hint="see what the kernel logged: dmesg"
    )


def _make_error(name: str | None, error: OSError) -> DeviceError:
    device = "a TUN device" if name is None else f"the TUN device {name!r}"
    if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL) and name is not None:
        return DeviceError(
            f"there is a network device {name!r} already",
            hint=f"choose another name, or remove it: ip link del {name}",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return DeviceError(f"no permission to make {device}", hint="run as root or with CAP_NET_ADMIN")
    return DeviceError.from_os(f"cannot make {device}", error, hint="see what the kernel logged: dmesg")


def name_of(fd: int) -> str | None:
    """The name of the device behind a descriptor, or None if it is something else that keeps packet boundaries.

    Raises `DeviceError` if the device is set up in a way that packets would not come as they are.
    """
    import fcntl

    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise DeviceError(f"{fd} is not an open descriptor", hint="give one of a TUN device") from None
    if not (stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
        raise DeviceError(f"the descriptor {fd} is not a TUN device", hint="give one of a TUN device")
    try:
        name, flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
    except OSError:
        return None
    # Linux always reports IFF_NO_PI here, whether it was given or not; without it, every packet counts as "not ip".
    if flags & _IFF_TAP:
        raise DeviceError(
            "the device of this descriptor does not carry bare IP packets",
            hint="make it with IFF_TUN | IFF_NO_PI",
        )
    return str(name.rstrip(b"\0").decode())


def queues_of(end: TunEnd) -> Sequence[tuple[TunIo, int]]:
    """What moves the packets of each queue of a real device, and its descriptor; nothing if it is in memory."""
    return list(zip(end._ios, end._descriptors, strict=True)) if isinstance(end, _DeviceEnd) else ()


class _DeviceEnd:
    """A device behind a descriptor, or behind one for each of its queues."""

    def __init__(
        self, descriptors: list[int], name: str, offload: bool | tuple[str, ...], *, owned: bool
    ) -> None:
        self.name = name
        self._descriptors = descriptors
        self._owned = owned
        self._was_down = False
        self._offload: bool | tuple[str, ...] | None = None
        self._ios: list[TunIo] = []
        try:
            for fd in descriptors:
                self._ios.append(TunIo(fd, *self._ios[:1]))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                hint = "give the descriptor of an open TUN device"
                raise DeviceError.from_os(f"cannot use the descriptor of {name}", error, hint=hint) from error
            raise
        self.set_offload(offload)

    async def wait_readable(self) -> None:
        await anyio.wait_readable(self._descriptors[0])

    def read(self, node: Node, now: float, budget: int) -> int:
        return self._ios[0].read(node, now, budget)

    def write(self, node: Node) -> None:
        self._ios[0].write(node)

    def deliver(self, packets: list[bytes]) -> None:
        assert not packets, "write() takes everything"

    def check(self) -> None:
        # All queues know what the last packet has met, whichever had it.
        state = self._ios[0].state
        if state == "gone":
            raise DeviceError(
                f"the TUN device {self.name} was deleted", hint="start the interface again to make it anew"
            )
        if (state == "down") != self._was_down:
            self._was_down = state == "down"
            if self._was_down:
                _log.warning("%s is down, packets to it are lost; ip link set %s up", self.name, self.name)
            else:
                _log.info("%s is up again", self.name)

    def blocked(self) -> tuple[int, ...]:
        return tuple(fd for io, fd in zip(self._ios, self._descriptors, strict=True) if io.blocked)

    def set_offload(self, offload: bool | tuple[str, ...]) -> None:
        if offload == self._offload:
            return
        self._offload = offload
        on: list[str] = []
        # A property of the device, which each queue has to know.
        for io in self._ios:
            on = io.set_offloads(offload_names(offload))
        _log.debug("%s: offloads: %s", self.name, ", ".join(on) or "none")
        if not isinstance(offload, bool) and (missing := [name for name in offload if name not in on]):
            _log.warning(
                "%s: the device does not do %s; its packets go one by one", self.name, ", ".join(missing)
            )

    def stats(self) -> dict[str, int]:
        counters: Counter[str] = Counter()
        for io in self._ios:
            counters.update(io.stats())
        return dict(counters)

    def close(self) -> None:
        for io in self._ios:
            if not self._owned:
                # Whoever reads from it next may not know what to do with more than a packet.
                with suppress(ClosedError):
                    io.set_offloads(())
            io.close()
        if self._owned:
            while self._descriptors:
                os.close(self._descriptors.pop())
