//! The WireGuard engine: boringtun with the series in `patches/boringtun`, put together by the build script.

// Upstream's way of writing, which is no reason for a patch.
#![allow(clippy::doc_lazy_continuation, clippy::manual_is_multiple_of)]
// ring::constant_time has no public successor.
#![allow(deprecated)]

include!(concat!(env!("OUT_DIR"), "/boringtun/src/lib.rs"));
