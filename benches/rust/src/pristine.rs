//! boringtun as it was released, with the clock that `connlib.upstream` gives it.

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::Failure;
use crate::workload::{BATCH, Engine, complete, packet};

pub struct Pristine {
    tunnels: [Tunn; 2],
    packet: Vec<u8>,
    /// One place for each datagram of a batch, and its length.
    datagrams: Vec<Vec<u8>>,
    lengths: Vec<usize>,
    opened: Vec<u8>,
}

impl Pristine {
    pub fn new(size: usize) -> Result<Self, Failure> {
        let [one, other] = [1, 2].map(|n| StaticSecret::from([n; 32]));
        let keys = [&one, &other].map(PublicKey::from);
        let [key_of_one, key_of_other] = keys;
        let mut tunnels = [
            Tunn::new(one, key_of_other, None, None, 1, None),
            Tunn::new(other, key_of_one, None, None, 2, None),
        ];
        let room = size.max(148) + 32;
        handshake(&mut tunnels, room)?;
        Ok(Pristine {
            tunnels,
            packet: packet(size),
            datagrams: vec![vec![0; room]; BATCH],
            lengths: vec![0; BATCH],
            opened: vec![0; room],
        })
    }
}

/// Initiation, response, and the keepalive that confirms.
fn handshake(tunnels: &mut [Tunn; 2], room: usize) -> Result<(), Failure> {
    let [one, other] = tunnels;
    let mut initiation = vec![0; room];
    let mut response = vec![0; room];
    let mut keepalive = vec![0; room];
    let TunnResult::WriteToNetwork(initiation) =
        one.format_handshake_initiation(&mut initiation, false)
    else {
        return Err("no initiation".into());
    };
    let TunnResult::WriteToNetwork(response) = other.decapsulate(None, initiation, &mut response)
    else {
        return Err("no response".into());
    };
    let TunnResult::WriteToNetwork(keepalive) = one.decapsulate(None, response, &mut keepalive)
    else {
        return Err("no keepalive".into());
    };
    match other.decapsulate(None, keepalive, &mut vec![0; room]) {
        TunnResult::Done => Ok(()),
        result => Err(format!("the keepalive was answered with {result:?}").into()),
    }
}

impl Engine for Pristine {
    fn seal(&mut self) -> Result<(), Failure> {
        for (datagram, length) in self.datagrams.iter_mut().zip(&mut self.lengths) {
            match self.tunnels[0].encapsulate(&self.packet, datagram) {
                TunnResult::WriteToNetwork(sealed) => *length = sealed.len(),
                result => return Err(format!("sealing gave {result:?}").into()),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), Failure> {
        let mut opened = 0;
        for (datagram, length) in self.datagrams.iter().zip(&self.lengths) {
            match self.tunnels[1].decapsulate(None, &datagram[..*length], &mut self.opened) {
                TunnResult::WriteToTunnelV4(packet, _) if packet.len() == self.packet.len() => {
                    opened += 1
                }
                result => return Err(format!("opening gave {result:?}").into()),
            }
        }
        complete(opened)
    }
}
