"""The part of connlib that waits: it moves packets between a TUN device, a `Node` and UDP, and keeps time for it.

    async with connlib.open_interface(config) as interface:
        async for peer, event in interface.events():
            ...

One event loop decides, trio's or asyncio's; batches of packets are moved without Python objects and without the
interpreter's lock, by a thread or by a task (`connlib._mover`). Where there is no thread, another task sleeps until
exactly `Node.next_timeout()`. After whatever happened, `_settle` is called once: mutate, drain, mutate.

Errors of the network are counted (`Interface.stats()`) and never raised. What ends an interface is leaving its block,
cancellation, or the loss of its device, which raises `DeviceError` out of the block.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress

import anyio
from anyio.abc import TaskGroup

from ._errors import ClosedError, ConfigError, DeviceError
from ._explain import Explanation, explain
from ._flows import FlowRecord
from ._groups import WithoutGroup
from ._interfacestats import EndCounters, InterfaceStats
from ._mover import Ends, Mover, mover_for, queues_for
from ._native import Node, PublicKey, Tunnels
from ._nodeconfig import config_errors, make_ahead, node_config, with_what_the_node_does_not_see
from ._types import (
    ConfigApplied,
    ConfigDiff,
    InterfaceEvent,
    NodeConfig,
    NodeInput,
    PeerConfig,
    PeerEvent,
    PeerStats,
)
from .asking import FlowHook, Hook, NoHook
from .clock import Alarm, BootClock, Clock, LoopClock, alarm_for
from .config import InterfaceConfig, what_is_new
from .events import EventStream, Subscribers
from .links import Surroundings
from .memory import MemoryHost, MemoryTun, MemoryUdp
from .resolver import Endpoint, Resolver, look_up_now
from .timestamps import Keeper, TimestampStore
from .tun import TunEnd, open_tun
from .udp import Sockets, UdpEnd, open_udp

__all__ = [
    "BootClock",
    "Clock",
    "EndCounters",
    "EventStream",
    "Interface",
    "InterfaceStats",
    "LoopClock",
    "MemoryHost",
    "MemoryTun",
    "MemoryUdp",
    "open_interface",
]

_log = logging.getLogger("connlib")
# Without a handler of the application, a library is silent.
_log.addHandler(logging.NullHandler())

EVENT_CAPACITY = 1024
"""Events that a subscriber may be behind."""

_CLOCK_STEP = 1.0
"""Seconds by which the wall clock has to be off to count as set. Slewing stays far below."""


@asynccontextmanager
async def open_interface(
    config: InterfaceConfig,
    *,
    tun: int | MemoryTun | None = None,
    udp: Sockets | MemoryUdp | MemoryHost | None = None,
    clock: Clock | None = None,
    timestamps: TimestampStore | None = None,
    decide: FlowHook | None = None,
) -> AsyncIterator[Interface]:
    """Bring a WireGuard interface up, and take it down at the end of the block, whatever ends it.

    tun: None makes a TUN device `config.name` with the MTU, the addresses, the routes (default routes excepted), the
    firewall rules and the DNS of the configuration (see `connlib.links`), which needs CAP_NET_ADMIN. The descriptor of
    a device that the caller has made (IFF_TUN | IFF_NO_PI, with IFF_VNET_HDR for offloads), or a socket pair that keeps
    packets apart, is used as it is: what is around it is the caller's, and so is closing it. A `MemoryTun` needs none.

    udp: None binds `config.listen_port` on all IPv4 and IPv6 addresses. A bound UDP socket, or a pair of one for each
    family, is used as it is, made non-blocking, and left open. A `MemoryUdp`, or a host of one, needs no network.

    clock: None is the system's clock that runs during suspend too, or the event loop's if both ends are in memory.

    timestamps: where those of handshakes outlive the interface (`connlib.timestamps`); None for nowhere. What is wrong
    with it is logged, and stops nothing.

    decide: a function, asynchronous or not, that is asked about flows whose policy says `Action.ASK`, and returns
    whether each may begin (`connlib.asking`). If it raises, returns no bool, or takes more than five seconds, the flow
    is refused, and that is counted in `InterfaceStats.hook`. Without one they are all refused.

    A peer's endpoint may be a host name: it is looked up while the interface is up already, again until that works, and
    again when the peer does not answer handshakes. With `dns`, the interface is not up before that works: the name
    servers are asked through it.

    Raises `DeviceError` if the device or the sockets cannot be had, or if the device is deleted later, and
    `ConfigError` if the configuration is wrong: one line each, and nothing is left behind. `TypeError` for ends of
    another kind.
    """
    if clock is None:
        in_memory = isinstance(tun, MemoryTun) and isinstance(udp, MemoryUdp | MemoryHost)
        clock = LoopClock() if in_memory else BootClock()
    hook = NoHook() if decide is None else Hook(decide)
    # First, because this finds out what is wrong with the configuration before anything outside is touched.
    now, unix_time = clock.now(), clock.unix_time()
    with config_errors():
        node = Node(node_config(config), now=now, unix_time=unix_time)
    async with AsyncExitStack() as stack:
        surroundings = Surroundings(managed=tun is None)
        stack.callback(surroundings.close)  # after the device is gone
        # What is not made here has one queue, and so has what no thread may serve.
        is_ours = tun is None and udp is None and type(clock) is BootClock
        queues = queues_for(config.queues) if is_ours else 1
        udp_end = open_udp(udp, config.listen_port, config.fwmark, queues)
        stack.callback(udp_end.close)
        tun_end = open_tun(tun, config.name, config.offload, queues)
        stack.callback(tun_end.close)
        if queues < config.queues:
            _log.warning("%s has one queue, not %d: not all of it was made here", tun_end.name, config.queues)
        alarm = alarm_for(clock)
        stack.callback(alarm.close)
        interface = Interface(config, node, tun_end, udp_end, clock, alarm, unix_time - now, surroundings)
        interface._hook = hook
        stack.callback(lambda: interface._udp.close())  # not always the one that it began with
        stack.callback(interface._closed)
        stack.push_async_callback(surroundings.leave, tun_end.name)
        async with surroundings.dns.interruptible():
            known = await interface._set_link(config, starts=True)
        keeper = Keeper(timestamps, node, clock.now)
        with WithoutGroup():
            async with keeper, anyio.create_task_group() as tasks:
                interface._start(tasks, keeper, known)
                try:
                    yield interface
                finally:
                    tasks.cancel_scope.cancel()


class Interface:
    """A running WireGuard interface, as `open_interface` gives it. For one event loop; not for other threads."""

    def __init__(
        self,
        config: InterfaceConfig,
        node: Node,
        tun: TunEnd,
        udp: UdpEnd,
        clock: Clock,
        alarm: Alarm,
        unix_epoch: float,
        surroundings: Surroundings,
    ) -> None:
        self._config = config
        self._node = node
        self._tun = tun
        self._udp = udp
        self._clock = clock
        self._alarm = alarm
        self._surroundings = surroundings
        # What the wall clock showed when the engine's clock was at zero, as the node knows it.
        self._unix_epoch = unix_epoch
        self._applying = anyio.Lock()
        self._subscribers = Subscribers(clock.unix_time)
        self._timer_wakes = 0
        self._lookups: Counter[str] = Counter(asked=0, failed=0, moved=0)
        self._open = True
        self._tasks: TaskGroup
        self._keeper: Keeper
        # Before it starts and after it has ended, what the node puts out is sent, and nothing is waited for.
        self._mover = Mover(self._ends(udp))
        # What the mover's tasks are in.
        self._serving = anyio.CancelScope()
        self._resolver: Resolver
        self._hook: Hook | NoHook

    def __repr__(self) -> str:
        peers = len(self._config.peers)
        state = "closed" if not self._open else "1 peer" if peers == 1 else f"{peers} peers"
        return f"<Interface {self.name}, port {self.listen_port}, {state}>"

    @property
    def name(self) -> str:
        """The name of the device."""
        return self._tun.name

    @property
    def listen_port(self) -> int:
        """The UDP port."""
        return self._udp.port

    @property
    def public_key(self) -> PublicKey:
        """Our static public key."""
        return self._config.private_key.public_key()

    @property
    def is_open(self) -> bool:
        """False once its block has been left."""
        return self._open

    @property
    def config(self) -> InterfaceConfig:
        """The configuration that was given last."""
        return self._config

    def events(self) -> EventStream:
        """What happens from now on, for `async for peer, event in ...`; another iterator for each call.

        It yields `PeerEvent(peer, event)` and, where the event is of no peer, `InterfaceEvent(None, event)`.

        Raises `ClosedError` after the interface was closed.
        """
        self._check_open()
        return self._subscribers.add(EVENT_CAPACITY)

    def stats(self) -> InterfaceStats:
        """The counters now, or, after the interface was closed, as they were then."""
        if not self._open:
            return self._last_stats
        now, unix_time = self._clock.now(), self._clock.unix_time()
        stats = self._node.stats(now)
        if not self._was_set(unix_time, now):
            # So that an instant in the past has the same date whenever it is asked for.
            unix_time = now + self._unix_epoch
        return InterfaceStats(
            peers=stats.peers,
            drops=stats.drops,
            tun=self._tun.stats(),
            udp=self._udp.stats(),
            timer_wakes=self._timer_wakes + self._mover.timer_wakes,
            lookups=dict(self._lookups),
            unix_time=unix_time,
            now=now,
            hook=dict(self._hook.counts),
        )

    def end_counters(self) -> EndCounters:
        """Those of `stats` that are of the device and the sockets: what they cost does not grow with the peers."""
        if not self._open:
            return EndCounters(self._last_stats.tun, self._last_stats.udp)
        return EndCounters(self._tun.stats(), self._udp.stats())

    def explain(self, peer: PublicKey) -> Explanation:
        """Why a peer is up or down, and what happens next and when. Raises `KeyError` for an unknown peer."""
        config = next((each for each in self._config.peers if each.public_key == peer), None)
        if config is None:
            raise KeyError(f"no peer has the public key {peer.to_base64()}")
        if self._open:
            now = self._clock.now()
            return self._explained(config, self._node.peer_stats(peer, now), now)
        (told,) = (each for each in self._last_stats.peers if each.public_key == peer)
        return self._explained(config, told, self._last_stats.now)

    def lateness(self) -> float:
        """Seconds since the first deadline; negative until it is reached. More than a moment: its tasks stand still."""
        deadline = self._node.next_timeout()
        return 0.0 if deadline is None else self._clock.now() - deadline.at

    def _explained(self, peer: PeerConfig, told: PeerStats, now: float) -> Explanation:
        obstacle = None
        if not self._open:
            pass  # what it asks is closed
        elif told.endpoint is None:
            obstacle = self._resolver.obstacle(told.public_key)
        elif told.tunnel.handshake_pending or told.trouble.gave_up:
            obstacle = self._udp.obstacle(told.endpoint)
        return explain(told, now, role=peer.role, obstacle=obstacle)

    def initiate_handshake(self, peer: PublicKey) -> None:
        """Start a session with a peer now, or nothing while a handshake is under way.

        Raises `KeyError` for an unknown peer, `ValueError` where the role forbids it or no endpoint is known, and
        `ClosedError` after the interface was closed.
        """
        self._check_open()
        self._node.initiate_handshake(peer, self._now())
        self._settle()

    def ask_again(self, peer: PublicKey) -> None:
        """Have the hook (`decide`) asked anew about a peer, because what it looks at has changed.

        The flows that it let begin end, unless the peer's policy lets them pass by itself now, and what it refused is
        forgotten: the next packet of each is a question. Open questions are put once more; former calls are cancelled.
        Raises `KeyError` for an unknown peer, and `ClosedError` after the interface was closed.
        """
        self._check_open()
        self._node.ask_again(peer, self._now())
        self._settle()

    def forget_timestamp(self, peer: PublicKey) -> bool:
        """Take the next initiation of a peer whatever its timestamp, because its clock was wrong: a recorded one, too.

        False if there was nothing to forget. Raises `ClosedError` after the interface was closed.
        """
        self._check_open()
        forgotten = self._node.forget_timestamp(peer)
        self._settle()
        return forgotten

    def give_up_rights(self) -> None:
        """Have the threads of ours (`InterfaceConfig.worker`, `queues`, `threads`) give up their capabilities.

        For a program that gives up its own while the interface is up: each thread has its own. If it becomes another
        user, then after that: the C library has all threads do so, and ends the process if one may not.
        """
        self._mover.give_up_rights()
        self._node.give_up_rights()

    def record(self, capacity: int) -> None:
        """Write down from now on what comes into the tunnels, until `capacity` inputs wait to be taken; 0 ends it.

        Raises `ClosedError` after the interface was closed.
        """
        self._check_open()
        self._node.record(capacity)

    def take_recorded(self) -> tuple[list[NodeInput], int]:
        """What was written down since the last call, and how many more inputs found no room."""
        return self._node.take_recorded()

    def log_flows(self, capacity: int) -> None:
        """Log from now on what the policies of peers allow and deny, until `capacity` records wait to be taken; 0 ends
        it. Flows that are known already are not logged, and peers without a policy have none.

        Raises `ClosedError` after the interface was closed.
        """
        self._check_open()
        self._node.log_flows(capacity)

    def take_flows(self) -> tuple[list[FlowRecord], int]:
        """What was logged since the last call, and how many more records found no room."""
        return self._node.take_flows(self._now())

    async def apply(
        self,
        config: InterfaceConfig,
        *,
        anew: Collection[PublicKey] = (),
        relocate: Collection[PublicKey] = (),
    ) -> ConfigDiff:
        """Change to another configuration: all of it, or, if this raises, nothing. Sessions go on where they can.

        What is around a device that was made here changes along. Another `listen_port` moves the interface to new
        sockets, or is refused if the caller brought them; 0 leaves a port that the system chose, and has it choose in
        place of another one. `name` and `queues` cannot change while the interface is up; None leaves the name.

        anew: peers that are removed and added although they stay: no session, counter or address of theirs is kept.
        relocate: peers whose `endpoint`, if it is an address, is where they are now, wherever they roamed to.

        Raises `ConfigError` if the configuration is wrong, `DeviceError` if a port, a mark, an address or a route
        cannot be had, and `ClosedError` after the interface was closed. Cancelled, it has done all or nothing.
        """
        async with self._applying:
            self._check_open()
            self._check_fixed(config)
            new = node_config(config)
            # A rehearsal: what is wrong with it is known before anything is touched.
            tunnels = await make_ahead(what_is_new(node_config(self._config), new, anew), self._clock)
            self._check_open()
            old_link = self._surroundings.state
            with ExitStack() as undo:
                udp = self._changed_udp(config, undo)
                mover = self._changed_mover(config, udp, undo)
                known = await self._set_link(config)
                # From here on there is no await, so that nothing can come between.
                self._check_open()
                try:
                    with config_errors():
                        diff = self._apply_to_node(new, tunnels, anew, relocate)
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._surroundings.revert(self.name, old_link)
                    raise
                undo.pop_all()
            before, self._config = self._config, config
            self._resolver.update(config.peers, known)
            self._hook.update(config.peers)
            if udp is not self._udp or config.fwmark != before.fwmark:
                self._node.forget_sources()
            if mover is not None:
                self._replace(mover, udp)
            self._tun.set_offload(config.offload)
            diff = with_what_the_node_does_not_see(diff, before, config)
            if diff:
                self._publish(InterfaceEvent(None, ConfigApplied(diff)))
            self._settle()
            return diff

    def _changed_udp(self, config: InterfaceConfig, undo: ExitStack) -> UdpEnd:
        """The end that the configuration asks for: the one there is, or one on another port."""
        before = self._config
        if config.listen_port not in (before.listen_port, self.listen_port):
            end = self._udp.reopened(config.listen_port, config.fwmark)
            undo.callback(end.close)
            return end
        if config.fwmark != before.fwmark:
            self._udp.set_mark(config.fwmark)
            undo.callback(self._revert_mark, before.fwmark)
        return self._udp

    def _revert_mark(self, mark: int) -> None:
        with suppress(DeviceError):  # the interface was closed meanwhile
            self._udp.set_mark(mark)

    def _changed_mover(self, config: InterfaceConfig, udp: UdpEnd, undo: ExitStack) -> Mover | None:
        """Who moves packets with this configuration; None if it is the one who does."""
        if udp is self._udp and config.worker == self._config.worker:
            return None
        mover = mover_for(self._ends(udp), self._worker_epoch(config))
        undo.callback(mover.close)
        return mover

    def _replace(self, mover: Mover, udp: UdpEnd) -> None:
        self._retire()
        if udp is not self._udp:
            # Whoever waits for the old end closes it, when nobody waits any more.
            udp.take_over(self._udp.stats())
        self._udp, self._mover = udp, mover
        self._tasks.start_soon(self._serve, mover, udp)

    def _retire(self) -> None:
        self._mover.stop()
        self._timer_wakes += self._mover.timer_wakes
        self._serving.cancel()

    def _apply_to_node(
        self,
        config: NodeConfig,
        tunnels: Tunnels,
        anew: Collection[PublicKey],
        relocate: Collection[PublicKey],
    ) -> ConfigDiff:
        # In one call: packets that came between would go to whoever else has their destination.
        through, places = None, []
        if anew:
            others = tuple(peer for peer in config.peers if peer.public_key not in anew)
            through = dataclasses.replace(config, peers=others)
        for peer in config.peers if relocate else ():
            if peer.public_key in relocate and peer.endpoint is not None:
                places.append((peer.public_key, peer.endpoint))
        return self._node.apply(config, self._now(), tunnels, through=through, relocate=places)

    async def _set_link(self, config: InterfaceConfig, *, starts: bool = False) -> Mapping[Endpoint, str]:
        """Returns the addresses of host names that had to be looked up for it; who `starts` waits for them."""
        known: Mapping[Endpoint, str] = {}
        if self._surroundings.gets_dns(config):
            known = await look_up_now(config.peers, self._udp.can_reach, self._lookups, patient=starts)
        await self._surroundings.change(self.name, config)
        return known

    def _check_fixed(self, config: InterfaceConfig) -> None:
        new, old = config.name or self.name, self._config.name or self.name
        if new != old:
            raise ConfigError(
                f"the name cannot change from {old} to {new} while the interface is up",
                hint="stop the interface and start it again",
            )
        if config.queues != self._config.queues:
            raise ConfigError(
                f"queues are made when the interface starts, and cannot change from {self._config.queues} to "
                f"{config.queues}",
                hint="stop the interface and start it again",
            )

    def _check_open(self) -> None:
        if not self._open:
            raise ClosedError(f"the interface {self.name} is closed")

    def _start(self, tasks: TaskGroup, keeper: Keeper, known: Mapping[Endpoint, str]) -> None:
        self._tasks, self._keeper = tasks, keeper
        self._resolver = Resolver(self._found, self._udp.can_reach, tasks, self._lookups)
        self._resolver.update(self._config.peers, known)
        self._hook.start(self._node, self.name, tasks, self._now, self._settle)
        self._hook.update(self._config.peers)
        # A change of the configuration may wait for a program when the interface is to end.
        tasks.start_soon(self._surroundings.dns.interrupt_when_cancelled)
        tasks.start_soon(self._keep_time)
        if keeper.keeps:
            tasks.start_soon(keeper.run)
        # It begins when this task waits for the first time, so that whoever has opened the interface misses nothing.
        self._replace(mover_for(self._ends(self._udp), self._worker_epoch(self._config)), self._udp)

    def _closed(self) -> None:
        try:
            self._last_stats = self.stats()
        finally:
            self._open = False
            self._subscribers.end()

    def _found(self, peer: PublicKey, endpoint: Endpoint, replace: bool) -> bool:
        # What an authenticated packet has taught is newer than a name server's answer to a question asked before it.
        has_moved = self._node.set_endpoint(peer, endpoint, self._now(), replace=replace)
        self._settle()
        return has_moved

    async def _keep_time(self) -> None:
        while True:
            await self._alarm.wait()
            self._timer_wakes += 1
            self._node.handle_timeout(self._now())
            self._settle()
            self._tun.check()

    async def _serve(self, mover: Mover, udp: UdpEnd) -> None:
        """Have packets moved between the device and one end until another mover takes this one's place."""
        try:
            async with anyio.create_task_group() as tasks:
                if mover is not self._mover:
                    return  # that happened before this began
                self._serving = tasks.cancel_scope
                mover.start(tasks)
                tasks.start_soon(udp.follow_routes, self._node)
                self._settle()
        finally:
            if mover is self._mover:
                # The interface goes down, and may be called once more.
                self._retire()
                self._mover = Mover(self._ends(udp))
            mover.close()
            if udp is not self._udp:
                udp.close()

    def _ends(self, udp: UdpEnd) -> Ends:
        return Ends(self._tun, udp, self._node, self._alarm, self._now, self._settle)

    def _worker_epoch(self, config: InterfaceConfig) -> float | None:
        return self._unix_epoch if config.worker and type(self._clock) is BootClock else None

    def _settle(self) -> None:
        """See to everything that the node was caused to say, and learn when it wants to be called next."""
        for event in self._mover.take():
            self._resolver.notice(*event)
            self._publish(event)
        self._keeper.notice()
        self._hook.notice()
        self._mover.rest()

    def _publish(self, event: PeerEvent | InterfaceEvent) -> None:
        self._subscribers.publish(event, self._config)

    def _now(self) -> float:
        """The time for the next call of the node, which learns first if the wall clock was set."""
        now, unix_time = self._clock.now(), self._clock.unix_time()
        if self._was_set(unix_time, now):
            step = unix_time - now - self._unix_epoch
            _log.info("%s: the system's clock was set by %+.0f s", self.name, step)
            self._unix_epoch = unix_time - now
            self._node.set_unix_time(unix_time, now)
        return now

    def _was_set(self, unix_time: float, now: float) -> bool:
        """Whether the wall clock shows something else than it did, less the time that has gone by."""
        return abs(unix_time - now - self._unix_epoch) > _CLOCK_STEP
