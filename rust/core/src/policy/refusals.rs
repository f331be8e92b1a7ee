//! What is said of refused packets, within bounds: whoever sends many of them fills neither an event loop nor a disk.

use std::sync::Arc;

use super::header::Header;
use super::{Policy, Verdict};
use crate::Instant;
use crate::bucket::Bucket;

/// A policy refused packets of one peer, or for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The latest one.
    pub header: Header,
    pub verdict: Verdict,
    /// What the rule that decided about it is called.
    pub rule_name: Option<Arc<str>>,
    /// How many were refused since the last time that this was said, this one included.
    pub count: u64,
}

/// One peer's refused packets that nobody was told of yet.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    latest: Option<(Header, Verdict)>,
    /// The policy that refused it, if there is another one now, with rules of other names.
    former: Option<Arc<Policy>>,
    count: u64,
    /// One event at once, and one a second.
    events: Bucket<1, 1000>,
    unlogged: u64,
    /// A hundred lines of the flow log at once, and ten a second.
    lines: Bucket<100, 100>,
}

impl Refusals {
    pub fn add(&mut self, header: Header, verdict: Verdict, count: u64) {
        self.latest = Some((header, verdict));
        self.former = None;
        self.count += count;
        self.unlogged += count;
    }

    /// There is to be another policy than the one that has decided until now.
    pub fn change(&mut self, policy: &Arc<Policy>) {
        if self.latest.is_some() && self.former.is_none() {
            self.former = Some(Arc::clone(policy));
        }
    }

    /// What there is to say, if it may be said now: of the latest one, which `policy` refused unless that has changed since.
    pub fn take(&mut self, policy: &Policy, now: Instant) -> Option<Refusal> {
        let (header, verdict) = self.latest?;
        if !self.events.take(now) {
            return None;
        }
        self.latest = None;
        let former = self.former.take();
        Some(Refusal {
            header,
            verdict,
            rule_name: former
                .as_deref()
                .unwrap_or(policy)
                .rule_name(verdict.reason),
            count: std::mem::take(&mut self.count),
        })
    }

    /// How many a line of the flow log stands for, if there may be one now.
    pub fn take_line(&mut self, now: Instant) -> Option<u64> {
        let may = self.lines.take(now);
        may.then(|| std::mem::take(&mut self.unlogged))
    }
}
