"""What Prometheus reads, and what slow or broken clients cannot do."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from prometheus_client.parser import text_string_to_metric_families

from connlib import ConfigError, DeviceError, PeerConfig, PrivateKey, format_config
from connlib import metrics as module
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from connlib.metrics import MetricsServer, serve_metrics
from helpers_driver import (
    CLIENT,
    CLIENT_KEY,
    GATEWAY,
    Pair,
    counted_turns,
    gateway_config,
    in_real_time,
    open_pair,
    packet,
)
from interop.machine import own_namespace
from interop.netns import Background, Namespace, wait_for
from test_cli import COMMAND, call


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what is answered until the server closes the connection."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request)
        answer = b"".join([part async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, body


async def get(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Pair, MetricsServer]]:
    async with open_pair() as pair, serve_metrics(pair.gateway, port=0) as server:
        yield pair, server


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(port: int) -> Samples:
    _, _, body = await get(port, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


OF_THE_CLIENT = frozenset(
    {
        ("interface", "memory"),
        ("public_key", CLIENT_KEY.public_key().to_base64()),
        ("friendly_name", "client"),
    }
)


@in_real_time
async def test_what_is_counted_is_served_under_the_names_of_wireguard_exporters() -> None:
    async with served() as (pair, server):
        before = await samples(server.port)
        assert before["wireguard_sent_bytes_total", OF_THE_CLIENT] == 0
        assert before["wireguard_latest_handshake_seconds", OF_THE_CLIENT] == 0
        started = time.time()
        await pair.exchange()
        seen = await samples(server.port)
        stats = pair.gateway.stats()
        (peer,) = stats.peers
        assert seen["wireguard_sent_bytes_total", OF_THE_CLIENT] == peer.tunnel.tx_bytes > 0
        assert seen["wireguard_received_bytes_total", OF_THE_CLIENT] == peer.tunnel.rx_bytes > 0
        assert started - 1 <= seen["wireguard_latest_handshake_seconds", OF_THE_CLIENT] <= time.time() + 1
        assert seen["connlib_peer_responses_total", OF_THE_CLIENT] == 1
        assert seen["connlib_peer_sessions", OF_THE_CLIENT] == 1


@in_real_time
async def test_what_is_dropped_is_served_with_its_reason() -> None:
    async with served() as (pair, server):
        await pair.exchange()
        await pair.client_tun.send(packet("10.9.9.9", GATEWAY))
        await pair.client_tun.send(packet(CLIENT, GATEWAY, b"last"))
        await pair.gateway_tun.receive()
        await pair.gateway_tun.send(packet(GATEWAY, "10.8.8.8"))
        await pair.gateway_tun.send(packet(GATEWAY, CLIENT, b"last"))
        await pair.client_tun.receive()
        seen = await samples(server.port)
        reason = frozenset({("reason", "source not allowed")})
        assert seen["connlib_peer_drops_total", OF_THE_CLIENT | reason] == 1
        no_route = frozenset({("interface", "memory"), ("reason", "no route")})
        assert seen["connlib_drops_total", no_route] == 1
        asked = frozenset({("interface", "memory"), ("result", "asked")})
        assert seen["connlib_lookups_total", asked] == 0


@in_real_time
async def test_a_session_that_there_is_not_has_no_age() -> None:
    async with served() as (pair, server):
        assert ("connlib_peer_session_age_seconds", OF_THE_CLIENT) not in await samples(server.port)
        await pair.exchange()
        assert ("connlib_peer_session_age_seconds", OF_THE_CLIENT) in await samples(server.port)


@in_real_time
async def test_names_arrive_as_they_are_and_each_metric_says_what_it_is() -> None:
    peers = tuple(
        PeerConfig(public_key=PrivateKey.generate().public_key(), name=name)
        for name in ('a "quoted" one', "back\\slash", "two\nlines", "ä, {b}=c", None)
    )
    config = gateway_config(peers=peers)
    async with (
        open_interface(config, tun=MemoryTun(), udp=MemoryUdp()) as interface,
        serve_metrics(interface, port=0) as server,
    ):
        status, headers, body = await get(server.port, "/metrics")
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        families = list(text_string_to_metric_families(body.decode()))
        labels = {
            (sample.labels["public_key"], sample.labels["friendly_name"])
            for family in families
            for sample in family.samples
            if "public_key" in sample.labels
        }
        assert labels == {(peer.public_key.to_base64(), peer.name or "") for peer in peers}
        assert len({family.name for family in families}) == len(families), "a metric is in two places"
        for family in families:
            assert family.documentation and family.type == (
                "counter" if f"{family.name}_total" in body.decode() else "gauge"
            )


@in_real_time
async def test_others_have_their_turn_while_a_page_is_made() -> None:
    """A thousand peers' takes as long as many packets."""
    async with served() as (pair, server), counted_turns() as turns:
        page = await server._latest_metrics()
        assert turns.count >= page.count(b"# HELP ")
        assert page.decode() == "".join(module.render(pair.gateway))


