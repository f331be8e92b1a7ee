//! Packets back to back: those of one batch that was read, or that are to be written.

/// Packets of one batch. Its buffers keep their memory, so that a steady flow allocates nothing.
#[derive(Debug, Default)]
pub struct ReadBatch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) lengths: Vec<usize>,
}

impl ReadBatch {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.packets().iter()
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }

    pub fn packets(&self) -> Packets<'_> {
        Packets {
            bytes: &self.bytes,
            lengths: &self.lengths,
        }
    }
}

/// The same as somebody else keeps them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packets<'a> {
    pub bytes: &'a [u8],
    pub lengths: &'a [usize],
}

impl<'a> Packets<'a> {
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.bytes;
        self.lengths.iter().map_while(move |&length| {
            let (packet, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(packet)
        })
    }

    /// The first `count` of them, and the others.
    pub(crate) fn split_at(self, count: usize) -> (Self, Self) {
        let (lengths, other_lengths) = self
            .lengths
            .split_at_checked(count)
            .unwrap_or((self.lengths, &[]));
        let (bytes, other_bytes) = self
            .bytes
            .split_at_checked(lengths.iter().sum())
            .unwrap_or((self.bytes, &[]));
        let first = Self { bytes, lengths };
        let others = Self {
            bytes: other_bytes,
            lengths: other_lengths,
        };
        (first, others)
    }
}
