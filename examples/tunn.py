"""A tunnel without sockets, threads or waiting: two ends, virtual time, and every datagram passed by hand."""

from connlib import PrivateKey, Role, Tunn

key_a, key_b = PrivateKey.generate(), PrivateKey.generate()
client = Tunn(key_a, key_b.public_key(), role=Role.INITIATOR, now=0.0, unix_time=1_700_000_000.0)
gateway = Tunn(key_b, key_a.public_key(), role=Role.RESPONDER, now=0.0, unix_time=1_700_000_000.0)

packet = bytes.fromhex("4500001c00004000400126450a4d00020a4d0001") + b"\x08\x00\xf7\xff\x00\x00\x00\x00"
receiver, sender, datagrams = gateway, client, client.encapsulate(packet, now=0.0).datagrams
while datagrams:
    outputs = [receiver.decapsulate(datagram, now=0.01) for datagram in datagrams]
    for output in outputs:
        print("gateway" if receiver is gateway else "client ", "received", output.packets, output.events)
    receiver, sender, datagrams = sender, receiver, [each for output in outputs for each in output.datagrams]
print("client : next deadline", client.next_timeout())
