//! Series on a made-up release, and the series of this repository on the real one.

mod boringtun;
mod command;
mod common;
mod overlays;
mod patches;
