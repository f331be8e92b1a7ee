//! Many messages in one buffer.

use std::ops::Range;
use std::sync::Arc;

use crate::key::{Key, TAG_LEN};

/// Messages that one thread does together. More of them are no faster, and leave the caches before they are used.
pub const MOST: usize = 64;

/// Messages that several threads do together. A thread that has slept is there late, and the more there is to do, the less
/// that matters.
pub const MOST_OF_A_TEAM: usize = 256;

/// A message in the buffer that is given to the engine.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Which of the batch's keys.
    pub key: usize,
    pub counter: u64,
    /// The text and, behind it, its tag.
    pub range: Range<usize>,
    pub failed: bool,
}

impl Message {
    /// Where it lies in a piece of the buffer that begins at `start`.
    pub fn place(&self, start: usize) -> Option<Range<usize>> {
        let Range {
            start: from,
            end: to,
        } = self.range;
        Some(from.checked_sub(start)?..to.checked_sub(start)?)
    }
}

/// Messages in a row, and the piece of the buffer that they lie in.
pub(crate) struct Part<'a> {
    pub messages: &'a mut [Message],
    pub bytes: &'a mut [u8],
    /// Where in the buffer the piece begins.
    pub start: usize,
}

impl<'a> Part<'a> {
    /// The first `count` messages, and the others. What has not failed before lies within one of both.
    pub fn split(self, count: usize) -> (Part<'a>, Part<'a>) {
        let (messages, others) = self.messages.split_at_mut(count.min(self.messages.len()));
        let last = messages.iter().rfind(|message| !message.failed);
        let end = last.map_or(self.start, |last| last.range.end);
        let length = end.saturating_sub(self.start).min(self.bytes.len());
        let (bytes, behind) = self.bytes.split_at_mut(length);
        let first = Part {
            messages,
            bytes,
            start: self.start,
        };
        let second = Part {
            messages: others,
            bytes: behind,
            start: self.start + length,
        };
        (first, second)
    }
}

/// Messages that are to be sealed or opened together. Their places in the buffer rise, and do not overlap.
///
/// It keeps its memory from one use to the next, but no key: those are shared with whoever put the messages in, and let go
/// with `clear`.
#[derive(Debug, Default)]
pub struct Batch {
    keys: Vec<Arc<Key>>,
    messages: Vec<Message>,
}

impl Batch {
    /// Adds a message, which lies behind those that are there. Returns its number in the batch.
    #[inline]
    pub fn push(&mut self, key: &Arc<Key>, counter: u64, range: Range<usize>) -> usize {
        // Most messages have the key of the one before.
        if self.keys.last().is_none_or(|last| !Arc::ptr_eq(last, key)) {
            self.keys.push(key.clone());
        }
        self.messages.push(Message {
            key: self.keys.len() - 1,
            counter,
            range,
            failed: false,
        });
        self.messages.len() - 1
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The buffer was cut to so many bytes: messages that do not lie before them are gone.
    #[inline]
    pub fn truncate(&mut self, bytes: usize) {
        while self
            .messages
            .pop_if(|last| last.range.end > bytes)
            .is_some()
        {}
    }

    /// Whether message `number` was sealed or opened, once the engine has seen it.
    pub fn succeeded(&self, number: usize) -> bool {
        let message = self.messages.get(number);
        message.is_some_and(|message| !message.failed)
    }

    /// What message `number` holds, without its tag, if it was sealed or opened in this buffer.
    pub fn text<'a>(&self, number: usize, buffer: &'a [u8]) -> Option<&'a [u8]> {
        let message = self.messages.get(number)?;
        let Range { start, end } = message.range;
        let text = buffer.get(start..end.checked_sub(TAG_LEN)?)?;
        (!message.failed).then_some(text)
    }

    /// The key of message `number`.
    pub fn key(&self, number: usize) -> Option<&Arc<Key>> {
        self.keys.get(self.messages.get(number)?.key)
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.messages.clear();
    }

    /// The keys, and the messages with the buffer. Of those, the ones that lie elsewhere than they should have failed.
    pub(crate) fn checked<'a>(&'a mut self, buffer: &'a mut [u8]) -> (&'a [Arc<Key>], Part<'a>) {
        let mut end = 0;
        for message in &mut self.messages {
            let Range { start, end: stop } = message.range;
            message.failed =
                start < end || stop > buffer.len() || stop.saturating_sub(start) < TAG_LEN;
            if !message.failed {
                end = stop;
            }
        }
        let part = Part {
            messages: &mut self.messages,
            bytes: buffer,
            start: 0,
        };
        (&self.keys, part)
    }
}
