//! Receiver indices: random, and unique over everything that receives on one socket.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use connlib_boringtun::noise::Indices;
use parking_lot::Mutex;
use rand_core::CryptoRngCore;
use rustc_hash::FxHashMap;

/// The receiver indices that are in use, each with a value of its owner's: `Node` keeps the peer there.
///
/// Indices are drawn at random from all 2^32 (paper, section 5.4.2), so that nobody who cannot see our traffic can name
/// one, and drawn again while taken.
#[derive(Debug, Default)]
pub struct IndexTable<T = ()> {
    /// The hash needs no secret: what is inserted was drawn by us, and nobody else chooses it.
    live: FxHashMap<u32, T>,
}

/// One table for many tunnels.
pub type SharedIndices = Arc<Mutex<IndexTable>>;

impl<T: Copy> IndexTable<T> {
    pub fn allocate(&mut self, owner: T, rng: &mut dyn CryptoRngCore) -> u32 {
        // A table that holds a thousandth of all indices draws twice once in a thousand times; memory ends long before
        // indices do.
        loop {
            let index = rng.next_u32();
            if let Entry::Vacant(vacant) = self.live.entry(index) {
                vacant.insert(owner);
                return index;
            }
        }
    }

    pub fn release(&mut self, index: u32) {
        self.live.remove(&index);
    }

    /// Takes back every index of an owner's.
    #[allow(
        clippy::disallowed_methods,
        reason = "which go does not depend on the order"
    )]
    pub fn release_all(&mut self, owner: T)
    where
        T: PartialEq,
    {
        self.live.retain(|_, of| *of != owner);
    }

    /// The owner of a live index.
    pub fn owner(&self, index: u32) -> Option<T> {
        self.live.get(&index).copied()
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// A shared table as an engine sees it during one call: locked only when an index comes or goes, which is once a handshake.
pub(crate) struct Shared<'a>(pub &'a SharedIndices);

impl Indices for Shared<'_> {
    fn allocate(&mut self, rng: &mut dyn CryptoRngCore) -> u32 {
        self.0.lock().allocate((), rng)
    }

    fn release(&mut self, index: u32) {
        self.0.lock().release(index);
    }
}

/// A table during one call on behalf of one owner.
pub(crate) struct Owned<'a, T> {
    pub table: &'a mut IndexTable<T>,
    pub owner: T,
}

impl<T: Copy> Indices for Owned<'_, T> {
    fn allocate(&mut self, rng: &mut dyn CryptoRngCore) -> u32 {
        self.table.allocate(self.owner, rng)
    }

    fn release(&mut self, index: u32) {
        self.table.release(index);
    }
}

#[cfg(test)]
mod tests {
    use super::IndexTable;
    use rand_core::{CryptoRng, RngCore};

    /// Says each number twice.
    struct Stutter(u32);

    impl CryptoRng for Stutter {}

    impl RngCore for Stutter {
        fn next_u32(&mut self) -> u32 {
            self.0 += 1;
            self.0 / 2
        }
        fn next_u64(&mut self) -> u64 {
            self.next_u32().into()
        }
        fn fill_bytes(&mut self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
            self.fill_bytes(bytes);
            Ok(())
        }
    }

    #[test]
    fn an_index_in_use_is_not_handed_out_again_and_a_released_one_may_be() {
        let mut table = IndexTable::default();
        let mut rng = Stutter(1);
        let drawn: Vec<u32> = (0..4)
            .map(|owner| table.allocate(owner, &mut rng))
            .collect();
        assert_eq!(drawn, [1, 2, 3, 4]);
        assert_eq!(table.owner(3), Some(2));
        table.release(3);
        assert_eq!(table.owner(3), None);
        assert_eq!(table.allocate(9, &mut Stutter(5)), 3);
        assert_eq!(table.len(), 4);
    }
}
