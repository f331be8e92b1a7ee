// SPDX-License-Identifier: BSD-3-Clause
//! The sessions of a tunnel: at most a previous, a current, and a next that the peer has not confirmed.
//!
//! Which session becomes which (paper, section 6; every transition is in this file):
//! - our initiation was answered: the new session is current at once. The old current one becomes previous, so that what
//!   is in flight still arrives; a next one becomes previous instead, for the peer may be sending on it already.
//! - we answered an initiation: the new session is next, in place of an earlier next one.
//! - the first packet on next confirms it: it becomes current, and current becomes previous.

use super::session::Session;
use super::{Indices, WireGuardError};
use crate::Instant;
use std::time::Duration;

#[derive(Default)]
pub(super) struct Sessions {
    previous: Option<Box<Session>>,
    current: Option<Box<Session>>,
    next: Option<Box<Session>>,
    /// When the oldest of them was made: asked with every packet, so that no session has to be looked at.
    oldest: Option<Instant>,
}

fn release(session: Option<Box<Session>>, indices: &mut dyn Indices) {
    if let Some(session) = session {
        indices.release(session.receiving_index);
    }
}

impl Sessions {
    pub fn current(&self) -> Option<&Session> {
        self.current.as_deref()
    }

    pub fn current_mut(&mut self) -> Option<&mut Session> {
        self.current.as_deref_mut()
    }

    pub fn next(&self) -> Option<&Session> {
        self.next.as_deref()
    }

    fn slots(&self) -> [&Option<Box<Session>>; 3] {
        [&self.previous, &self.current, &self.next]
    }

    fn iter(&self) -> impl Iterator<Item = &Session> {
        let [previous, current, next] = self.slots();
        previous.iter().chain(current).chain(next).map(|s| &**s)
    }

    /// How many sessions have not reached `limit`.
    pub fn younger_than(&self, limit: Duration, now: Instant) -> usize {
        self.iter().filter(|s| now < s.created + limit).count()
    }

    /// The session that receives on `index`.
    pub fn get(&self, index: u32) -> Option<&Session> {
        self.iter()
            .find(|session| session.receiving_index == index)
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// `NoCurrentSession` if there is no session at all, else `WrongIndex`.
    #[inline]
    pub fn find(&mut self, index: u32) -> Result<&mut Session, WireGuardError> {
        let none = self.oldest.is_none();
        IntoIterator::into_iter([&mut self.current, &mut self.next, &mut self.previous])
            .flatten()
            .find(|session| session.receiving_index == index)
            .map(|session| &mut **session)
            .ok_or(match none {
                true => WireGuardError::NoCurrentSession,
                false => WireGuardError::WrongIndex,
            })
    }

    /// Whether the peer receives on `index`, in any of them.
    pub fn send_on(&self, index: u32) -> bool {
        self.iter().any(|session| session.sending_index == index)
    }

    pub fn is_current(&self, index: u32) -> bool {
        self.current().is_some_and(|s| s.receiving_index == index)
    }

    /// A session from our own initiation.
    pub fn install_initiated(&mut self, session: Session, indices: &mut dyn Indices) {
        let current = self.current.replace(Box::new(session));
        let (kept, dropped) = match self.next.take() {
            Some(next) => (Some(next), current),
            None => (current, None),
        };
        release(dropped, indices);
        release(std::mem::replace(&mut self.previous, kept), indices);
        self.find_oldest();
    }

    /// A session that we answered.
    pub fn install_unconfirmed(&mut self, session: Session, indices: &mut dyn Indices) {
        release(self.next.replace(Box::new(session)), indices);
        self.find_oldest();
    }

    /// A packet came on session `index`. True if that confirmed it.
    #[inline]
    pub fn confirm(&mut self, index: u32, indices: &mut dyn Indices) -> bool {
        if self.next().is_none_or(|s| s.receiving_index != index) {
            return false;
        }
        let current = std::mem::replace(&mut self.current, self.next.take());
        release(std::mem::replace(&mut self.previous, current), indices);
        self.find_oldest();
        true
    }

    /// When the oldest session reaches `limit`.
    pub fn next_expiry(&self, limit: Duration) -> Option<Instant> {
        self.oldest.map(|oldest| oldest + limit)
    }

    fn find_oldest(&mut self) {
        self.oldest = self.iter().map(|session| session.created).min();
    }

    /// Wipe the sessions whose age is `limit` or more. True if the current one went.
    pub fn expire(&mut self, now: Instant, limit: Duration, indices: &mut dyn Indices) -> bool {
        let had_current = self.current.is_some();
        for slot in [&mut self.previous, &mut self.current, &mut self.next] {
            if slot.as_ref().is_some_and(|s| now >= s.created + limit) {
                release(slot.take(), indices);
            }
        }
        self.find_oldest();
        had_current && self.current.is_none()
    }

    /// Wipe all.
    pub fn clear(&mut self, indices: &mut dyn Indices) {
        for slot in [&mut self.previous, &mut self.current, &mut self.next] {
            release(slot.take(), indices);
        }
        self.oldest = None;
    }
}
