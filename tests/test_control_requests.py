"""What is no request over the control socket, or none that can be done, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connlib import (
    ControlClient,
    ControlError,
    PrivateKey,
)
from connlib.control import protocol, server
from helpers_driver import Pair, in_real_time
from test_control import CLIENT_BASE64, ask, control_test, exchange, served

MALFORMED = "the request is malformed:"
NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (b"hello\n", "request", 'this is no request: a JSON object with "version" is expected'),
        (b"\xff\xfe\n", "request", 'this is no request: a JSON object with "version" is expected'),
        (b'{"method":"show"}\n', "request", 'this is no request: a JSON object with "version" is expected'),
        (b'{"version":2,"method":"x"}\n', "version", "this gateway speaks version 1 of the control protocol"),
        (
            b'{"version":1,"method":"fly"}\n',
            "request",
            f"{MALFORMED} Invalid value (not shown) - at `$.method`",
        ),
        (
            b'{"version":1,"method":"show","a":1}\n',
            "request",
            f"{MALFORMED} Object contains unknown field (not shown)",
        ),
        (b'{"x":' + NESTED + b',"version":1}\n', "request", "the request is nested too deeply"),
        (
            b'{"version":1,"method":"explain","peers":' + NESTED + b"}\n",
            "request",
            "the request is nested too deeply",
        ),
    ],
    ids=["text", "bytes", "no version", "version 2", "method", "field", "nested", "nested peers"],
)
def test_what_is_no_request_gets_one_line(tmp_path: Path, line: bytes, kind: str, says: str) -> None:
    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (_, client, path):
            (answer,) = await ask(path, line)
            assert answer == {"error": {"kind": kind, "problems": [says]}}
            # And the next one is served.
            assert (await client.show()).peers

    run()


def test_a_request_that_fails_for_a_reason_that_nobody_foresaw_ends_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a bug raises, and whatever its text quotes."""
    secret = PrivateKey.generate().to_base64()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"no thread for {secret}")

    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _):
            for name, ask_for in (
                ("report_status", client.show),
                ("report_explanations", client.explain),
                ("parse_request", client.show),
                ("count_changes", lambda: client.apply(pair.gateway.config)),
                ("capture_interface", client.capture().__aenter__),
            ):
                with monkeypatch.context() as patches:
                    patches.setattr(server, name, fail)
                    with pytest.raises(ControlError) as caught:
                        await ask_for()
                assert caught.value.kind == "internal"
                (problem,) = caught.value.problems
                assert problem.startswith(
                    "memory: internal error (RuntimeError, test_control_requests.py line "
                )
            assert (await client.show()).peers
            await exchange(pair)

    run()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 5
    assert all("memory: a request has failed: internal error (RuntimeError, " in line for line in said)
    assert secret not in caplog.text


def test_what_fails_in_the_middle_of_a_stream_is_said_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _):
            async with client.events() as events:
                with monkeypatch.context() as patches:
                    patches.setattr(server, "dump_line", fail)
                    await pair.gateway.apply(dataclasses.replace(pair.gateway.config, peers=()))
                    with pytest.raises(ControlError, match=r"internal error \(KeyError, ") as caught:
                        await events.__anext__()
                    assert caught.value.kind == "internal"
            assert (await client.show()).peers == ()

    run()


@control_test
async def test_the_gateway_opens_no_file_for_whoever_asks(
    pair: Pair, client: ControlClient, path: Path
) -> None:
    # A named pipe that nobody writes to would hold every packet up, and its owner may not read all that root may.
    file = path.parent / "pipe"
    os.mkfifo(file)
    named = {"private_key_file": str(file)}
    peer = {"public_key": CLIENT_BASE64, "preshared_key_file": str(file)}
    keys = {"private_key": PrivateKey.generate().to_base64()}
    for gateway in ({"interface": named}, {"interface": keys, "peers": [peer]}):
        request = {"version": 1, "method": "apply", "gateway": gateway}
        (answer,) = await ask(path, json.dumps(request).encode() + b"\n")
        problems = ["the request names a file with a key; it must hold the keys themselves"]
        assert answer == {"error": {"kind": "request", "problems": problems}}


