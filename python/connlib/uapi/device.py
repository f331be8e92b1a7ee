"""A running interface, as the configuration protocol sees it."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Iterable, Iterator, Mapping

import anyio
import anyio.lowlevel

from connlib._errors import ClosedError, ConfigError, DeviceError
from connlib._native import PrivateKey, PublicKey
from connlib._shared import Shared
from connlib._types import PeerConfig, PeerStats
from connlib._wgvalues import is_low_order
from connlib.config import MAX_MTU, MIN_MTU, InterfaceConfig
from connlib.driver import Interface, InterfaceStats

from . import protocol
from .protocol import GetRequest, PeerState, Refused, Request, SetRequest
from .settings import Change, Settings, change

_log = logging.getLogger("connlib.uapi")


class Device:
    """Answers requests on behalf of an interface, one at a time.

    The protocol knows states that an `Interface` cannot have. An interface without a private key runs with a key of
    nobody's, and without its peers: nothing is sent, and nothing is taken. In the place of a peer with a public key of
    low order there is one of nobody's that has its allowed IPs, so that packets to them go nowhere else.

    keyless: whether the private key of the interface is nobody's, to begin with.
    up: whether the interface is to run at once, or only when `link_changed` says that its device is up.
    """

    def __init__(self, interface: Interface, *, keyless: bool = False, up: bool = True) -> None:
        self._interface = interface
        self._requests = anyio.Lock()
        self._states = Shared(self._state)
        self._applied = interface.config
        self._settings = _settings_of(interface.config)
        self._stand_ins: dict[PublicKey, PublicKey] = {}
        self._up = up
        self._link_failure: str | None = None
        """What was said last of a link that could not be followed, so that it is said once."""
        if keyless:
            self._settings = dataclasses.replace(self._settings, private_key=None)

    async def answer(self, request: Request) -> Iterable[bytes]:
        """Do what a request asks for; the answer, which is one of a moment of this call, in pieces."""
        if isinstance(request, Refused):
            _log.error("%s: a request was refused: %s", self._interface.name, request)
            return [protocol.answer_to_set(request.errno)]
        if isinstance(request, GetRequest):
            return await self._states.get()
        async with self._requests:
            self._notice_changes()
            return [protocol.answer_to_set(await self._set(request))]

    async def link_changed(self, mtu: int | None, *, up: bool) -> bool:
        """Take note of the device's MTU (None: unknown), and run once it is up. False if that failed for now.

        An interface whose device was never up is silent, as the kernel's is: a session that is started when the other
        side is not configured yet only delays the one that traffic would start. It goes on when the device goes down.
        """
        async with self._requests:
            self._notice_changes()
            config = self._interface.config
            clamped = config.mtu if mtu is None else max(MIN_MTU, min(mtu, MAX_MTU))
            if clamped == config.mtu and (self._up or not up):
                self._link_failure = None
                return True
            before, self._up = self._up, self._up or up
            try:
                config = dataclasses.replace(self._config(self._settings, self._stand_ins), mtu=clamped)
                await self._interface.apply(config)
            except (ConfigError, DeviceError) as error:
                self._up = before
                if str(error) != self._link_failure:
                    _log.error("%s: an MTU of %s cannot be had: %s", self._interface.name, mtu, error)
                self._link_failure = str(error)
                # A configuration that contradicts itself does so until somebody changes it.
                is_done = isinstance(error, ConfigError)
            else:
                self._link_failure, is_done = None, True
            self._applied = self._interface.config
            return is_done

    def _notice_changes(self) -> None:
        if self._interface.config is not self._applied:
            # The program has changed it.
            self._applied = self._interface.config
            self._settings = _settings_of(self._applied)

    async def _state(self) -> list[bytes]:
        async with self._requests:
            self._notice_changes()
            settings, stats = self._settings, self._interface.stats()
            listen_port = self._interface.listen_port
        peers = {peer.public_key: peer for peer in stats.peers}
        pieces = []
        for piece in protocol.answer_to_get(
            settings.private_key,
            listen_port,
            settings.fwmark,
            (_peer_state(peer, peers.get(key), stats) for key, peer in settings.peers.items()),
        ):
            pieces.append(piece)
            await anyio.lowlevel.checkpoint()
        return pieces

    async def _set(self, request: SetRequest) -> int:
        """Change the settings, all of it or nothing; the errno."""
        try:
            await self._apply(change(self._settings, request))
        except (ConfigError, DeviceError) as error:
            _log.error("%s: a request was refused: %s", self._interface.name, error)
            return _errno_of(error)
        except ClosedError:
            return errno.ENODEV
        return 0

    async def _apply(self, step: Change) -> None:
        settings = step.settings
        if settings.private_key is None:
            # The interface forgets its peers, and with them where they have roamed to.
            settings = dataclasses.replace(settings, peers=self._located(step))
        stand_ins = {
            key: self._stand_ins.get(key) or PrivateKey.generate().public_key()
            for key in settings.peers
            if is_low_order(key)
        }
        config = self._config(settings, stand_ins)
        await self._interface.apply(config, anew=step.anew, relocate=step.relocate)
        # Only now, since of a change that is refused nothing stays. No await in between: nobody sees only one of them.
        self._settings, self._stand_ins, self._applied = settings, stand_ins, self._interface.config

    def _located(self, step: Change) -> Mapping[PublicKey, PeerConfig]:
        found = self._interface._node.endpoints()
        return {
            key: dataclasses.replace(peer, endpoint=found[key])
            if found.get(key) is not None and key not in step.anew | step.relocate
            else peer
            for key, peer in step.settings.peers.items()
        }

    def _config(self, settings: Settings, stand_ins: Mapping[PublicKey, PublicKey]) -> InterfaceConfig:
        runs = self._up and settings.private_key is not None
        return dataclasses.replace(
            self._interface.config,
            private_key=settings.private_key or PrivateKey.generate(),
            listen_port=settings.listen_port,
            fwmark=settings.fwmark,
            peers=tuple(_possible(settings.peers.values(), stand_ins)) if runs else (),
        )


def _settings_of(config: InterfaceConfig) -> Settings:
    return Settings(
        private_key=config.private_key,
        listen_port=config.listen_port,
        fwmark=config.fwmark,
        peers={peer.public_key: peer for peer in config.peers},
    )


def _possible(peers: Iterable[PeerConfig], stand_ins: Mapping[PublicKey, PublicKey]) -> Iterator[PeerConfig]:
    for peer in peers:
        stand_in = stand_ins.get(peer.public_key)
        yield peer if stand_in is None else PeerConfig(public_key=stand_in, allowed_ips=peer.allowed_ips)


def _peer_state(peer: PeerConfig, counted: PeerStats | None, stats: InterfaceStats) -> PeerState:
    endpoint, tunnel = (counted.endpoint, counted.tunnel) if counted else (peer.endpoint, None)
    return PeerState(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=endpoint,
        last_handshake=_date(tunnel.last_handshake if tunnel else None, stats.unix_time),
        tx_bytes=tunnel.tx_bytes if tunnel else 0,
        rx_bytes=tunnel.rx_bytes if tunnel else 0,
        persistent_keepalive=round(peer.persistent_keepalive or 0),
        allowed_ips=peer.allowed_ips,
    )


def _date(age: float | None, unix_time: float) -> tuple[int, int]:
    """Seconds and nanoseconds since 1970, to the millisecond: more differs from one question to the next."""
    if age is None:
        return 0, 0
    seconds, milliseconds = divmod(round((unix_time - age) * 1000), 1000)
    return seconds, milliseconds * 1_000_000


def _errno_of(error: ConfigError | DeviceError) -> int:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno:
        return cause.errno
    return errno.EINVAL if isinstance(error, ConfigError) else errno.EIO
