//! A bounded queue of what a descriptor would not take yet.

use std::collections::VecDeque;

/// First in, first out; beyond its bounds the oldest entries are dropped and counted.
///
/// The oldest go first because the packets of a tunnel age: what has waited longest is what its receiver has given up on.
#[derive(Debug)]
pub struct Queue<T> {
    entries: VecDeque<(T, Box<[u8]>)>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    dropped: u64,
}

impl<T> Queue<T> {
    /// An empty queue that holds at most so many entries and so many bytes.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            max_entries,
            max_bytes,
            dropped: 0,
        }
    }

    /// Appends a copy of `content`, at the cost of the oldest entries where there is no room.
    pub fn push(&mut self, tag: T, content: &[u8]) {
        self.bytes = self.bytes.saturating_add(content.len());
        self.entries.push_back((tag, content.into()));
        while self.entries.len() > self.max_entries || self.bytes > self.max_bytes {
            if self.pop().is_none() {
                break;
            }
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// Removes the oldest entry.
    pub fn pop(&mut self) -> Option<(T, Box<[u8]>)> {
        let entry = self.entries.pop_front()?;
        self.bytes = self.bytes.saturating_sub(entry.1.len());
        Some(entry)
    }

    /// Puts back what [`Self::pop`] has just given.
    pub fn unpop(&mut self, tag: T, content: Box<[u8]>) {
        self.bytes = self.bytes.saturating_add(content.len());
        self.entries.push_front((tag, content));
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries the bounds have cost so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_make_room() {
        let mut queue = Queue::new(3, 100);
        for tag in 0..5 {
            queue.push(tag, &[0; 10]);
        }
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.dropped(), 2);
        assert_eq!(queue.pop().map(|(tag, _)| tag), Some(2));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut queue = Queue::new(100, 25);
        for tag in 0..4 {
            queue.push(tag, &[0; 10]);
        }
        assert_eq!(queue.len(), 2);
        let (tag, content) = queue.pop().unwrap();
        assert_eq!((tag, content.len()), (2, 10));
        queue.unpop(tag, content);
        queue.push(9, &[0; 26]);
        assert!(queue.is_empty());
        assert_eq!(queue.dropped(), 5);
    }
}