@in_real_time
async def test_a_page_is_made_once_for_all_that_ask_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def page(_: object) -> Iterator[str]:
        nonlocal made
        made += 1
        yield f"page {made}"
        monkeypatch.setattr("connlib.metrics.time.thread_time", lambda: 1e9)

    async with served() as (_, server):
        monkeypatch.setattr(module, "render", page)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(server._latest_metrics)
        assert made == 1
        monkeypatch.undo()


@in_real_time
async def test_readyz_says_whether_the_interface_is_up() -> None:
    async with served() as (pair, server):
        status, _, body = await get(server.port, "/readyz")
        assert (status, body) == (200, b"ready\n")
    async with serve_metrics(pair.gateway, port=0) as server:
        status, _, body = await get(server.port, "/readyz")
        assert (status, body) == (503, b"closed\n")
        assert (await get(server.port, "/metrics"))[0] == 200, "as it was at the end"


@in_real_time
async def test_an_interface_that_is_late_with_its_deadlines_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served() as (pair, server):
        await pair.exchange()
        deadline = pair.gateway._node.next_timeout()
        assert deadline is not None, "a session has an end"
        for late, answer in ((0.9, (200, b"ready\n")), (1.1, (503, b"late\n"))):
            with monkeypatch.context() as patches:
                patches.setattr(pair.gateway._clock, "now", lambda late=late: deadline.at + late)
                status, _, body = await get(server.port, "/readyz")
            assert (status, body) == answer


@in_real_time
async def test_readyz_says_that_the_interface_goes_down_while_it_is_still_there() -> None:
    async with served() as (pair, server):
        server.goes_down()
        status, _, body = await get(server.port, "/readyz")
        assert (status, body) == (503, b"stopping\n")
        assert (await get(server.port, "/metrics"))[0] == 200
        await pair.exchange()


@in_real_time
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /readyz?verbose HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 4000, 431),
    ],
)
async def test_other_requests_are_answered_with_their_status(request_: bytes, status: int) -> None:
    async with served() as (_, server):
        answered, headers, body = await ask(server.port, request_)
        assert answered == status
        assert headers["connection"] == "close"
        if request_.startswith(b"HEAD"):
            assert (headers["content-length"], body) == ("6", b"")
        else:
            assert int(headers["content-length"]) == len(body)


