//! Datagrams that the machine's routes lead back into the tunnel, as packets: they go no further.

use std::net::SocketAddr;

use connlib_core::DropReason;

use crate::net::*;

const LOOP: DropReason = DropReason::RoutingLoop;

/// A datagram from port 51820 as a packet.
fn as_packet(to: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let mut udp = vec![0xca, 0x6c];
    udp.extend(to.port().to_be_bytes());
    udp.extend((8 + datagram.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(datagram);
    let source = match to.is_ipv4() {
        true => "10.0.0.1",
        false => "fd00::1",
    };
    packet(source, &to.ip().to_string(), &udp)
}

/// Host 1, whose peer 2 owns everything, also the address at which it is found, with a session; what is sent gets lost.
fn looped(at: SocketAddr) -> Net {
    let mut everything = peer(2);
    everything.allowed_ips = vec![prefix("0.0.0.0/0"), prefix("::/0")];
    let mut net = Net::new([
        (1, config(1, vec![everything])),
        (2, config(2, vec![peer(1)])),
    ]);
    net.send(1, &between(1, 2, b"hello"));
    net.run_for(1.0);
    let now = net.now;
    net.call(1, |node| node.set_endpoint(&public_key(2), at, true, now))
        .unwrap();
    net.loses = |_| true;
    net.log.clear();
    net
}

fn addresses() -> [SocketAddr; 2] {
    [address(2), "[2001:db8::2]:51820".parse().unwrap()]
}

/// Whether a packet of host 1 is dropped as one of its own.
fn is_dropped(net: &mut Net, packet: &[u8]) -> bool {
    let (before, sent) = (net.drops(1, 2, LOOP), net.log.len());
    net.send(1, packet);
    let dropped = net.drops(1, 2, LOOP) > before;
    assert_eq!(net.log.len() - sent, usize::from(!dropped));
    dropped
}

#[test]
fn a_data_message_is_not_sealed_again() {
    for at in addresses() {
        let mut net = looped(at);
        net.send(1, &between(1, 2, b"data"));
        let sent = net.log.last().unwrap().clone();
        assert_eq!((sent.kind(), sent.destination), (DATA, at));
        assert!(is_dropped(&mut net, &as_packet(at, &sent.bytes)));
    }
}

#[test]
fn an_initiation_does_not_wait_for_the_session_that_it_asks_for() {
    for at in addresses() {
        let mut net = looped(at);
        let now = net.now;
        net.call(1, |node| node.initiate_handshake(&public_key(2), now))
            .unwrap();
        let sent = net.log.last().unwrap().clone();
        assert_eq!((sent.kind(), sent.destination), (INITIATION, at));
        assert!(is_dropped(&mut net, &as_packet(at, &sent.bytes)));
    }
}

#[test]
fn the_first_of_several_fragments_is_known_too() {
    for at in addresses() {
        let mut net = looped(at);
        net.send(1, &between(1, 2, &[7; 1000]));
        let whole = as_packet(at, &net.log.last().unwrap().bytes);
        let (first, later) = match at.is_ipv4() {
            true => {
                let mut first = whole[..20 + 512].to_vec();
                first[6] = 0x20;
                let mut later = first.clone();
                later[7] = 64;
                (first, later)
            }
            false => {
                let mut first = whole[..40].to_vec();
                first[6] = 44;
                first.extend([17, 0, 0, 1, 0, 0, 0, 9]);
                first.extend(&whole[40..40 + 512]);
                let mut later = first.clone();
                later[42] = 2;
                (first, later)
            }
        };
        assert!(is_dropped(&mut net, &first));
        assert!(!is_dropped(&mut net, &later));
    }
}

#[test]
fn what_is_somebody_elses_goes_to_the_same_address_and_port() {
    for at in addresses() {
        let mut net = looped(at);
        net.send(1, &between(1, 2, b"data"));
        let own = net.log.last().unwrap().bytes.clone();
        let mut packets = Vec::new();
        // Another tunnel's.
        for kind in 1..=4 {
            let mut other = own.clone();
            other[0] = kind;
            other[4] ^= 1;
            packets.push(as_packet(at, &other));
        }
        // No data message: its index is not the sender's.
        for kind in [0, 1, 2, 3, 5] {
            let mut other = own.clone();
            other[0] = kind;
            packets.push(as_packet(at, &other));
        }
        packets.push(as_packet(at, b""));
        packets.push(as_packet(at, &own[..7]));
        packets.push(as_packet(SocketAddr::new(at.ip(), 53), &own));
        let mut tcp = as_packet(at, &own);
        tcp[if at.is_ipv4() { 9 } else { 6 }] = 6;
        packets.push(tcp);
        for packet in packets {
            assert!(!is_dropped(&mut net, &packet), "{packet:x?}");
        }
    }
    // The datagram is for another address than the peer's.
    let mut net = looped(address(2));
    net.send(1, &between(1, 2, b"data"));
    let own = net.log.last().unwrap().bytes.clone();
    assert!(!is_dropped(&mut net, &as_packet(address(7), &own)));
}
