//! Datagrams and packets of any length and content: counted, and nothing else.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::net::*;

/// Every length that a test of this kind has to try.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=2048).chain([65_535])
}

/// Fills in what a parser looks at first, so that the rest of it is reached as well.
fn disguise(garbage: &mut [u8], kind: u8, index: &[u8]) {
    if let Some(start) = garbage.first_chunk_mut::<4>() {
        *start = [kind, 0, 0, 0];
    }
    // Where an initiation has none, a response has it at 8, and the others at 4.
    for at in [4, 8] {
        if let Some(place) = garbage.get_mut(at..at + 4) {
            place.copy_from_slice(index);
        }
    }
}

#[test]
fn random_datagrams_of_every_length_are_counted_and_do_nothing() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut net = Net::connected();
    net.send(1, &between(1, 2, b"genuine"));
    let live = net.log[0].bytes[4..8].to_vec();
    net.run_for(0.1);
    net.host(2).received.clear();
    net.log.clear();

    let quiet = net.peer_stats(2, 1);
    let next = net.host(2).node.next_timeout();
    let mut count = 0;
    for length in lengths() {
        let mut garbage = vec![0; length];
        for kind in 0..=6 {
            rng.fill_bytes(&mut garbage);
            // 5: as the generator made it. 6: a keepalive's or a packet's header, with a counter that is free.
            match kind {
                0..=4 => disguise(&mut garbage, kind, &live),
                6 => {
                    disguise(&mut garbage, DATA, &live);
                    if let Some(counter) = garbage.get_mut(8..16) {
                        counter.copy_from_slice(&1000u64.to_le_bytes());
                    }
                }
                _ => {}
            }
            assert!(net.inject(2, address(1), &garbage).is_empty());
            count += 1;
        }
    }
    let noisy = net.peer_stats(2, 1);
    assert_eq!(net.stats(2).drops.total() + noisy.drops.total(), count);
    assert_eq!(
        (noisy.tunnel, noisy.endpoint),
        (quiet.tunnel, quiet.endpoint)
    );
    assert_eq!(net.host(2).node.next_timeout(), next);
    assert!(net.host(2).received.is_empty() && net.log.is_empty());

    net.send(1, &between(1, 2, b"as if nothing had happened"));
    net.run_for(0.1);
    assert_eq!(
        net.host(2).received,
        [between(1, 2, b"as if nothing had happened")]
    );
}

#[test]
fn random_packets_from_the_device_are_counted_or_sealed() {
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let mut net = Net::connected();
    let before = net.peer_stats(1, 2).tunnel.tx_packets;
    let mut count = 0;
    for length in lengths() {
        for first in [0x00, 0x45, 0x60, 0xff] {
            let mut garbage = vec![0; length];
            rng.fill_bytes(&mut garbage);
            if let Some(byte) = garbage.first_mut() {
                *byte = first;
            }
            net.send(1, &garbage);
            count += 1;
        }
    }
    let stats = net.stats(1);
    assert_eq!(
        stats.drops.total() + net.peer_stats(1, 2).tunnel.tx_packets - before,
        count
    );
    net.send(1, &between(1, 2, b"as if nothing had happened"));
    net.run_for(0.1);
    assert_eq!(
        net.host(2).received.last(),
        Some(&between(1, 2, b"as if nothing had happened"))
    );
}
