//! The ICMP message about a refusal: its bytes, and who gets none.

use super::*;

/// RFC 1071, written again: the sum of all words, with its checksum, is 0xffff.
fn sums_up(parts: &[&[u8]]) -> bool {
    let bytes = parts.concat();
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u64::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = sum % 0x10000 + sum / 0x10000;
    }
    sum == 0xffff
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let mut answer = vec![9; 9];
    let written = write_refusal(packet, &mut answer);
    assert_eq!(written, !answer.is_empty());
    written.then_some(answer)
}

#[test]
fn a_refusal_over_ipv4_is_type_3_code_13_and_quotes_up_to_576_bytes() {
    for length in [8, 9, 528, 529, 1400] {
        let mut payload = udp(5000, 22);
        payload.resize(length, 0xa5);
        let packet = ip(PEER, FAR, 17, &payload);
        let answer = answer(&packet).unwrap();
        let quoted = packet.len().min(576 - 28);
        assert_eq!(answer.len(), 28 + quoted);
        assert_eq!(answer[..2], [0x45, 0xc0]);
        assert_eq!(answer[2..4], (answer.len() as u16).to_be_bytes());
        assert_eq!(answer[4..8], [0, 0, 0x40, 0]);
        assert_eq!(answer[9], 1);
        assert_eq!(answer[12..16], [192, 0, 2, 7]);
        assert_eq!(answer[16..20], [10, 0, 0, 1]);
        assert_eq!(answer[20..22], [3, 13]);
        assert_eq!(answer[28..], packet[..quoted]);
        assert!(sums_up(&[&answer[..20]]) && sums_up(&[&answer[20..]]));
    }
}

#[test]
fn a_refusal_over_ipv6_is_type_1_code_1_and_fits_the_least_mtu() {
    for length in [8, 9, 1192, 1193, 1400] {
        let mut payload = udp(5000, 22);
        payload.resize(length, 0xa5);
        let packet = ip(PEER6, FAR6, 17, &payload);
        let answer = answer(&packet).unwrap();
        let quoted = packet.len().min(1280 - 48);
        assert_eq!(answer.len(), 48 + quoted);
        assert_eq!(answer[..4], [0x60, 0, 0, 0]);
        assert_eq!(answer[4..6], (8 + quoted as u16).to_be_bytes());
        assert_eq!(answer[6], 58);
        assert_eq!(answer[8..24], packet[24..40]);
        assert_eq!(answer[24..40], packet[8..24]);
        assert_eq!(answer[40..42], [1, 1]);
        assert_eq!(answer[48..], packet[..quoted]);
        let length = (answer.len() as u32 - 40).to_be_bytes();
        assert!(sums_up(&[
            &answer[8..40],
            &length,
            &[0, 0, 0, 58],
            &answer[40..]
        ]));
    }
}

#[test]
fn what_no_icmp_error_may_answer_gets_none() {
    let with = |source: &str, destination: &str| {
        answer(&ip(source, destination, 17, &udp(1, 2))).is_some()
    };
    assert!(with(PEER, FAR) && with(PEER6, FAR6));
    for (source, destination) in [
        ("0.0.0.0", FAR),
        ("224.0.0.1", FAR),
        ("255.255.255.255", FAR),
        ("127.0.0.1", FAR),
        (PEER, "224.0.0.251"),
        (PEER, "255.255.255.255"),
        (PEER, "0.0.0.0"),
        ("::", FAR6),
        ("ff02::1", FAR6),
        ("::1", FAR6),
        (PEER6, "ff02::2"),
        (PEER6, "::"),
    ] {
        assert!(!with(source, destination), "{source} to {destination}");
    }
    let quoted = ip(FAR, PEER, 17, &udp(1, 2));
    for kind in [3, 4, 5, 11, 12] {
        assert!(answer(&ip(PEER, FAR, 1, &error(kind, &quoted))).is_none());
    }
    for kind in [0, 1, 2, 3, 4, 100, 127, 137] {
        assert!(answer(&ip(PEER6, FAR6, 58, &error(kind, &quoted))).is_none());
    }
    for kind in [0, 8, 13] {
        assert!(answer(&ip(PEER, FAR, 1, &icmp(kind, 1))).is_some());
    }
    for kind in [128, 129, 135] {
        assert!(answer(&ip(PEER6, FAR6, 58, &icmp(kind, 1))).is_some());
    }
    let first = ip(PEER, FAR, 17, &udp(1, 2));
    assert!(answer(&fragment(first.clone(), 0, true)).is_some());
    assert!(answer(&fragment(first, 64, false)).is_none());
}

#[test]
fn answers_are_ten_at_once_and_one_more_every_tenth_of_a_second() {
    let mut gate = Gate::usual();
    let taken = |gate: &mut Gate| {
        (0..100)
            .filter(|_| gate.filter.may_answer(gate.now))
            .count()
    };
    assert_eq!(taken(&mut gate), 10);
    gate.now = START + Duration::from_nanos(99_999_999);
    assert_eq!(taken(&mut gate), 0);
    gate.now = START + Duration::from_millis(100);
    assert_eq!(taken(&mut gate), 1);
    gate.now = START + Duration::from_millis(450);
    assert_eq!(taken(&mut gate), 3);
    gate.now = after(3600);
    assert_eq!(taken(&mut gate), 10);
    assert_eq!(gate.filter.answered, 24);
}
