"""What other programs ask a running interface over its control socket, and what they cannot do."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from connlib import (
    Action,
    ConfigError,
    ControlClient,
    ControlError,
    DeviceError,
    Dropped,
    DropReason,
    Gateway,
    GatewayInterface,
    InterfaceConfig,
    Limits,
    PeerConfig,
    PeerEvent,
    Policy,
    PresharedKey,
    PrivateKey,
    Protocol,
    PublicKey,
    Role,
    Rule,
    Timers,
    serve_control,
)
from connlib import _clients as clients
from connlib.control import protocol, running, server, status
from connlib.control.status import ReportedEvent, report_explanations, report_status
from connlib.control.wire import as_gateway, encoder
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_KEY,
    GATEWAY,
    Counted,
    Pair,
    counted_turns,
    gateway_config,
    in_real_time,
    open_pair,
    packet,
)

CLIENT_BASE64 = CLIENT_KEY.public_key().to_base64()


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[Pair, ControlClient, Path]]:
    directory = tmp_path / "run"
    async with open_pair() as pair, serve_control(pair.gateway, directory=str(directory)) as control:
        assert control.path == str(directory / f"{pair.gateway.name}.sock")
        yield pair, ControlClient(pair.gateway.name, directory=str(directory)), Path(control.path)


def control_test(body: Callable[..., Any]) -> Callable[[Path], None]:
    """A test of a served gateway, in real time; it gets the pair, a client of its socket and the path of that."""

    @in_real_time
    async def run(tmp_path: Path) -> None:
        async with served(tmp_path) as given_:
            await body(*given_)

    def test(tmp_path: Path) -> None:
        run(tmp_path)

    test.__doc__ = body.__doc__
    return test


async def exchange(pair: Pair) -> None:
    """A packet each way."""
    await pair.client_tun.send(packet(CLIENT, GATEWAY))
    assert await pair.gateway_tun.receive()
    await pair.gateway_tun.send(packet(GATEWAY, CLIENT))
    assert await pair.client_tun.receive()


async def ask(path: Path, *pieces: bytes) -> list[dict[str, Any]]:
    """What is answered until the server closes, or until we have nothing more to say and it has nothing either."""
    answers = b""
    async with await anyio.connect_unix(path) as stream:
        for piece in pieces:
            await stream.send(piece)
        await stream.send_eof()
        async for data in stream:
            answers += data
    return [json.loads(line) for line in answers.splitlines()]


# --- show and explain -----------------------------------------------------------------------------------------------


@control_test
async def test_show_says_what_the_counters_and_explain_say(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    await exchange(pair)
    status = await client.show()
    told = pair.gateway.stats().peers[0]
    (peer,) = status.peers
    assert (status.name, status.listen_port, status.pid) == (pair.gateway.name, 51820, os.getpid())
    assert status.public_key == pair.gateway.public_key.to_base64()
    assert (peer.name, peer.peer, peer.state, peer.role) == ("client", CLIENT_BASE64, "up", "responder")
    assert (peer.endpoint, peer.allowed_ips) == ("192.0.2.2:51820", ("10.0.0.2/32",))
    assert (peer.rx_bytes, peer.tx_bytes) == (told.tunnel.rx_bytes, told.tunnel.tx_bytes)
    assert (peer.rx_packets, peer.tx_packets, peer.drops) == (1, 1, {})
    assert peer.why.startswith("a session of ")
    assert peer.session_age is not None and peer.last_heard is not None


@control_test
async def test_explain_takes_names_and_keys_and_all_if_there_is_none(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    for peers in ((), ("client",), (CLIENT_BASE64,)):
        (said,) = await client.explain(peers)
        assert (said.name, said.state) == ("client", "waiting")
        assert str(said) == "waiting: never heard; next: this side waits for the peer to start a session"
    with pytest.raises(ControlError, match=r"^there is no peer 'bob'$"):
        await client.explain(["bob"])


@control_test
async def test_explain_of_some_asks_for_nobody_else(pair: Pair, client: ControlClient, path: Path) -> None:
    node = Counted(pair.gateway)
    await client.explain(["client"])
    assert (node.calls["peer_stats"], node.calls["stats"]) == (1, 0)
    await client.explain()
    await client.show()
    assert (node.calls["peer_stats"], node.calls["stats"]) == (1, 2)


@in_real_time
async def test_others_have_their_turn_while_many_peers_are_shown() -> None:
    keys = [PrivateKey.generate().public_key() for _ in range(400)]
    config = gateway_config(peers=tuple(PeerConfig(public_key=key) for key in keys))
    async with (
        open_interface(config, tun=MemoryTun(), udp=MemoryUdp()) as interface,
        counted_turns() as turns,
    ):
        shown = await report_status(interface, 1.0)
        assert turns.count >= 3
        assert [peer.peer for peer in shown.peers] == [key.to_base64() for key in keys]
        turns.count = 0
        explained = await report_explanations(interface, ())
        assert turns.count >= 3
        assert [each.why for each in explained] == [peer.why for peer in shown.peers]


@in_real_time
async def test_a_name_that_runs_not_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(
        ControlError, match=r"wg7 is not running: nobody listens at .*wg7.sock; `connlib show` lists"
    ):
        await ControlClient("wg7", directory=str(tmp_path)).show()
    assert running(str(tmp_path)) == []
    assert running(str(tmp_path / "nowhere")) == []
    with pytest.raises(ConfigError):
        ControlClient("../wg7")


@in_real_time
async def test_a_place_where_no_socket_can_be_is_said_with_its_reason(tmp_path: Path) -> None:
    deep = str(tmp_path / ("d" * 120))
    with pytest.raises(ControlError, match=r"^cannot ask wg7 at /.*/wg7\.sock: AF_UNIX path too long$"):
        await ControlClient("wg7", directory=deep).show()
    Path(deep).mkdir()
    (Path(deep) / "wg7.sock").touch()
    with pytest.raises(ControlError, match=r"^cannot look into /.*: AF_UNIX path too long$"):
        running(deep)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ControlError, match=r"^cannot look into /.*/file: Not a directory$"):
        running(str(file))


@in_real_time
async def test_how_long_it_is_up_counts_while_the_machine_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as (pair, client, _):
        now = pair.gateway._clock.now()
        monkeypatch.setattr(pair.gateway._clock, "now", lambda: now + 3600.0)
        assert (await client.show()).up_for >= 3600.0


@control_test
async def test_what_a_killed_process_has_left_is_not_running(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path.with_name("wg6.sock")))
    (path.parent / "wg5.sock").write_text("no socket")
    (path.parent / "other").touch()
    assert running(str(path.parent)) == [pair.gateway.name]


# --- apply ----------------------------------------------------------------------------------------------------------


@control_test
async def test_apply_changes_all_and_says_what(pair: Pair, client: ControlClient, path: Path) -> None:
    await exchange(pair)
    before = pair.gateway.config
    new = PrivateKey.generate().public_key()
    added = PeerConfig(public_key=new, name="bob", allowed_ips=(ip_network("10.0.0.9/32"),))
    wanted = dataclasses.replace(before, peers=(*before.peers, added))
    expected = [f"+ bob, peer {new.to_base64()}, allowed IPs 10.0.0.9/32"]
    assert [str(each) for each in await client.apply(wanted, dry_run=True)] == expected
    assert pair.gateway.config == before
    assert [str(each) for each in await client.apply(wanted)] == expected
    assert pair.gateway.config == wanted
    # The session of the one that stays goes on.
    await exchange(pair)
    assert pair.gateway.stats().peers[0].tunnel.responses_sent <= 1
    assert await client.apply(wanted) == []


@control_test
async def test_a_configuration_that_contradicts_itself_changes_nothing(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    before = pair.gateway.config
    wrong = dataclasses.replace(before, name="other0")
    with pytest.raises(ControlError, match=r"the name cannot change from .* to other0") as caught:
        await client.apply(wrong)
    assert caught.value.kind == "config"
    assert pair.gateway.config == before
    queued = dataclasses.replace(before, queues=2)
    (change,) = await client.apply(queued, dry_run=True)
    assert str(change) == "! queues: 1 -> 2, which takes a restart"
    with pytest.raises(
        ControlError, match=r"queues are made when .*; stop the interface and start"
    ) as caught:
        await client.apply(queued)
    assert caught.value.kind == "config"
    assert pair.gateway.config == before
    half = dataclasses.replace(before.peers[0], persistent_keepalive=2.5)
    with pytest.raises(ConfigError, match=r"the persistent keepalive of client is 2\.5 seconds"):
        await client.apply(dataclasses.replace(before, peers=(half,)))


@in_real_time
async def test_key_files_are_read_by_who_asks(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _):
        key = tmp_path / "own.key"
        key.write_text(pair.gateway.config.private_key.to_base64() + "\n")
        key.chmod(0o600)
        interface = GatewayInterface(private_key_file=str(key), listen_port=51820, role=Role.RESPONDER)
        changes = await client.apply(Gateway(interface=interface))
        assert [change.mark for change in changes] == ["-"]
        assert pair.gateway.config.peers == ()


EVERYTHING = InterfaceConfig(
    private_key=PrivateKey.generate(),
    name="wg0",
    listen_port=51820,
    fwmark=7,
    addresses=(ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")),
    mtu=1400,
    role=Role.RESPONDER,
    routes=False,
    timers=Timers(rekey_timeout=2.0, keepalive_timeout=5.0),
    limits=Limits(queue_packets=3),
    masquerade=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
    protect_addresses=False,
    offload=("tso4", "coalesce_tcp"),
    encryption="ring",
    threads=4,
    worker=False,
    dns=("10.0.0.53", "example.org"),
    peers=(
        PeerConfig(
            public_key=CLIENT_KEY.public_key(),
            preshared_key=PresharedKey.generate(),
            allowed_ips=(ip_network("10.0.0.2/32"), ip_network("fd00::2/128")),
            endpoint=("2001:db8::7", 4500),
            persistent_keepalive=25.0,
            role=Role.INITIATOR,
            name="alice",
            policy=Policy(
                (
                    Rule(
                        action=Action.ALLOW,
                        protocol=Protocol.TCP,
                        destinations=(ip_network("10.0.0.0/8"),),
                        ports=(443, (8000, 8080)),
                        name="web",
                    ),
                    Rule(action=Action.DENY, protocol=47),
                    Rule(action=Action.ASK, protocol=Protocol.UDP),
                    Rule(action=Action.ALLOW, protocol=Protocol.ICMP, icmp_types=(8, (128, 129))),
                ),
                Action.ALLOW,
                Action.DENY,
            ),
        ),
    ),
)


WITH_QUEUES = dataclasses.replace(EVERYTHING, worker=True, queues=2)
"""What `EVERYTHING`, which has no worker, cannot have."""


def test_every_field_of_a_configuration_arrives_as_it_was() -> None:
    """A field that is added to a configuration fails here until `as_gateway` knows it."""
    defaults = InterfaceConfig(private_key=PrivateKey.generate())
    for field in dataclasses.fields(InterfaceConfig):
        default = getattr(defaults, field.name)
        assert any(getattr(config, field.name) != default for config in (EVERYTHING, WITH_QUEUES)), field.name
    (peer,) = EVERYTHING.peers
    nobody = PeerConfig(public_key=PrivateKey.generate().public_key())
    for field in dataclasses.fields(PeerConfig):
        assert getattr(peer, field.name) != getattr(nobody, field.name), field.name
    for config in (EVERYTHING, WITH_QUEUES):
        line = protocol.dump_request(protocol.Apply(gateway=as_gateway(config)))
        request = protocol.parse_request(line)
        assert isinstance(request, protocol.Apply)
        assert request.gateway.to_interface_config() == config


# --- events ---------------------------------------------------------------------------------------------------------


@control_test
async def test_events_arrive_as_they_happen(pair: Pair, client: ControlClient, path: Path) -> None:
    async with client.events() as events:
        await exchange(pair)
        first = await events.__anext__()
    assert (first.name, first.peer, first.event) == ("client", CLIENT_BASE64, "SessionEstablished")
    assert first.fields == {"initiator": False}
    assert first.text == "session established, started by the peer"
    assert first.time > 1.6e9


@in_real_time
async def test_an_event_that_is_read_late_has_the_time_and_the_name_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as (pair, client, _):
        clock = [1.7e9]
        monkeypatch.setattr(pair.gateway._subscribers, "_unix_time", lambda: clock[0])
        events = pair.gateway.events()
        await exchange(pair)
        clock[0] += 100.0
        (peer,) = pair.gateway.config.peers
        await client.apply(
            dataclasses.replace(pair.gateway.config, peers=(dataclasses.replace(peer, name="new"),))
        )
        await client.apply(dataclasses.replace(pair.gateway.config, peers=()))
        told: list[ReportedEvent] = []
        for _ in range(4):
            happened = await events._next()
            assert happened is not None
            told.append(status.report_event(happened))
        assert [(event.event, event.name, event.time) for event in told] == [
            ("SessionEstablished", "client", 1.7e9),
            ("PeerRoamed", "client", 1.7e9),
            ("ConfigApplied", None, 1.7e9 + 100.0),
            ("ConfigApplied", None, 1.7e9 + 100.0),
        ]


@in_real_time
async def test_what_a_slow_reader_has_lost_is_a_line_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connlib.driver.EVENT_CAPACITY", 3)
    async with served(tmp_path) as (pair, client, _), client.events() as events:
        (peer,) = pair.gateway.config.peers
        # All at once, so that nothing is read meanwhile.
        for number in range(8):
            pair.gateway._publish(PeerEvent(peer.public_key, Dropped(DropReason.NO_ROUTE, number)))
        told = [await events.__anext__() for _ in range(4)]
        assert [(event.event, event.fields.get("count")) for event in told] == [
            ("Lost", 5),
            ("Dropped", 5),
            ("Dropped", 6),
            ("Dropped", 7),
        ]
        assert told[0].text == "5 events before this were lost: the reader is too slow"
        assert (told[0].peer, told[0].name) == (None, None)
        # It is said once.
        pair.gateway._publish(PeerEvent(peer.public_key, Dropped(DropReason.NO_ROUTE, 8)))
        assert (await events.__anext__()).fields["count"] == 8


@control_test
async def test_what_happens_to_the_interface_is_no_peers(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    async with client.events() as events:
        await client.apply(dataclasses.replace(pair.gateway.config, peers=()))
        applied = await events.__anext__()
    assert (applied.peer, applied.name, applied.event) == (None, None, "ConfigApplied")
    assert applied.text == "another configuration: 1 peer removed"
    assert applied.fields["diff"]["removed"] == [CLIENT_BASE64]


@in_real_time
async def test_a_refusal_is_told_with_its_rule_and_addresses(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _):
        (peer,) = pair.gateway.config.peers
        refuse = dataclasses.replace(peer, policy=Policy((Rule(action=Action.DENY, name="all of it"),)))
        await client.apply(dataclasses.replace(pair.gateway.config, peers=(refuse,)))
        async with client.events() as events:
            await pair.client_tun.send(packet(CLIENT, GATEWAY))
            told = [await events.__anext__()]
            while told[-1].event != "Denied":
                told.append(await events.__anext__())
    assert [event.event for event in told] == ["SessionEstablished", "PeerRoamed", "Denied"]
    assert told[-1].text == "denied by rule 1 (all of it): from 10.0.0.2 to 10.0.0.1/253"
    assert (told[-1].fields["source"], told[-1].fields["destination"]) == ("10.0.0.2", "10.0.0.1")


@in_real_time
async def test_events_end_with_the_interface_and_its_socket_goes_with_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, path):
        assert running(str(path.parent)) == [pair.gateway.name]
        async with trio.open_nursery() as nursery:
            came: list[str] = []

            async def follow(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
                async with client.events() as events:
                    task_status.started()
                    came.extend([event.event async for event in events])

            await nursery.start(follow)
            pair.gateway._closed()
            # Nothing but the end comes.
    assert came == []
    assert not path.exists()


@control_test
async def test_who_goes_away_while_much_happens_is_in_nobodys_way(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    peers = pair.gateway.config.peers
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.sendall(b'{"version":1,"method":"events"}\n')
            await trio.lowlevel.wait_readable(rude)
            # Something is on its way when it closes, without having read what came.
            await pair.gateway.apply(dataclasses.replace(pair.gateway.config, peers=()))
        for wanted in (peers, (), peers):
            await pair.gateway.apply(dataclasses.replace(pair.gateway.config, peers=wanted))
    while len(os.listdir("/proc/self/fd")) > before:
        await trio.sleep(0.01)
    await exchange(pair)
    assert (await client.show()).peers[0].state == "up"


@in_real_time
async def test_twenty_who_listen_and_leave_are_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client, _):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            async with client.events():
                pass
        with trio.fail_after(30):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.sleep(0.01)


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_who_may_not_ask_is_told_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`connlib up --user` is somebody else by then, who may not: the socket stays of the user that started it."""

    async def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("connlib.control.client.anyio.connect_unix", refuse)

    @in_real_time
    async def run() -> None:
        with pytest.raises(ControlError) as caught:
            await ControlClient("wg7", directory=str(tmp_path)).show()
        assert str(caught.value) == ("no permission to ask wg7; run as root, or as the user that started it")

    run()