@in_real_time
async def test_slow_clients_hold_nobody_up_and_the_oldest_make_room() -> None:
    async with served() as (_, server), AsyncExitStack() as stack:
        slow = []
        for _ in range(module.MOST_CLIENTS + 1):
            stream = await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", server.port))
            await stream.send(b"GET /met")
            slow.append(stream)
        status, _, _ = await get(server.port, "/readyz")
        assert status == 200
        # Two had to go: for the last of the slow ones, and for the quick one.
        for stream in slow[:2]:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        await slow[2].send(b"rics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await slow[2].receive()).startswith(b"HTTP/1.1 200")


@in_real_time
async def test_a_page_that_takes_long_serves_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 39: of a hundred clients at once, one has the interface wait."""
    made: list[int] = []
    clock = [1000.0]
    seconds = 0.1

    def page(_: object) -> Iterator[str]:
        made.append(len(made))
        for letter in "page":
            clock[0] += seconds / 4
            yield letter

    async with served() as (_, server):
        monkeypatch.setattr(module, "render", page)
        monkeypatch.setattr("connlib.metrics.time.thread_time", lambda: clock[0])
        monkeypatch.setattr("connlib.metrics.anyio.current_time", lambda: clock[0])
        assert [await server._latest_metrics() for _ in range(100)] == [b"page"] * 100
        assert made == [0]
        clock[0] += 0.99
        await server._latest_metrics()
        assert made == [0]
        clock[0] += 0.02
        seconds = 0.019
        await server._latest_metrics()
        await server._latest_metrics()
        assert made == [0, 1, 2], "what is soon made is made for everybody"
        monkeypatch.undo()


@in_real_time
async def test_a_client_that_goes_away_in_the_middle_is_no_error() -> None:
    async with served() as (_, server):
        for request in (b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(request)
            # An abortive close: what is sent to it from now on is answered with a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        assert (await get(server.port, "/readyz"))[0] == 200


@in_real_time
async def test_a_page_that_fails_is_a_status_and_the_interface_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> bytes:
        raise RuntimeError("private")

    async with served() as (pair, server):
        with monkeypatch.context() as patches:
            patches.setattr(module, "render", fail)
            status, _, body = await get(server.port, "/metrics")
        assert status == 500
        assert body.startswith(b"internal error (RuntimeError, test_metrics.py line ")
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert line.startswith("memory: a page has failed: internal error (RuntimeError, ")
        assert "private" not in line
        await pair.exchange()
        assert (await get(server.port, "/metrics"))[0] == 200


@in_real_time
async def test_an_address_that_cannot_be_had_is_one_line() -> None:
    async with served() as (pair, server):
        with pytest.raises(DeviceError) as caught:
            async with serve_metrics(pair.gateway, port=server.port):
                pass
        assert str(caught.value) == (
            f"cannot serve metrics on 127.0.0.1 port {server.port}: Address already in use; "
            "choose another address or port"
        )
        for host, port in (("localhost", 0), ("127.0.0.1", 65_536), ("127.0.0.1", -1)):
            with pytest.raises(ConfigError, match=r"^metrics cannot be served on"):
                async with serve_metrics(pair.gateway, host=host, port=port):
                    pass


def test_it_runs_on_asyncio_too() -> None:
    async def main() -> None:
        with anyio.fail_after(60):
            async with served() as (pair, server):
                await pair.exchange()
                seen = await samples(server.port)
                assert seen["connlib_peer_responses_total", OF_THE_CLIENT] == 1

    anyio.run(main, backend="asyncio")


# connlib up --metrics

ASK = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("met") as made:
        made.run("ip", "link", "set", "lo", "up")
        yield made


def config_file(folder: Path) -> Path:
    file = folder / "wg0.conf"
    file.write_text(format_config(gateway_config()))
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("place", ["0", "127.0.0.1:0", "[::1]:0"])
def test_up_serves_metrics_where_it_is_told_to(namespace: Namespace, tmp_path: Path, place: str) -> None:
    command = namespace.command(*COMMAND, "up", str(config_file(tmp_path)), "--metrics", place)
    process = Background(command, tmp_path / "log")
    try:
        wait_for(
            lambda: "/metrics" in process.output() or process.returncode is not None,
            "the metrics to be there",
        )
        (address,) = re.findall(r"wg0: metrics at (http://\S+)$", process.output(), re.MULTILINE)
        assert 'connlib_timer_wakes_total{interface="wg0"}' in namespace.run(
            sys.executable, "-c", ASK, address
        )
        ready = address.replace("/metrics", "/readyz")
        assert namespace.run(sys.executable, "-c", ASK, ready) == "ready\n"
        assert process.stop() == 0
    finally:
        if process.returncode is None:
            process.stop()


def test_up_is_not_ready_any_more_from_the_signal_on_to_its_end(namespace: Namespace, tmp_path: Path) -> None:
    """What gives its DNS back takes its time, and is killed after two seconds."""
    reverts, sleep, ip = tmp_path / "reverts", shutil.which("sleep"), shutil.which("ip")
    assert sleep is not None and ip is not None
    program = tmp_path / "resolvectl"
    program.write_text(f'#!/bin/sh\n[ "$1" != revert ] || {{ : > {reverts}; exec {sleep} 1000; }}\n')
    program.chmod(0o755)
    file = config_file(tmp_path)
    file.write_text(file.read_text().replace("[Interface]\n", "[Interface]\nDNS = 10.0.0.53\n", 1))
    command = namespace.command(*COMMAND, "up", str(file), "--metrics", "9586")
    process = Background((ip, *command[1:]), tmp_path / "log", env={"PATH": str(tmp_path)})

    def readyz() -> tuple[str, str]:
        with namespace.make_socket(socket.AF_INET, socket.SOCK_STREAM) as asker:
            asker.settimeout(30)
            asker.connect(("127.0.0.1", 9586))
            asker.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b"".join(iter(lambda: asker.recv(4096), b"")).decode()
        return answer.split(" ", 2)[1], answer.rpartition("\r\n")[2]

    try:
        wait_for(lambda: " is up: " in process.output() or process.returncode is not None, "the tunnel")
        assert readyz() == ("200", "ready\n")
        process.send(signal.SIGTERM)
        wait_for(lambda: reverts.exists() or process.returncode is not None, "its end to begin")
        assert readyz() == ("503", "stopping\n")
        wait_for(lambda: process.returncode is not None, "its end")
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.stop()
        print(process.output())


@pytest.mark.parametrize("place", ["", "x", "localhost:9586", "9586x", "127.0.0.1:65536", "[::1]", "-1"])
def test_up_says_what_is_no_place_for_metrics(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, "up", str(config_file(tmp_path)), f"--metrics={place}")
    assert (code, capsys.readouterr().err) == (
        2,
        f"connlib: metrics cannot be served at {place!r}; write a port, or 192.0.2.1:9586 or [::1]:9586\n",
    )
