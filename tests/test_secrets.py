"""Secret keys stay where they are: no log has them (fault 25), and nobody can dump the process (fault 26)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import traceback
from dataclasses import replace

import pytest
import trio

from connlib import ConfigApplied, ConfigError, Interface, PresharedKey, PrivateKey
from connlib._describe import describe_event
from helpers_driver import (
    CLIENT,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_KEY,
    client_config,
    gateway_config,
    in_virtual_time,
    open_pair,
    packet,
)


def traces(key: PrivateKey | PresharedKey) -> list[str]:
    """What would show a key in a text."""
    secret = key.to_bytes()
    return [key.to_base64()[:20], secret.hex()[:20], repr(secret)[2:-1][:20], str(list(secret))[1:20]]


def test_no_text_of_a_running_interface_shows_a_key(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(1)
    shared = PresharedKey.generate()
    said: list[str] = []

    @in_virtual_time
    async def run() -> None:
        async with open_pair() as pair, trio.open_nursery() as nursery:

            async def listen(interface: Interface) -> None:
                async for peer, event in interface.events():
                    said.append(f"{peer!r} {event!r}")
                    if not isinstance(event, ConfigApplied):
                        said.append(str(describe_event(event)))

            nursery.start_soon(listen, pair.client)
            await pair.exchange()
            await pair.client_tun.send(b"no packet")
            # Sessions end, and with a preshared key that the gateway does not know there is no other.
            await trio.sleep(300)
            config = client_config(preshared_key=shared)
            diff = await pair.client.apply(config)
            await pair.client_tun.send(packet(CLIENT, GATEWAY))
            await trio.sleep(200)
            said.extend(map(repr, (config, gateway_config(), diff, pair.client.stats(), pair.client, pair)))
            with pytest.raises(ConfigError) as error:
                await pair.client.apply(replace(config, peers=config.peers * 2))
            said.extend(traceback.format_exception(error.value))
            nursery.cancel_scope.cancel()

    run()
    out, err = capfd.readouterr()
    text = "\n".join([*said, out, err, caplog.text, *(repr(record.__dict__) for record in caplog.records)])
    for word in ("SessionExpired", "GaveUp", "preshared_key", "is there twice"):
        assert word in text
    assert CLIENT_KEY.public_key().to_base64() in text
    for key in (CLIENT_KEY, GATEWAY_KEY, shared):
        assert [trace for trace in traces(key) if trace in text] == []


def test_the_traces_of_a_key_are_found_where_there_are_some() -> None:
    key = PrivateKey.generate()
    secret = key.to_bytes()
    for text in (key.to_base64(), secret.hex(), repr(secret), str(list(secret))):
        assert [trace for trace in traces(key) if trace in text]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")
def test_the_command_forbids_dumps_before_it_reads_a_key() -> None:
    script = """
        import ctypes
        from connlib.cli import up
        from connlib.cli._stop import StopSignals

        PR_GET_DUMPABLE = 3  # linux/prctl.h

        def dumpable():
            return ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)

        def load(*args, **options):
            raise SystemExit(f"{before} {dumpable()}")

        before = dumpable()
        up.load = load
        up.run("wg0.conf", None, name=None, level="info", allow_world_readable=False)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines() == ["1 0"]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")
def test_the_command_for_wg_forbids_dumps_before_there_is_a_loop_to_get_a_key_from() -> None:
    script = """
        import ctypes
        import trio
        from connlib.cli import wg

        PR_GET_DUMPABLE = 3  # linux/prctl.h

        def dumpable():
            return ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)

        def run(*args):
            raise SystemExit(f"{before} {dumpable()}")

        before = dumpable()
        trio.run = run
        wg._run("wg0", "error", lambda: None)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines() == ["1 0"]