@control_test
async def test_only_the_owner_gets_to_the_socket(pair: Pair, client: ControlClient, path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def test_another_user_is_refused_even_with_the_socket_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode of the file could have been changed, or the descriptor handed on."""
    monkeypatch.setattr(clients.Client, "user", lambda self: 4242)

    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _):
            for call in (client.show(), client.apply(pair.gateway.config), client.explain()):
                with pytest.raises(ControlError, match=r"^user 4242 may not control ") as caught:
                    await call
                assert caught.value.kind == "permission"

    run()


def nothing_to_say(client: clients.Client) -> clients.Conversation[bytes]:
    raise AssertionError("nobody has said anything")


@in_real_time
async def test_the_user_is_the_one_that_the_kernel_knows() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        some = clients.Clients("a test", server._log, nothing_to_say, most=1, patience=1.0)
        client = clients.Client(some, ours)
        assert client.user() == os.geteuid()
        ours.close()


@in_real_time
async def test_two_interfaces_of_a_name_are_not_both_served(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, path):
        with pytest.raises(DeviceError, match="belongs to a process that runs"):
            async with serve_control(pair.gateway, directory=str(path.parent)):
                pass
        assert (await client.show()).peers


@in_real_time
async def test_slow_clients_hold_nobody_up(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, path), anyio.create_task_group() as tasks:
        idle = [await anyio.connect_unix(path) for _ in range(server.MOST_CLIENTS)]
        for stream in idle[::2]:
            await stream.send(b'{"version":1,')
        assert (await client.show()).peers
        await exchange(pair)
        for stream in idle:
            await stream.aclose()
        tasks.cancel_scope.cancel()


@in_real_time
async def test_many_idle_clients_throw_nobody_out_who_follows_events(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, path), client.events() as events, AsyncExitStack() as stack:
        idle = [
            await stack.enter_async_context(await anyio.connect_unix(path))
            for _ in range(server.MOST_CLIENTS)
        ]
        # The first of them made room, and was told why.
        room = f"memory has more than {server.MOST_CLIENTS} clients at once, and this one made room"
        assert json.loads(await idle[0].receive()) == {"error": {"kind": "busy", "problems": [room]}}
        await exchange(pair)
        assert (await events.__anext__()).event == "SessionEstablished"


@in_real_time
async def test_of_clients_that_all_follow_events_the_first_makes_room_and_is_told(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client, _), client.events() as first, AsyncExitStack() as stack:
        for _ in range(server.MOST_CLIENTS):
            await stack.enter_async_context(client.events())
        with pytest.raises(ControlError, match="and this one made room") as caught:
            await first.__anext__()
        assert caught.value.kind == "busy"


def test_secrets_are_written_for_the_socket_only() -> None:
    """Nothing else may use this encoder: it writes private keys out."""
    assert EVERYTHING.private_key.to_base64() in encoder.encode(as_gateway(EVERYTHING)).decode()
    with pytest.raises(NotImplementedError):
        encoder.encode(object())
    assert isinstance(CLIENT_KEY.public_key(), PublicKey)
    assert gateway_config().private_key.to_base64() not in repr(as_gateway(gateway_config()))