@pytest.mark.parametrize(
    ("interface", "says"),
    [
        ({"timers": {"rekey_aftr_time": 5}}, "timers: there is no 'rekey_aftr_time'"),
        ({"limits": {"que": 1, "queue_packets": 2}}, "limits: there is no 'que'"),
        ({"addresses": [5]}, "what should be text is not - at `$.gateway.interface.addresses[0]`"),
        ({"addresses": [True]}, "what should be text is not - at `$.gateway.interface.addresses[0]`"),
        (
            {"addresses": ["fe80::1%eth0/128"]},
            "an address or a prefix is malformed - at `$.gateway.interface.addresses[0]`",
        ),
        (
            {"addresses": ["10.0.0.1/24, 10.0.0.2/24"]},
            "an address or a prefix is malformed - at `$.gateway.interface.addresses[0]`",
        ),
        ({"masquerade": [5]}, "what should be text is not - at `$.gateway.interface.masquerade[0]`"),
    ],
)
def test_what_the_schema_refuses_is_refused(interface: dict[str, Any], says: str) -> None:
    keys = {"private_key": PrivateKey.generate().to_base64()}
    request = {"version": 1, "method": "apply", "gateway": {"interface": {**keys, **interface}}}
    with pytest.raises(ControlError) as caught:
        protocol.parse_request(json.dumps(request).encode())
    assert (caught.value.kind, caught.value.problems) == ("request", (f"{MALFORMED} {says}",))


@control_test
async def test_a_key_in_the_wrong_place_is_not_echoed(pair: Pair, client: ControlClient, path: Path) -> None:
    secret = PrivateKey.generate().to_base64()
    for place in (
        {"method": secret},
        {"method": f"{secret}' - at `$.x` {secret}"},
        {"method": "show", secret: 1},
        {"method": "show", f"`{secret}": 1},
        {"method": "apply", "gateway": {"interface": {"private_key": secret, secret: 1}}},
        {"method": "apply", "gateway": {"interface": {"private_key": secret, "timers": {secret: 1}}}},
        {"method": "apply", "gateway": {"interface": {"private_key": secret, "role": f"it's {secret}"}}},
        {"method": "apply", "gateway": {"interface": {"private_key": secret, "role": secret}}},
        {"method": "apply", "gateway": {"interface": {"private_key": secret + "x"}}},
        {"method": "apply", "gateway": {"interface": {"private_key": secret, "addresses": [secret]}}},
    ):
        (answer,) = await ask(path, json.dumps({"version": 1, **place}).encode() + b"\n")
        assert answer["error"]["kind"] == "request"
        assert secret[:10] not in json.dumps(answer)


def test_what_contradicts_itself_is_said_in_our_own_words() -> None:
    """No apostrophe of them is taken for a quote."""
    own = PrivateKey.generate()
    key = own.public_key().to_base64()
    interface = {"private_key": own.to_base64()}
    twice = [
        {"public_key": PrivateKey.generate().public_key().to_base64(), "name": "alice"} for _ in range(2)
    ]
    for peers, says in (
        ([{"public_key": key}], "public_key is the gateway's own"),
        (twice, "name: there is another 'alice'"),
    ):
        request = {"version": 1, "method": "apply", "gateway": {"interface": interface, "peers": peers}}
        with pytest.raises(ControlError) as caught:
            protocol.parse_request(json.dumps(request).encode())
        assert says in str(caught.value)


@in_real_time
async def test_several_requests_of_one_client_are_answered_in_turn(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, path):
        show = b'{"version":1,"method":"show"}\n'
        answers = await ask(path, show + show[:9], show[9:] + b"?\n" + show)
        assert [sorted(answer) for answer in answers] == [["result"], ["result"], ["error"], ["result"]]


def test_a_line_that_is_too_long_is_refused_before_it_is_kept() -> None:
    lines = protocol.Lines(most=10)
    assert list(lines.feed(b"12345\n1234567890\n")) == [b"12345", b"1234567890"]
    with pytest.raises(ControlError, match="the line is longer than 10 bytes"):
        for _ in lines.feed(b"12345678901"):
            pass


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_do_not_depend_on_how_they_arrive(wanted: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in wanted)
    lines, found = protocol.Lines(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += list(lines.feed(stream[:cut]))
        stream = stream[cut:]
    assert found == wanted


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["show", "interface", "", "\0"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["interface", "peers", "to"]), inner)
        ),
        max_leaves=6,
    )
)
def test_no_json_does_more_than_be_refused(value: Any) -> None:
    for line in (value, {"version": 1, "method": value}, {"version": 1, "method": "apply", "gateway": value}):
        try:
            request = protocol.parse_request(json.dumps(line).encode())
        except ControlError:
            continue
        assert request == protocol.Show()
