"""Keys and a file that the tests of configurations share."""

from connlib._native import PresharedKey, PrivateKey

OWN = PrivateKey.from_bytes(bytes(range(8, 40)))
ALICE = PrivateKey.from_bytes(bytes(range(40, 72))).public_key()
BOB = PrivateKey.from_bytes(bytes(range(80, 112))).public_key()
SHARED = PresharedKey.from_bytes(bytes(range(100, 132)))

FULL = f"""\
# the office
[Interface]
# connlib: interface = office0
# connlib: role = responder
# connlib: rekey-timeout = 2.5
# connlib: queue-packets = 16
# connlib: masquerade = 10.7.0.0/24, fd07::/64
# connlib: protect-addresses = false
# connlib: offload = coalesce_tcp, tso4
# connlib: encryption = ring
# connlib: threads = 4
# connlib: worker = false
PrivateKey = {OWN.to_base64()}
ListenPort = 51820
Address = 10.7.0.1/24, fd07::1/64
address = 10.8.0.1
MTU = 1380   # for the DSL line
Table = off
FwMark = 0xca6c
DNS = 10.7.0.53, example.org
DNS = fd07:0::53
SaveConfig = false

[Peer]
# connlib: name = alice
PublicKey = {ALICE.to_base64()}
PresharedKey = {SHARED.to_base64()}
AllowedIPs = 10.7.0.2/32, 192.168.7.1/24
AllowedIPs = fd07::2/128
Endpoint = [2001:db8::7]:51820
PersistentKeepalive = 25

[peer]
publickey={BOB.to_base64()}
ENDPOINT = vpn.example.org:51821
# connlib: role = initiator
PersistentKeepalive = off
"""

MINIMAL = f"[Interface]\nPrivateKey = {OWN.to_base64()}\n"
