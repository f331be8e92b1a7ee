"""A gateway's TOML file that has everything, for the tests of its types, its reader and the commands."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from connlib import Gateway, GatewayInterface, GatewayPeer, Limits, Role, Timers
from helpers_config import ALICE, BOB, OWN, SHARED

FULL = f"""\
# the office
[interface]
name = "office0"
private_key = "{OWN.to_base64()}"
listen_port = 51820
addresses = ["10.7.0.1/24", "fd07::1/64", "10.8.0.1"]
mtu = 1380  # for the DSL line
fwmark = 0xca6c
routes = false
endpoint = "office.example.org:51820"
role = "responder"
masquerade = true
protect_addresses = false
offload = ["tso4", "coalesce_tcp"]
encryption = "ring"
threads = 4
worker = false
dns = ["10.7.0.53", "example.org", "fd07::53"]

[interface.timers]
rekey_timeout = 2.5

[interface.limits]
queue_packets = 16

[[peers]]
name = "alice"
public_key = "{ALICE.to_base64()}"
preshared_key = "{SHARED.to_base64()}"
allowed_ips = ["10.7.0.2/32", "192.168.7.1/24", "fd07::2/128"]
endpoint = "[2001:db8::7]:51820"
persistent_keepalive = 25

[[peers]]
public_key = "{BOB.to_base64()}"
endpoint = "vpn.example.org:51821"
role = "initiator"
persistent_keepalive = 0
"""

MINIMAL = f"""\
[interface]
private_key = "{OWN.to_base64()}"
"""

GATEWAY = Gateway(
    interface=GatewayInterface(
        name="office0",
        private_key=OWN,
        listen_port=51820,
        addresses=(ip_interface("10.7.0.1/24"), ip_interface("fd07::1/64"), ip_interface("10.8.0.1/32")),
        mtu=1380,
        fwmark=0xCA6C,
        routes=False,
        endpoint="office.example.org:51820",
        role=Role.RESPONDER,
        timers=Timers(rekey_timeout=2.5),
        limits=Limits(queue_packets=16),
        masquerade=True,
        protect_addresses=False,
        offload=("tso4", "coalesce_tcp"),
        encryption="ring",
        threads=4,
        worker=False,
        dns=("10.7.0.53", "example.org", "fd07::53"),
    ),
    peers=(
        GatewayPeer(
            name="alice",
            public_key=ALICE,
            preshared_key=SHARED,
            allowed_ips=(
                ip_network("10.7.0.2/32"),
                ip_network("192.168.7.0/24"),
                ip_network("fd07::2/128"),
            ),
            endpoint="[2001:db8::7]:51820",
            persistent_keepalive=25,
        ),
        GatewayPeer(
            public_key=BOB, endpoint="vpn.example.org:51821", role=Role.INITIATOR, persistent_keepalive=0
        ),
    ),
)
"""What `FULL` says."""
