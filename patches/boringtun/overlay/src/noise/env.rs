// SPDX-License-Identifier: BSD-3-Clause
//! What the engine may not fetch for itself: the time, randomness and receiver indices.

use crate::Instant;
use rand_core::CryptoRngCore;

/// A source of receiver indices, shared by all tunnels that receive on one socket.
///
/// An index is what a peer writes on every packet to us (paper, section 5.4.2), so two live handshakes or sessions of
/// one socket must never hold the same one, and an outsider must not be able to guess them.
pub trait Indices {
    /// Hand out an index that is not in use.
    fn allocate(&mut self, rng: &mut dyn CryptoRngCore) -> u32;

    /// Take an index back: its handshake or session is gone.
    fn release(&mut self, index: u32);
}

/// The surroundings of one call into the engine.
pub struct Env<'a> {
    /// The time of this call. A clock that went backwards is treated as standing still.
    pub now: Instant,
    /// Where ephemeral keys, jitter and indices come from.
    pub rng: &'a mut dyn CryptoRngCore,
    /// Where receiver indices come from.
    pub indices: &'a mut dyn Indices,
}

impl Env<'_> {
    /// A new receiver index.
    pub(super) fn allocate_index(&mut self) -> u32 {
        self.indices.allocate(&mut *self.rng)
    }
}
