"""Who may start a session: after a long silence the client's packet does, and the gateway's waits for the client."""

from connlib import Output, PrivateKey, Role, Tunn

key_a, key_b = PrivateKey.generate(), PrivateKey.generate()
client = Tunn(key_a, key_b.public_key(), role=Role.INITIATOR, now=0.0, unix_time=1_700_000_000.0)
gateway = Tunn(key_b, key_a.public_key(), role=Role.RESPONDER, now=0.0, unix_time=1_700_000_000.0)
packet = bytes.fromhex("4500001c00004000400126450a4d00020a4d0001") + b"\x08\x00\xf7\xff\x00\x00\x00\x00"


def exchange(output: Output, sender: Tunn, receiver: Tunn, now: float) -> int:
    """Carry what one end sent to the other, and back, until all is quiet. Returns how many packets arrived."""
    count = 0
    for datagram in output.datagrams:
        answer = receiver.decapsulate(datagram, now)
        count += len(answer.packets) + exchange(answer, receiver, sender, now)
    return count


THREE_HOURS = 10_800.0
print("the client sends:", exchange(client.encapsulate(packet, 0.0), client, gateway, 0.0), "packet arrived")
print("three hours later the gateway sends:", end=" ")
print(exchange(gateway.encapsulate(packet, THREE_HOURS), gateway, client, THREE_HOURS), "arrived, it waits")
print("the client sends:", end=" ")
print(exchange(client.encapsulate(packet, THREE_HOURS), client, gateway, THREE_HOURS), "arrived, both ways")
sent = client.stats(THREE_HOURS).initiations_sent, gateway.stats(THREE_HOURS).initiations_sent
print("initiations: client", sent[0], "- gateway", sent[1])
