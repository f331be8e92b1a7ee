//! On machines that intel-ipsec-mb is not made for.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use crate::batch::Part;
use crate::engine::Direction;
use crate::key::{Failed, Key};

/// Why intel-ipsec-mb is not used: always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal;

impl Refusal {
    /// What is to be done about it.
    pub fn hint(&self) -> &'static str {
        "use ring"
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("intel-ipsec-mb is for x86-64 only")
    }
}

impl std::error::Error for Refusal {}

/// There is none.
#[derive(Debug)]
pub struct IpsecMb(Infallible);

impl IpsecMb {
    pub fn new() -> Result<Self, Refusal> {
        Err(Refusal)
    }

    pub fn uses_avx512(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn run(
        &mut self,
        _: Direction,
        _: &[Arc<Key>],
        _: &mut Part<'_>,
    ) -> Result<(), Failed> {
        match self.0 {}
    }
}
