#![no_main]

#[path = "../offload.rs"]
mod offload;

libfuzzer_sys::fuzz_target!(|data: &[u8]| offload::offload(data));
