"""`Role.RESPONDER` never sends an initiation: a machine that tries everything to make it (engine rules, part C)."""

from __future__ import annotations

import dataclasses
import random
from ipaddress import ip_network

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from connlib import (
    DropReason,
    Limits,
    NodeConfig,
    Output,
    PeerConfig,
    PresharedKey,
    RateLimiter,
    Role,
    Timers,
)
from connlib._native import LabNode, LabTunn
from two_tunnels import ALICE, BOB, SOURCE, START, UNIX_TIME, ipv4

INITIATION = 1
PSK = PresharedKey.from_bytes(bytes([5] * 32))
OTHER_SOURCE = ("2001:db8::9", 1)

steps = st.one_of(
    st.sampled_from(
        [0.0, 0.001, 0.02, 1.0, 5.0, 5.4, 10.0, 15.0, 25.0, 60.0, 90.0, 120.0, 165.0, 180.0, 540.0]
    ),
    st.floats(0, 400),
    st.floats(-50, 0),
)
sources = st.sampled_from([SOURCE, OTHER_SOURCE])
numbers = st.integers(0, 2**16)


class Client(RuleBasedStateMachine):
    """The peer of the responder, and the line between them, which loses, repeats and changes what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.line: list[bytes] = []
        """Every datagram that the client ever sent: any may come, again, at any time."""
        self.answers: list[bytes] = []
        """Every datagram that the responder ever sent."""
        self.client = self.make_client()

    def make_client(self, role: Role = Role.EITHER, preshared_key: PresharedKey | None = None) -> LabTunn:
        return LabTunn(
            ALICE,
            BOB.public_key(),
            now=max(self.now, 0),
            unix_time=UNIX_TIME + max(self.now, 0),
            role=role,
            preshared_key=preshared_key,
            seed=len(self.line),
        )

    def client_sent(self, output: Output) -> None:
        self.line += output.datagrams

    @rule(seconds=steps)
    def time_passes(self, seconds: float) -> None:
        self.now = max(0.0, self.now + seconds)

    @rule()
    def client_sends(self) -> None:
        self.client_sent(self.client.encapsulate(ipv4(b"from the client"), self.now))

    @rule()
    def client_starts_a_handshake(self) -> None:
        self.client_sent(self.client.initiate_handshake(self.now))

    @rule()
    def client_is_polled(self) -> None:
        self.client_sent(self.client.handle_timeout(self.now))

    @rule(role=st.sampled_from([Role.EITHER, Role.INITIATOR]), key=st.sampled_from([None, PSK]))
    def client_restarts(self, role: Role, key: PresharedKey | None) -> None:
        self.client = self.make_client(role, key)

    @rule(number=numbers)
    def an_answer_arrives(self, number: int) -> None:
        if self.answers:
            datagram = self.answers[-1 - number % len(self.answers)]
            self.client_sent(self.client.decapsulate(datagram, self.now))

    def arriving(self, number: int, flip: int | None, length: int | None) -> bytes:
        """One of the client's datagrams, perhaps changed or cut; the latest are the likeliest."""
        if not self.line:
            return b""
        datagram = bytearray(self.line[-1 - number % min(len(self.line), 1 + number)])
        if flip is not None:
            datagram[flip // 8 % len(datagram)] ^= 1 << flip % 8
        return bytes(datagram[:length])


flips = st.none() | numbers
lengths = st.none() | st.integers(0, 200)


class ResponderTunn(Client):
    """A tunnel that must not initiate."""

    @initialize(
        keepalive=st.sampled_from([None, 1, 25]),
        scarce=st.booleans(),
        hurried=st.booleans(),
        loaded=st.booleans(),
        key=st.sampled_from([None, PSK]),
    )
    def start(
        self, keepalive: float | None, scarce: bool, hurried: bool, loaded: bool, key: PresharedKey | None
    ) -> None:
        self.gateway = LabTunn(
            BOB,
            ALICE.public_key(),
            now=START,
            unix_time=UNIX_TIME,
            role=Role.RESPONDER,
            seed=1,
            persistent_keepalive=keepalive,
            preshared_key=key,
            rate_limiter=RateLimiter(BOB.public_key(), 0, START) if loaded else None,
            limits=Limits(rekey_after_messages=3, reject_after_messages=6, queue_packets=4)
            if scarce
            else Limits(),
            timers=Timers(rekey_after_time=2, reject_after_time=4, rekey_timeout=0.5, keepalive_timeout=1)
            if hurried
            else Timers(),
        )

    def gateway_sent(self, output: Output) -> None:
        assert all(datagram[0] != INITIATION for datagram in output.datagrams)
        assert self.gateway.stats(self.now).initiations_sent == 0
        self.answers += output.datagrams

    @rule(source=sources, number=numbers, flip=flips, length=lengths)
    def something_arrives(
        self, source: tuple[str, int], number: int, flip: int | None, length: int | None
    ) -> None:
        datagram = self.arriving(number, flip, length)
        self.gateway_sent(self.gateway.decapsulate(datagram, self.now, source))

    @rule(source=st.none() | sources, number=numbers)
    def the_line_delivers(self, source: tuple[str, int] | None, number: int) -> None:
        for datagram in self.line[-1 - number % 4 :]:
            self.gateway_sent(self.gateway.decapsulate(datagram, self.now, source))

    @rule(kind=st.integers(0, 5), seed=numbers, length=st.integers(0, 300))
    def garbage_arrives(self, kind: int, seed: int, length: int) -> None:
        datagram = (bytes([kind, 0, 0, 0]) + random.Random(seed).randbytes(length))[:length]
        self.gateway_sent(self.gateway.decapsulate(datagram, self.now, SOURCE))

    @rule(answer=numbers)
    def its_own_datagram_comes_back(self, answer: int) -> None:
        if self.answers:
            datagram = self.answers[-1 - answer % len(self.answers)]
            self.gateway_sent(self.gateway.decapsulate(datagram, self.now, SOURCE))

    @rule(count=st.integers(1, 8))
    def gateway_sends(self, count: int) -> None:
        for n in range(count):
            self.gateway_sent(self.gateway.encapsulate(ipv4(bytes([n])), self.now))

    @rule()
    def gateway_sends_a_keepalive(self) -> None:
        self.gateway_sent(self.gateway.encapsulate(b"", self.now))

    @rule(count=st.integers(0, 20))
    def gateway_sends_a_batch(self, count: int) -> None:
        batch = self.gateway.encapsulate_batch(ipv4() * count, [20] * count, self.now)
        self.gateway_sent(Output(batch.items(), [], batch.events, None))

    @rule(count=st.integers(0, 8))
    def a_batch_arrives(self, count: int) -> None:
        datagrams = self.line[len(self.line) - min(count, len(self.line)) :]
        batch = self.gateway.decapsulate_batch(
            b"".join(datagrams), [len(d) for d in datagrams], self.now, SOURCE
        )
        self.gateway_sent(Output(batch.datagrams, [], batch.events, None))

    @rule()
    def gateway_is_polled(self) -> None:
        self.gateway_sent(self.gateway.handle_timeout(self.now))

    @rule(count=st.integers(1, 20))
    def gateway_is_called_when_it_wants_to(self, count: int) -> None:
        for _ in range(count):
            timeout = self.gateway.next_timeout()
            if timeout is None:
                break
            self.now = max(self.now, timeout.at)
            self.gateway_sent(self.gateway.handle_timeout(timeout.at))

    @rule()
    def gateway_is_told_to_start(self) -> None:
        output = self.gateway.initiate_handshake(self.now)
        assert output.error is DropReason.ROLE
        self.gateway_sent(output)

    @rule(seconds=st.sampled_from([None, 0, 1, 5, 25, 65_535]))
    def its_keepalive_changes(self, seconds: float | None) -> None:
        self.gateway_sent(self.gateway.set_persistent_keepalive(seconds, self.now))

    @rule(key=st.sampled_from([None, PSK]))
    def its_preshared_key_changes(self, key: PresharedKey | None) -> None:
        self.gateway.set_preshared_key(key, self.now)

    @rule(unix_time=st.floats(0, 4e9))
    def its_wall_clock_steps(self, unix_time: float) -> None:
        self.gateway.set_unix_time(unix_time, self.now)


class ResponderNode(Client):
    """A node whose peer has the role that makes us the responder."""

    @initialize(keepalive=st.sampled_from([None, 1, 25]), endpoint=st.none() | sources)
    def start(self, keepalive: float | None, endpoint: tuple[str, int] | None) -> None:
        self.peer = PeerConfig(
            public_key=ALICE.public_key(),
            role=Role.RESPONDER,
            allowed_ips=(ip_network("10.0.0.0/8"),),
            endpoint=endpoint,
            persistent_keepalive=keepalive,
        )
        self.node = LabNode(self.configuration(), now=START, unix_time=UNIX_TIME, seed=1)
        self.initiations = 0

    def configuration(self) -> NodeConfig:
        return NodeConfig(private_key=BOB, peers=(self.peer,), handshake_limit=3)

    def drain(self) -> None:
        output = self.node.drain()
        assert all(transmit.datagram[0] != INITIATION for transmit in output.transmits)
        self.answers += [transmit.datagram for transmit in output.transmits]
        assert self.initiations_so_far() == self.initiations

    def initiations_so_far(self) -> int:
        (peer,) = self.node.stats(self.now).peers
        return peer.tunnel.initiations_sent

    def arrives(self, datagrams: list[bytes], source: tuple[str, int]) -> None:
        lengths = [len(datagram) for datagram in datagrams]
        self.node.handle_datagrams(b"".join(datagrams), lengths, [source] * len(lengths), self.now)
        self.drain()

    @rule(source=sources, number=numbers, flip=flips, length=lengths)
    def something_arrives(
        self, source: tuple[str, int], number: int, flip: int | None, length: int | None
    ) -> None:
        self.arrives([self.arriving(number, flip, length)], source)

    @rule(source=sources, number=numbers)
    def the_line_delivers(self, source: tuple[str, int], number: int) -> None:
        self.arrives(self.line[-1 - number % 4 :], source)

    @rule(source=sources, answer=numbers)
    def its_own_datagram_comes_back(self, source: tuple[str, int], answer: int) -> None:
        if self.answers:
            self.arrives([self.answers[-1 - answer % len(self.answers)]], source)

    @rule(count=st.integers(1, 8), destination=st.sampled_from(["10.1.2.3", "192.0.2.1"]))
    def node_sends(self, count: int, destination: str) -> None:
        packet = ipv4(destination=destination)
        self.node.handle_packets(packet * count, [20] * count, self.now)
        self.drain()

    @rule()
    def node_is_polled(self) -> None:
        self.node.handle_timeout(self.now)
        self.drain()

    @rule(count=st.integers(1, 20))
    def node_is_called_when_it_wants_to(self, count: int) -> None:
        for _ in range(count):
            timeout = self.node.next_timeout()
            if timeout is None:
                break
            self.now = max(self.now, timeout.at)
            self.node.handle_timeout(timeout.at)
            self.drain()

    @rule()
    def node_is_told_to_start(self) -> None:
        try:
            self.node.initiate_handshake(ALICE.public_key(), self.now)
        except ValueError:
            pass
        else:
            raise AssertionError("a responder agreed to start a session")
        self.drain()

    @rule(
        keepalive=st.sampled_from([None, 1, 25]),
        endpoint=st.none() | sources,
        key=st.sampled_from([None, PSK]),
        away=st.booleans(),
    )
    def it_is_configured_anew(
        self, keepalive: float | None, endpoint: tuple[str, int] | None, key: PresharedKey | None, away: bool
    ) -> None:
        if away:
            self.node.apply(dataclasses.replace(self.configuration(), peers=()), self.now)
            self.initiations = 0
        self.peer = dataclasses.replace(
            self.peer, persistent_keepalive=keepalive, endpoint=endpoint, preshared_key=key
        )
        self.node.apply(self.configuration(), self.now)
        self.drain()

    @rule(starts=st.booleans(), sends=st.booleans(), wait=st.sampled_from([0.0, 0.5, 6.0, 100.0, 200.0]))
    def it_may_initiate_for_a_while(self, starts: bool, sends: bool, wait: float) -> None:
        """Whatever it has begun by then, as a responder again it sends no initiation."""
        either = dataclasses.replace(self.peer, role=Role.EITHER)
        self.node.apply(dataclasses.replace(self.configuration(), peers=(either,)), self.now)
        if starts and self.node.stats(self.now).peers[0].endpoint is not None:
            self.node.initiate_handshake(ALICE.public_key(), self.now)
        if sends:
            self.node.handle_packets(ipv4(destination="10.1.2.3"), [20], self.now)
        self.answers += [transmit.datagram for transmit in self.node.drain().transmits]
        self.now += wait
        self.initiations = self.initiations_so_far()
        self.node.apply(self.configuration(), self.now)
        self.drain()

    @rule(endpoint=sources)
    def its_peer_is_moved(self, endpoint: tuple[str, int]) -> None:
        self.node.set_endpoint(ALICE.public_key(), endpoint, self.now)
        self.drain()

    @rule(unix_time=st.floats(0, 4e9))
    def its_wall_clock_steps(self, unix_time: float) -> None:
        self.node.set_unix_time(unix_time, self.now)
        self.drain()


def test_the_machine_would_notice_an_initiation() -> None:
    """The assertion is worth something: the same steps make a tunnel of another role initiate."""
    machine = ResponderTunn()
    machine.start(keepalive=25, scarce=False, hurried=False, loaded=False, key=None)
    machine.gateway = LabTunn(BOB, ALICE.public_key(), now=START, unix_time=UNIX_TIME, seed=1)
    try:
        machine.gateway_sends(1)
    except AssertionError:
        return
    raise AssertionError("an initiation went unnoticed")


def test_a_session_comes_up_in_the_machine() -> None:
    """And the steps reach the states in which it could go wrong: a session, confirmed, with data both ways."""
    machine = ResponderTunn()
    machine.start(keepalive=None, scarce=False, hurried=False, loaded=False, key=None)
    machine.client_sends()
    machine.the_line_delivers(SOURCE, 0)
    machine.an_answer_arrives(0)
    machine.the_line_delivers(SOURCE, 0)
    assert machine.gateway.stats(machine.now).rx_packets == 1
    machine.gateway_sends(1)
    assert machine.client.decapsulate(machine.answers[-1], machine.now).packets == [ipv4(b"\0")]


_settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestResponderTunn = ResponderTunn.TestCase
TestResponderTunn.settings = _settings
TestResponderNode = ResponderNode.TestCase
TestResponderNode.settings = _settings
